"""A tiny transformer, written out by hand, and its training."""

from .baselines import SGD, ReferenceAdamW
from .generation import sample
from .layers import PAD
from .model import TARGETS, TOKENS, VOCABULARY, TinyTransformer
from .text_data import Corpus, Task, read_text, sentence_task, text_task
from .train_loop import History, TrainingResult, train
from .training_checkpoint import TrainingCheckpoint

__all__ = [
    "PAD",
    "SGD",
    "TARGETS",
    "TOKENS",
    "VOCABULARY",
    "Corpus",
    "History",
    "ReferenceAdamW",
    "Task",
    "TinyTransformer",
    "TrainingCheckpoint",
    "TrainingResult",
    "read_text",
    "sample",
    "sentence_task",
    "text_task",
    "train",
]
