"""PyTorch's C functions that describe a tensor: where its memory is, and what it means.

A step looks at five tensors for each parameter. DLPack's exchange API takes two to three times as
long to describe one as these functions do, and does not tell whether the memory has the values with
the other sign. ``Tensor.is_neg`` does, but releases the GIL to look at one bit.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OFFSET = object.__basicsize__
"""Of the at::Tensor in an object of Python: struct THPVariable of PyTorch begins with it."""

EXAMPLES = tuple(
    torch.empty(0, dtype=dtype, device="cpu")
    for dtype in (
        *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
        *(torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    )
)
"""One of each dtype that parameters, gradients, counters and state can have."""

_NAMES = {
    "layout": "aoti_torch_get_layout",
    "device": "aoti_torch_get_device_type",
    "dtype": "aoti_torch_get_dtype",
    "dim": "aoti_torch_get_dim",
    "numel": "aoti_torch_get_numel",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "data": "aoti_torch_get_data_ptr",
    "is_negated": "_ZN2at6native6is_negERKNS_6TensorE",  # at::native::is_neg(const at::Tensor &)
}
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


def addresses() -> dict[str, int]:
    """Of the functions, by name; empty where this version of PyTorch lacks one, or has other
    objects or other answers than these functions are known to give."""
    try:
        library = ctypes.CDLL(str(_path_of_library()))
        functions = {name: library[symbol] for name, symbol in _NAMES.items()}
    except (OSError, AttributeError):
        return {}
    if not all(_is_where_expected(x) and _is_right(functions, x) for x in _strided()):
        return {}
    if not all(_tells_apart(functions[name], *pair) for name, pair in _pairs().items()):
        return {}
    return {
        name: ctypes.cast(function, ctypes.c_void_p).value or 0
        for name, function in functions.items()
    }


def _path_of_library() -> Path:
    folder = Path(torch.__file__).parent / "lib"
    return next((folder / x for x in _LIBRARIES if (folder / x).exists()), folder)


def _strided() -> Iterator[Tensor]:
    matrix = torch.ones(3, 4, device="cpu")
    yield from (matrix, matrix.t()[1:], matrix[:, 1:3], torch._neg_view(matrix))
    yield from (matrix[0, 0], torch.empty(0, 2, device="cpu"), torch.nn.Parameter(matrix))


def _pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Tensors of different layouts, devices and dtypes."""
    matrix = torch.ones(3, 4, device="cpu")
    return {
        "layout": (matrix, matrix.to_sparse()),
        "device": (matrix, matrix.to("meta")),
        "dtype": (matrix, matrix.half()),
    }


def _is_where_expected(tensor: Tensor) -> bool:
    has_space = type(tensor).__basicsize__ >= OFFSET + ctypes.sizeof(ctypes.c_void_p)
    return has_space and ctypes.c_void_p.from_address(id(tensor) + OFFSET).value == tensor._cdata


def _is_right(functions: dict[str, Any], tensor: Tensor) -> bool:
    """Whether what the functions say of a strided tensor in host memory is true."""
    is_negated = functions["is_negated"]
    is_negated.argtypes, is_negated.restype = [ctypes.c_void_p], ctypes.c_bool
    right: bool = (
        _answer(functions["dim"], tensor, ctypes.c_int64) == tensor.dim()
        and _answer(functions["numel"], tensor, ctypes.c_int64) == tensor.numel()
        and _lengths(functions["sizes"], tensor) == tensor.shape
        and _lengths(functions["strides"], tensor) == tensor.stride()
        and (_answer(functions["data"], tensor, ctypes.c_void_p) or 0) == tensor.data_ptr()
        and is_negated(id(tensor) + OFFSET) == tensor.is_neg()
    )
    return right


def _tells_apart(function: Any, a: Tensor, b: Tensor) -> bool:
    numbers = [_answer(function, tensor, ctypes.c_int32) for tensor in (a, a.clone(), b)]
    differs: bool = numbers[0] == numbers[1] != numbers[2]
    return differs


def _lengths(function: Any, tensor: Tensor) -> tuple[int, ...] | None:
    address = _answer(function, tensor, ctypes.c_void_p)
    kind = ctypes.c_int64 * tensor.dim()
    return None if address is None else tuple(kind.from_address(address))


def _answer(function: Any, tensor: Tensor, kind: Any) -> Any:
    """The number or address that a function writes."""
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int
    answer = kind()
    failed = function(id(tensor) + OFFSET, ctypes.addressof(answer))
    return None if failed else answer.value
