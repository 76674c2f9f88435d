"""The backward pass: from the loss down to the gradient of one parameter, and to those of all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tiny.layers import FloatArray
from ..tiny.model import TARGETS, TOKENS, VOCABULARY, TinyTransformer
from .adamw import PARAMETER

FOLLOWED = 0  # the position of <BOS>, whose embedding `PARAMETER` belongs to
FINITE_DIFFERENCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# Of those, the one at which the error of truncation and that of rounding are both small.
STEP = 1e-5


@dataclass(frozen=True)
class Stage:
    """A gradient of the loss with respect to activations.

    Attributes:
        name: of the gradient, as in `tiny/model.py`.
        formula: what it is computed from.
        norm: over all positions.
        values: at the position that is followed.
    """

    name: str
    formula: str
    norm: float
    values: FloatArray


@dataclass(frozen=True)
class FiniteDifference:
    """(loss(theta + h) - loss(theta - h)) / 2h, without a backward pass."""

    h: float
    gradient: float
    error: float  # the gradient minus that of the backward pass


@dataclass(frozen=True)
class TensorCheck:
    """The gradient of a tensor, beside finite differences of each of its entries."""

    tensor: str
    count: int
    norm: float
    largest: float  # of the absolute values
    largest_error: float  # of the finite differences


@dataclass(frozen=True)
class Backward:
    """The section.

    Attributes:
        loss: the mean over the positions that predict.
        P: what these positions predict, shape (n - 1, V).
        onehot: 1 at the target of each, shape (n - 1, V).
        dlogits: (P - onehot) / (n - 1), from the model's backward pass.
        stages: from the logits to the embedded tokens.
        paths: what reaches the first value of the followed position through Q, K and V.
        gradient: of ``E_token[<BOS>][0]``: the sum of the paths.
        finite_differences: the same gradient, for several h.
        tensors: gradients of all parameters.
    """

    vocabulary: list[str]
    followed: int
    d_head: int  # the width of a head
    loss: float
    P: FloatArray
    onehot: FloatArray
    dlogits: FloatArray
    stages: list[Stage]
    paths: dict[str, float]
    gradient: float
    finite_differences: list[FiniteDifference]
    tensors: list[TensorCheck]


def explain_backward() -> Backward:
    """Compute the section with a backward pass of the model."""
    model = TinyTransformer()
    loss, cache = model.forward(TOKENS, TARGETS)
    grads, d = model.backward_through_layers(cache)
    n = len(TARGETS)
    name, index = PARAMETER
    gradient = float(grads[name][index])
    log_P = cache[1][0]
    stages = {
        "dlogits": (d.dlogits, f"(P − onehot) / {n}"),
        "dY": (d.dY, "dlogits · W_lm"),
        "d(H + F)": (d.dF, "dY through the layer norm"),
        "dhidden": (d.dhidden, "d(H + F) · W_2"),
        "dgelu": (d.dgelu, "dhidden × gelu'"),
        "dH": (d.dH, "d(H + F) + dgelu · W_1"),
        "dconcatenated": (d.dconcatenated, "dH · W_O"),
        "dX": (d.attention.dX, "dconcatenated through Q, K and V"),
    }
    path_of = zip("QKV", d.attention.paths.sum(axis=1)[:, FOLLOWED, 0], strict=True)
    differences = ((h, central_difference(model, name, index, h)) for h in FINITE_DIFFERENCES)
    return Backward(
        list(VOCABULARY),
        FOLLOWED,
        d.attention.dW_Q.shape[-1],
        loss,
        np.exp(log_P[:n]),
        np.eye(len(VOCABULARY))[list(TARGETS)],
        d.dlogits[:n],
        [
            Stage(label, formula, float(np.linalg.norm(array)), array[FOLLOWED])
            for label, (array, formula) in stages.items()
        ],
        {path: float(part) for path, part in path_of},
        gradient,
        [FiniteDifference(h, found, found - gradient) for h, found in differences],
        [_tensor_check(model, tensor, gradient) for tensor, gradient in grads.items()],
    )


def central_difference(
    model: TinyTransformer, name: str, index: Sequence[int], h: float = STEP
) -> float:
    """Return the slope of the loss between one parameter minus h and plus h."""
    parameter, index = model.parameters[name], tuple(index)
    value = parameter[index]
    losses = []
    try:
        for moved in (value + h, value - h):
            parameter[index] = moved
            losses.append(model.loss(TOKENS, TARGETS))
    finally:
        parameter[index] = value
    return (losses[0] - losses[1]) / (2 * h)


def _tensor_check(model: TinyTransformer, name: str, gradient: FloatArray) -> TensorCheck:
    differences = [central_difference(model, name, index) for index in np.ndindex(gradient.shape)]
    error = np.abs(np.reshape(differences, gradient.shape) - gradient)
    return TensorCheck(
        name,
        gradient.size,
        float(np.linalg.norm(gradient)),
        float(np.abs(gradient).max()),
        float(error.max()),
    )
