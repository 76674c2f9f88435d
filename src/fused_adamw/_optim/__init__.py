"""What the optimizer classes share."""
