"""The command ``fused-adamw``."""

from .app import main

__all__ = ["main"]
