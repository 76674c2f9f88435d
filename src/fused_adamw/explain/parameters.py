"""The model's parameters, and the bytes of AdamW's state for each way of storing it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from .._core import BLOCK
from .._optim.state_formats import (
    ELEMENT_TYPES,
    FORMATS,
    STATE_DTYPES,
    StateOptions,
    is_compatible,
    state_layout,
    storage_dtype,
)
from ..tiny.model import TinyTransformer

TITLES = {  # in the order of the notebook
    "E_token": "Token embeddings",
    "E_pos": "Position embeddings",
    "W_Q": "W_Q ({heads} heads)",
    "W_K": "W_K ({heads} heads)",
    "W_V": "W_V ({heads} heads)",
    "W_O": "W_O",
    "W_1": "FFN W_1",
    "b_1": "FFN b_1",
    "W_2": "FFN W_2",
    "b_2": "FFN b_2",
    "gamma": "Layer norm γ",
    "beta": "Layer norm β",
    "W_lm": "LM head W_lm",
}


@dataclass(frozen=True)
class Tensor:
    """One of the model's parameters."""

    title: str
    name: str  # in `TinyTransformer.parameters`
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Storage:
    """A way of storing parameters and state.

    Attributes:
        params: dtype of the parameters.
        moments: name of the state format of m and v.
        master_weights: whether 16-bit parameters have master weights.
        bytes_per_parameter: of state, where blocks are full.
        model_bytes: of state, for the tiny transformer.
    """

    params: str
    moments: str
    master_weights: bool
    bytes_per_parameter: float
    model_bytes: int


@dataclass(frozen=True)
class Parameters:
    """The section."""

    tensors: list[Tensor]
    total: int
    state_values: int  # m and v
    storage: list[Storage]


def explain_parameters() -> Parameters:
    """Compute the section."""
    model = TinyTransformer()
    found = model.parameters
    tensors = [
        Tensor(title.format(heads=model.n_heads), name, found[name].shape, found[name].size)
        for name, title in TITLES.items()
    ]
    shapes = [tensor.shape for tensor in tensors]
    total = sum(tensor.count for tensor in tensors)
    return Parameters(tensors, total, 2 * total, list(storage_of(shapes)))


def storage_of(shapes: Iterable[tuple[int, ...]]) -> Iterator[Storage]:
    """Yield each combination of the tables of element types and state formats that `AdamW` has.

    Args:
        shapes: of the parameters.
    """
    for params, master, moments in product(ELEMENT_TYPES, (False, True), FORMATS):
        row = ELEMENT_TYPES[params]
        if moments not in STATE_DTYPES and moments != row.compute:  # only PyTorch's class has it
            continue
        if is_compatible(params, moments) and (row.master or not master):
            options = StateOptions(moments, ("master",) if master else ())
            per_block = _state_bytes(params, (BLOCK,), options)
            total = sum(_state_bytes(params, shape, options) for shape in shapes)
            yield Storage(params, moments, master, per_block / BLOCK, total)


def _state_bytes(param_dtype: str, shape: tuple[int, ...], options: StateOptions) -> int:
    layout = state_layout(param_dtype, shape, options)
    return sum(storage_dtype(name).itemsize * prod(size) for name, size in layout.values())
