"""Three things that are said against plain SGD, measured on a tiny transformer and on a valley.

    python examples/why_not_sgd.py

It takes 10 to 60 seconds. Its figures are the same on every machine, but for losses at rates of 1
and above, where training is chaotic: the last digits of the matrix products decide.
"""

import argparse
import math
from itertools import pairwise

import numpy as np

from fused_adamw import AdamW
from fused_adamw.tiny import SGD, TARGETS, TOKENS, TinyTransformer

OPTIMIZERS = {"AdamW": AdamW, "SGD": SGD}
STEPS = 500
WORKS = 0.1  # a rate works where the loss gets below a tenth of chance


def main() -> None:
    """Print the three sections."""
    one_rate_for_all()
    zigzag()
    sensitivity()


# ---------------------------------------------------------------------------- 1


def one_rate_for_all() -> None:
    """Compare the sizes of gradients, and of updates, across the tensors of the model."""
    print("1. One rate for all parameters\n")
    print("   Root mean square, by tensor, at the first step:")
    print("                 gradient   SGD, lr 0.1   AdamW, lr 0.001")
    sizes = {}
    model = TinyTransformer()
    _, grads = model.loss_and_gradients(TOKENS, TARGETS)
    updates = {name: first_update(name, lr) for name, lr in (("SGD", 0.1), ("AdamW", 0.001))}
    for name, gradient in grads.items():
        sizes[name] = rms(gradient)
        sgd, adamw = (rms(updates[optimizer][name]) for optimizer in ("SGD", "AdamW"))
        print(f"   {name:10} {sizes[name]:11.2e} {sgd:13.2e} {adamw:17.2e}")
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    apart = sizes[largest] / sizes[smallest]
    sgd, adamw = (
        max(found) / min(found)
        for found in ([rms(x) for x in updates[name].values()] for name in ("SGD", "AdamW"))
    )
    print(f"\n   The gradients are {apart:,.0f} times apart ({largest} against {smallest}),")
    print(f"   and so are SGD's updates ({sgd:,.0f} times). AdamW's are {adamw:.1f} times apart.\n")


def first_update(optimizer: str, lr: float) -> dict[str, np.ndarray]:
    """Return what the first step adds to each tensor."""
    model = TinyTransformer()
    before = {name: parameter.copy() for name, parameter in model.parameters.items()}
    _, grads = model.loss_and_gradients(TOKENS, TARGETS)
    OPTIMIZERS[optimizer](model.parameters, lr).step(grads)
    return {name: parameter - before[name] for name, parameter in model.parameters.items()}


def rms(x: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


# ---------------------------------------------------------------------------- 2

VALLEY = np.array([1.0, 100.0])  # f(x, y) = (x^2 + 100 y^2) / 2: steep along y, flat along x
START = (10.0, 1.0)
VALLEY_STEPS = 300


def zigzag() -> None:
    """Count how often the gradient along the steep direction of a valley changes its sign."""
    print("2. Zigzag\n")
    print(f"   f(x, y) = (x² + 100 y²) / 2 from x = 10, y = 1; f = 100, {VALLEY_STEPS} steps.")
    print("                 lr    last f   sign changes of the gradient along y")
    best_sgd = 2 / VALLEY.sum()  # the best constant rate of gradient descent on a quadratic
    rows = [("SGD", best_sgd), ("SGD", best_sgd / 2), ("AdamW", 0.1), ("AdamW", 2.0)]
    for name, lr in rows:
        f, changes = descend(name, lr)
        print(f"   {name:8} {lr:9.4f} {f:9.1e} {changes:14d}")
    print("\n   SGD's first rate is the best it can have: along y each step overshoots, while x")
    print("   hardly moves. At half of it, y no longer zigzags, and x moves half as far. AdamW")
    print("   divides each direction by the size of its own gradients, so that the steep one")
    print("   does not decide; at lr 2, the best of a sweep of its rates, it oscillates too.\n")


def descend(optimizer: str, lr: float) -> tuple[float, int]:
    """Return the last value of f, and the number of sign changes of its derivative along y."""
    position, signs = np.array(START), []
    options = {"weight_decay": 0.0} if optimizer == "AdamW" else {}
    parameters = {"xy": position}
    step = OPTIMIZERS[optimizer](parameters, lr, **options).step
    for _ in range(VALLEY_STEPS):
        gradient = VALLEY * position
        signs.append(math.copysign(1, gradient[1]))
        step({"xy": gradient})
    changes = sum(a != b for a, b in pairwise(signs))
    return float((VALLEY * position**2).sum() / 2), changes


# ---------------------------------------------------------------------------- 3


def sensitivity() -> None:
    """Train the model at rates half a decade apart, and with another scale of the loss."""
    rates = [float(f"{10 ** (k / 2):.3g}") for k in range(-8, 2)]
    chance = math.log(6)
    print("3. Sensitivity to the rate\n")
    print(f"   Loss of the tiny transformer after {STEPS} steps (chance: {chance:.3f}):")
    print("         lr       AdamW         SGD")
    works: dict[str, list[float]] = {"AdamW": [], "SGD": []}
    previous = 0.0
    for lr in rates:
        losses = {name: loss_after(name, lr) for name in OPTIMIZERS}
        print(f"   {lr:8g} {losses['AdamW']:11.4g} {losses['SGD']:11.4g}")
        for name, loss in losses.items():
            found = works[name]
            in_a_row = not found or found[-1] == previous  # a rate beyond a gap has had luck
            if loss < WORKS * chance and in_a_row:
                found.append(lr)
        previous = lr
    print()
    for name, found in works.items():
        decades = math.log10(found[-1] / found[0])
        print(f"   {name} works from {found[0]:g} to {found[-1]:g}: {decades:.1f} decades.")
    print("\n   So both work over two decades of rates: here SGD is hardly more sensitive than")
    print("   AdamW. What differs is what a rate means: for another loss it is not the same.")
    print("   With the loss multiplied by 100, as by a sum in place of a mean, at the same rates:")
    for name, lr in (("AdamW", 0.01), ("SGD", 0.316)):
        before, after = loss_after(name, lr), loss_after(name, lr, scale=100)
        shown = f"{after:.4g}" if after < 1e6 else "diverges"
        print(f"   {name:6} lr {lr:<6g} {before:.4g} -> {shown}")


def loss_after(optimizer: str, lr: float, scale: float = 1.0) -> float:
    """Return the loss after training on the loss times `scale`; infinity where it diverges."""
    model = TinyTransformer()
    step = OPTIMIZERS[optimizer](model.parameters, lr).step
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(STEPS):
            loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
            if not math.isfinite(loss):
                return math.inf
            step({name: scale * gradient for name, gradient in grads.items()})
        return model.loss(TOKENS, TARGETS)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    main()
