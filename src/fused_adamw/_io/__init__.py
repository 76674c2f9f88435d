"""Files and signals."""
