"""What low-precision state costs a step: memory, and bytes moved per parameter."""

from typing import TypedDict

from ..._core import BLOCK
from ..._optim.mixes import Mix


def _bytes_moved(dtype: str, state_format: str) -> float:
    """The bytes that a step reads and writes, a parameter."""
    return Mix(dtype, state_format, master_weights=False).traffic([(BLOCK,)]).bytes_moved


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
    "bytes_per_parameter": _bytes_moved("float32", "8bit"),
    "extra_arrays": 0.5,
    "peak_arrays": 4.5,
    **FLOAT32_ONLY,
}
MOMENTS_BFLOAT16: Costs = {
    "bytes_per_parameter": _bytes_moved("float32", "bfloat16"),
    "extra_arrays": 1,
    "peak_arrays": 5,
    **FLOAT32_ONLY,
}
EVERYTHING_BFLOAT16: Costs = {
    "bytes_per_parameter": _bytes_moved("bfloat16", "bfloat16"),
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
