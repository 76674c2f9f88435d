"""The model's parameters, and the bytes of AdamW's state for each way of storing it."""

from collections.abc import Sequence
from dataclasses import dataclass

from .._core import BLOCK
from .._optim.mixes import Mix, all_mixes
from ..tiny.model import TinyTransformer

TITLES = {  # in the order of docs/tutorials/2-transformer-by-hand.md
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
class StateBytes:
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
    storage: list[StateBytes]


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
    return Parameters(tensors, total, 2 * total, [_bytes_of(mix, shapes) for mix in all_mixes()])


def _bytes_of(mix: Mix, shapes: Sequence[tuple[int, ...]]) -> StateBytes:
    per_parameter = mix.traffic([(BLOCK,)]).state_bytes
    total = mix.traffic(shapes).total_state
    return StateBytes(mix.param_dtype, mix.format, mix.master_weights, per_parameter, total)
