"""The tiny transformer, written out by hand, and the training that the optimizer is shown with."""

from .model import PAD, TARGETS, TOKENS, VOCABULARY, TinyTransformer

__all__ = ["PAD", "TARGETS", "TOKENS", "VOCABULARY", "TinyTransformer"]
