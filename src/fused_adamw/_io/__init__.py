"""Files and signals: streaming checkpoints, atomic writes, deferred SIGINT."""
