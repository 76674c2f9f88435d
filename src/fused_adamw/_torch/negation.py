"""Whether the memory of a tensor has its values with the other sign, asked in C.

DLPack does not tell. ``Tensor.is_neg`` does, but releases the GIL to look at one bit, and so takes
as long as all else that a step looks at; it asks this of each parameter and gradient.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

_FUNCTION = "_ZN2at6native6is_negERKNS_6TensorE"  # at::native::is_neg(const at::Tensor &)
OFFSET = object.__basicsize__
"""Of the at::Tensor in an object of Python: struct THPVariable of PyTorch begins with it."""


def address_of_is_neg() -> int:
    """Where PyTorch's function is, or 0 if this version has no such function, or other objects."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library))[_FUNCTION]
    except (OSError, AttributeError):
        return 0
    plain, negated = torch.ones(2), torch._neg_view(torch.ones(2))
    examples = [(plain, False), (negated, True), (torch.nn.Parameter(plain), False)]
    if not all(_is_where_expected(tensor) for tensor, _ in examples):
        return 0
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_bool
    if any(function(id(tensor) + OFFSET) != expected for tensor, expected in examples):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _is_where_expected(tensor: Tensor) -> bool:
    has_space = type(tensor).__basicsize__ >= OFFSET + ctypes.sizeof(ctypes.c_void_p)
    return has_space and ctypes.c_void_p.from_address(id(tensor) + OFFSET).value == tensor._cdata
