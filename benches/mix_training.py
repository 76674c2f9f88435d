"""Training with a mix: the final loss of the tiny transformer on the characters of the README."""

from pathlib import Path

import numpy as np

from fused_adamw.bench.mixes import numpy_dtype, optimizer_of
from fused_adamw.tiny import TinyTransformer, read_text, text_task, train
from fused_adamw.tiny.text_data import mean_loss

ROOT = Path(__file__).parent.parent


class StoredParameters:
    """An optimizer of the parameters of a model, which it keeps in the dtype of a mix."""

    SCALE = 2.0**10  # of the gradients, which keeps small ones in the range of float16

    def __init__(self, model, mix, lr):
        self.model, self.dtype = model, numpy_dtype(mix.param_dtype)
        self.params = {name: p.astype(self.dtype) for name, p in model.parameters.items()}
        self.optimizer = optimizer_of(mix, self.params, lr=lr, num_threads=1)
        self.copy_to_model()

    def step(self, grads):
        scaled = {
            name: (g * np.float32(self.SCALE)).astype(self.dtype) for name, g in grads.items()
        }
        self.optimizer.step(scaled, grad_scale=1 / self.SCALE)
        self.copy_to_model()

    def copy_to_model(self):
        for name, parameter in self.model.parameters.items():
            parameter[...] = self.params[name]


def final_loss(mix, seed, steps=300, lr=3e-3):
    """The mean loss on all of the training text."""
    corpus = read_text(ROOT / "README.md", context=32)
    task = text_task(corpus, 32, 16, seed, d_model=32, n_heads=2, d_ff=128)
    model = TinyTransformer(seed, "float32", **task.sizes)
    train(model, StoredParameters(model, mix, lr), task.batches(), steps)
    return float(mean_loss(model, corpus.train))
