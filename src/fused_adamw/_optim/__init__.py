"""Shared code of the optimizer classes."""
