"""What a run keeps on disk: checkpoints, log, lock, and the settings that define it."""
