"""What a run keeps on disk: its folders, checkpoints and log; the machine it runs on, and the signals that stop it."""
