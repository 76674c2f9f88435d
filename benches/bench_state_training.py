"""Trainings with the state in fewer bits: the final loss beside that of float32.

Three tasks, each from several seeds, which draw parameters and batches: the tiny transformer on its
sentence and on the characters of this repository's README, and the digits of examples/. The seeds
alone spread the loss that far; a kind of state should do no more."""

import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from fused_adamw.schedules import CosineDecay
from fused_adamw.tiny import train_loop as training
from fused_adamw.tiny.model import TinyTransformer

ROOT = Path(__file__).parent.parent
SEEDS = range(5)
STATES = {"float32": None, "bfloat16": "bfloat16", "8bit": "8bit"}


def transformer_run(task, seed, steps, lr, state_dtype):
    model = TinyTransformer(seed, "float32", **task.sizes)
    optimizer = training.make_optimizer(
        training.OptimizerName.FUSED, model.parameters, lr, num_threads=1, state_dtype=state_dtype
    )
    losses = training.train(model, optimizer, task.batches(), steps).losses
    return model, losses


def sentence(seed, state_dtype):
    """The loss of the sentence."""
    return transformer_run(training.sentence_task(), seed, 300, 1e-3, state_dtype)[1][-1]


def text(seed, state_dtype):
    """The loss of all the text that it was trained on."""
    corpus = training.read_text(ROOT / "README.md", training.Level.CHARS, context=32)
    sizes = {"d_model": 32, "n_heads": 2, "d_ff": 128}
    task = training.text_task(corpus, 32, 16, seed, **sizes)
    model, _ = transformer_run(task, seed, 300, 3e-3, state_dtype)
    return training.mean_loss(model, corpus.train)


def digits(seed, state_dtype):
    """The loss of the images that were learned from."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import digits_numpy as example
    except ImportError as missing:
        pytest.skip(f"pip install scikit-learn ({missing})")
    finally:
        sys.path.pop(0)
    images, _, labels, _ = example.load_data()
    rng = np.random.default_rng(seed)
    parameters, steps = example.draw_parameters(rng), 400
    optimizer = training.make_optimizer(
        training.OptimizerName.FUSED,
        parameters,
        3e-3,
        num_threads=1,
        schedule=CosineDecay(3e-3, steps),
        state_dtype=state_dtype,
    )
    for _ in range(steps):
        chosen = rng.integers(len(images), size=example.BATCH)
        optimizer.step(example.loss_and_gradients(parameters, images[chosen], labels[chosen])[1])
    return example.loss_and_gradients(parameters, images, labels)[0]


TASKS = {"sentence": sentence, "text": text, "digits": digits}


@pytest.mark.parametrize("name", TASKS)
def bench_state_training(results, name):
    losses = {
        state: [float(TASKS[name](seed, state_dtype)) for seed in SEEDS]
        for state, state_dtype in STATES.items()
    }
    own = losses["float32"]
    for state, found in losses.items():
        apart = [a - b for a, b in zip(found, own, strict=True)]
        within = min(own) <= mean(found) <= max(own)
        results.add_row(
            f"Final losses of trainings from {len(SEEDS)} seeds, by what the state is kept in",
            **{
                "": f"{name}, {state}",
                "mean": f"{mean(found):.5f}",
                "least to most": f"{min(found):.5f} to {max(found):.5f}",
                "standard deviation": f"{stdev(found):.5f}",
                "mean beside float32's": f"{mean(apart):+.5f}",
                "in its standard deviations": f"{mean(apart) / stdev(own):+.2f}",
                "of the same seed, at most": f"{max(map(abs, apart)):.5f}",
                "within float32's spread": "yes" if within else "no",
            },
        )
