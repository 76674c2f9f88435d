"""Files and signals: streaming checkpoints, atomic writes, file locks, signals that stop a loop."""
