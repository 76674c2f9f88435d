"""Training with low-precision state: the final loss compared with that of float32.

Three tasks, each with several seeds, which determine parameters and batches: the tiny transformer
on its sentence and on the characters of this repository's README, and the digits of examples/. A
storage format should change the loss less than the seed does.

The mixes of bfloat16 parameters with moments and master weights train the tiny transformer: the
model computes in float32 with what the parameters are, and its gradients are rounded to
bfloat16."""

import sys
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw.schedules import CosineDecay
from fused_adamw.tiny import TinyTransformer, read_text, sentence_task, text_task, train
from fused_adamw.tiny.text_data import mean_loss

ROOT = Path(__file__).parent.parent
SEEDS = range(5)
STATES = {
    name: partial(AdamW, num_threads=1, state_dtype=name)
    for name in ("float32", "bfloat16", "8bit")
}


def transformer_run(task, seed, steps, lr, make):
    """``make(params, lr)``: the optimizer."""
    model = TinyTransformer(seed, "float32", **task.sizes)
    optimizer = make(model.parameters, lr)
    return model, complete(train(model, optimizer, task.batches(), steps))


def complete(history):
    """The losses of a training run that no signal has ended early."""
    assert not history.interrupted, f"signal {history.stop_signal} ended a training run"
    return history.losses


def sentence(seed, make):
    """The final loss on the sentence."""
    return transformer_run(sentence_task(), seed, 300, 1e-3, make)[1][-1]


def text(seed, make):
    """The mean loss on all of the training text."""
    corpus = read_text(ROOT / "README.md", context=32)
    sizes = {"d_model": 32, "n_heads": 2, "d_ff": 128}
    task = text_task(corpus, 32, 16, seed, **sizes)
    model, _ = transformer_run(task, seed, 300, 3e-3, make)
    return mean_loss(model, corpus.train)


def digits(seed, make):
    """The mean loss on all training images."""
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
    optimizer = make(parameters, CosineDecay(3e-3, steps))
    for _ in range(steps):
        chosen = rng.integers(len(images), size=example.BATCH)
        optimizer.step(example.loss_and_gradients(parameters, images[chosen], labels[chosen])[1])
    return example.loss_and_gradients(parameters, images, labels)[0]


def mixed_run(task, seed, steps, lr, options):
    """``transformer_run`` with parameters of bfloat16; also the bytes of state a parameter."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    model = TinyTransformer(seed, "float32", **task.sizes)
    params = {name: p.astype(bfloat16) for name, p in model.parameters.items()}
    optimizer = AdamW(params, lr, num_threads=1, **options)

    class Rounded:
        """The optimizer, for the loop: it leaves the parameters of the model at ``params``."""

        def step(self, grads):
            optimizer.step({name: g.astype(bfloat16) for name, g in grads.items()})
            self.copy()

        def copy(self):
            for name, p in model.parameters.items():
                p[...] = params[name]

    rounded = Rounded()
    rounded.copy()
    losses = complete(train(model, rounded, task.batches(), steps))
    return model, losses, optimizer.state_nbytes / sum(p.size for p in params.values())


def mixed_sentence(seed, options):
    _, losses, nbytes = mixed_run(sentence_task(), seed, 300, 1e-3, options)
    return losses[-1], nbytes


def mixed_text(seed, options):
    corpus = read_text(ROOT / "README.md", context=32)
    task = text_task(corpus, 32, 16, seed, d_model=32, n_heads=2, d_ff=128)
    model, _, nbytes = mixed_run(task, seed, 300, 3e-3, options)
    return mean_loss(model, corpus.train), nbytes


MIXED_TASKS = {"sentence": mixed_sentence, "text": mixed_text}
MIXES = {
    f"{moments}{', master weights' if masters else ''}{', to nearest' if seed is None else ''}": {
        "state_dtype": moments,
        "master_weights": masters,
        "seed": seed,
    }
    for moments, masters, seed in [
        *product(("float32", "bfloat16", "8bit"), (True, False), (0,)),
        ("bfloat16", False, None),
    ]
}


TASKS = {"sentence": sentence, "text": text, "digits": digits}


def add_rows(results, title, name, states):
    """The final losses of a task, for optimizers by the storage format of their state; the first
    is float32."""
    losses = {
        state: [float(TASKS[name](seed, make)) for seed in SEEDS] for state, make in states.items()
    }
    own = next(iter(losses.values()))
    for state, found in losses.items():
        differences = [a - b for a, b in zip(found, own, strict=True)]
        within = min(own) <= mean(found) <= max(own)
        results.add_row(
            title,
            **{
                "": f"{name}, {state}",
                "mean": f"{mean(found):.5f}",
                "least to most": f"{min(found):.5f} to {max(found):.5f}",
                "standard deviation": f"{stdev(found):.5f}",
                "mean difference": f"{mean(differences):+.5f}",
                "in standard deviations": f"{mean(differences) / stdev(own):+.2f}",
                "largest, same seed": f"{max(map(abs, differences)):.5f}",
                "within the range of float32": "yes" if within else "no",
            },
        )


@pytest.mark.parametrize("name", TASKS)
def bench_state_training(results, name):
    title = f"Final losses of {len(SEEDS)} seeds, by the storage format of the state"
    add_rows(results, title, name, STATES)


@pytest.mark.parametrize("name", MIXED_TASKS)
def bench_mixes_training(results, name):
    task = MIXED_TASKS[name]
    own = [float(TASKS[name](seed, STATES["float32"])) for seed in SEEDS]
    for mix, options in {"float32 parameters": None, **MIXES}.items():
        found, nbytes = own, [8.0]
        if options is not None:
            found, nbytes = zip(*[task(seed, options) for seed in SEEDS], strict=True)
        differences = [a - b for a, b in zip(found, own, strict=True)]
        results.add_row(
            f"Final losses of {len(SEEDS)} seeds with bfloat16 parameters, by moments",
            **{
                "": f"{name}, {mix}",
                "bytes of state a parameter": f"{nbytes[0]:.2f}",
                "mean": f"{mean(found):.5f}",
                "least to most": f"{min(found):.5f} to {max(found):.5f}",
                "mean difference": f"{mean(differences):+.5f}",
            },
        )
