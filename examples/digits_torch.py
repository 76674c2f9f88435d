"""Train a small convolutional network on scikit-learn's handwritten digits in PyTorch.

    python examples/digits_torch.py                             # with fused_adamw.torch.AdamW
    python examples/digits_torch.py --optimizer torch-fused
    python examples/digits_torch.py --all                       # all of them, in one table

A training script for PyTorch needs one changed line, the import of AdamW. OPTIMIZERS has the
alternatives; the rest of the script does not depend on which one is used.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from statistics import fmean, median
from time import perf_counter
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from fused_adamw.torch import AdamW  # the one changed line; was: from torch.optim import AdamW

OPTIMIZERS = {
    "fused-adamw": AdamW,
    "torch-fused": partial(torch.optim.AdamW, fused=True),
    "torch-foreach": partial(torch.optim.AdamW, foreach=True),
    "torch-for-loop": partial(torch.optim.AdamW, foreach=False),  # PyTorch's default on the CPU
}
BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05


class Data(NamedTuple):
    images: Tensor  # (1437, 1, 8, 8), from 0 to 1
    labels: Tensor  # (1437,)
    test_images: Tensor  # (360, 1, 8, 8)
    test_labels: Tensor  # (360,)


class Result(NamedTuple):
    loss: float  # mean over the batches of the epoch
    accuracy: float  # on the test images
    seconds: float  # of training since the start, without testing
    step_microseconds: float  # median of optimizer.step() since the start


def load_data() -> Data:
    """1,437 training and 360 test images; the split does not depend on --seed."""
    pixels, labels = load_digits(return_X_y=True)  # (1797, 64) from 0 to 16, (1797,)
    split = train_test_split(pixels / 16, labels, test_size=360, stratify=labels, random_state=0)
    images, test_images = (torch.tensor(x, dtype=torch.float32) for x in split[:2])
    labels, test_labels = map(torch.tensor, split[2:])
    return Data(images.view(-1, 1, 8, 8), labels, test_images.view(-1, 1, 8, 8), test_labels)


def make_model() -> nn.Module:
    return nn.Sequential(  # 20,298 parameters in 14 tensors; the shapes are those of the outputs
        nn.Conv2d(1, 32, 3, padding=1),  # (N, 32, 8, 8)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),  # (N, 32, 8, 8)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (N, 32, 4, 4)
        nn.Conv2d(32, 32, 3, padding=1),  # (N, 32, 4, 4)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (N, 32, 2, 2)
        nn.Flatten(),  # (N, 128)
        nn.Linear(128, 10),  # (N, 10)
    )


def measure_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)  # (N,)
    model.train()
    return (predicted == labels).float().mean().item()


def train(name: str, data: Data, epochs: int, seed: int) -> Iterator[Result]:
    """Train a new model with the optimizer of that name; yield the result of each epoch.

    The seed determines the initial weights and the order of the images, so that every optimizer
    does the same work.
    """
    torch.manual_seed(seed)
    model = make_model()
    order = torch.Generator().manual_seed(seed)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches_per_epoch = -(-len(data.images) // BATCH)
    scheduler = CosineAnnealingLR(optimizer, epochs * batches_per_epoch)
    seconds, step_seconds = 0.0, []
    for _ in range(epochs):
        start, losses = perf_counter(), []
        for chosen in torch.randperm(len(data.images), generator=order).split(BATCH):
            loss = cross_entropy(model(data.images[chosen]), data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            before = perf_counter()
            optimizer.step()
            step_seconds.append(perf_counter() - before)
            scheduler.step()
            losses.append(loss.item())
        seconds += perf_counter() - start
        accuracy = measure_accuracy(model, data.test_images, data.test_labels)
        yield Result(fmean(losses), accuracy, seconds, 1e6 * median(step_seconds))


def train_one(name: str, data: Data, epochs: int, seed: int) -> None:
    for epoch, result in enumerate(train(name, data, epochs, seed), start=1):
        print(
            f"epoch {epoch:2}   training loss {result.loss:.4f}   "
            f"test accuracy {result.accuracy:.1%}   {result.seconds:5.2f} s",
            flush=True,
        )
    print(f"{name}: optimizer.step() takes {result.step_microseconds:.0f} µs (median)")


def train_all(data: Data, epochs: int, seed: int) -> None:
    """Print a row for each optimizer.

    They take turns, epoch by epoch, so that a temporary slowdown of the machine affects all of
    them. An epoch that is not counted comes first; otherwise the first optimizer would pay for what
    PyTorch sets up once.
    """
    list(train("torch-for-loop", data, 1, seed))
    *_, results = zip(*(train(name, data, epochs, seed) for name in OPTIMIZERS), strict=True)
    print("optimizer       training loss  test accuracy  whole time  optimizer.step()")
    for name, result in zip(OPTIMIZERS, results, strict=True):
        print(
            f"{name:14}  {result.loss:13.5f}  {result.accuracy:13.1%}  {result.seconds:8.2f} s"
            f"  {result.step_microseconds:13.0f} µs"
        )
    print("Whole time: forward, backward and optimizer. optimizer.step(): the median of all steps.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--optimizer", choices=OPTIMIZERS, default="fused-adamw")
    choice.add_argument("--all", action="store_true", help="compare all optimizers in one table")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more; got {arguments.epochs}")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be from 0 to 2**63 - 1; got {arguments.seed}")
    # A network this small gains nothing from a second thread, and on a busy machine loses seconds
    # to threads that wait for each other.
    torch.set_num_threads(1)
    if arguments.all:
        train_all(load_data(), arguments.epochs, arguments.seed)
    else:
        train_one(arguments.optimizer, load_data(), arguments.epochs, arguments.seed)


if __name__ == "__main__":
    main()
