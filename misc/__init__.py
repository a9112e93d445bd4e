"""Results, longer texts, and the script that draws runs beside published results (python -m misc.compare)."""
