"""Results, longer texts, and the scripts of the experiments, run as python -m misc.NAME."""
