"""Shared code of the optimizers for PyTorch."""
