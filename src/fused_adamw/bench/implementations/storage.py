"""What low-precision state costs a step: memory, and bytes moved per parameter.

A step reads a gradient, and reads and writes a parameter and its two moments.
"""

from math import prod
from typing import TypedDict

from ..._core import BLOCK
from ..._optim.state_formats import StateOptions, state_layout, storage_dtype


def _moment_bytes(state_format: str) -> float:
    """The bytes of both moments, a parameter."""
    layout = state_layout("float32", (BLOCK,), StateOptions(state_format, ()))
    sizes = (storage_dtype(name).itemsize * prod(shape) for name, shape in layout.values())
    return sum(sizes) / BLOCK


class Costs(TypedDict, total=False):
    """Some fields of ``Implementation``."""

    bytes_per_parameter: float
    extra_arrays: float
    peak_arrays: float
    min_parameters: int
    too_small: str
    max_parameters: float
    dtypes: tuple[str, ...]


FLOAT32_ONLY: Costs = {"dtypes": ("float32",)}

MOMENTS_8BIT: Costs = {
    "bytes_per_parameter": 4 + 2 * (4 + _moment_bytes("8bit")),
    "extra_arrays": 0.5,
    "peak_arrays": 4.5,
    **FLOAT32_ONLY,
}
MOMENTS_BFLOAT16: Costs = {
    "bytes_per_parameter": 4 + 2 * (4 + _moment_bytes("bfloat16")),
    "extra_arrays": 1,
    "peak_arrays": 5,
    **FLOAT32_ONLY,
}
EVERYTHING_BFLOAT16: Costs = {
    "bytes_per_parameter": 2 + 2 * (2 + _moment_bytes("bfloat16")),
    "extra_arrays": 2,
    "peak_arrays": 6.5,
    **FLOAT32_ONLY,
}
THEIR_MOMENTS_8BIT: Costs = {  # bitsandbytes and torchao
    **MOMENTS_8BIT,
    "min_parameters": 2**16,
    "too_small": "keeps tensors of fewer than 4,096 elements in float32",
    "max_parameters": 2**26,
    "peak_arrays": 10,
}
