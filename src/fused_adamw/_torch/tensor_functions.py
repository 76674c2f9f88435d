"""PyTorch's C functions that describe a tensor: where its memory is, and what it means; and the one
that tells autograd of an update.

A step looks at five tensors for each parameter. DLPack's exchange API takes two to three times as
long to describe one as these functions do, and does not tell whether the memory has the values with
the other sign. ``Tensor.is_neg`` does, but releases the GIL to look at one bit. To count the update
of a parameter, ``torch._C._increment_version`` takes as long as the kernel does for 64 elements.
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
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "data": "aoti_torch_get_data_ptr",
    # Of C++, with a const at::Tensor &: at::native::is_neg and is_inference, and
    # torch::autograd::impl::bump_version.
    "is_negated": "_ZN2at6native6is_negERKNS_6TensorE",
    "is_inference": "_ZN2at6native12is_inferenceERKNS_6TensorE",
    "bump_version": "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
}
_INLINE = 5  # dimensions whose sizes and strides a c10::TensorImpl has in itself
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


def exchange_arguments() -> dict[str, Any]:
    """The arguments of ``DLPackExchange`` for this version of PyTorch."""
    place = shape_at()
    return {
        "functions": addresses(),
        "offset": OFFSET,
        "shape_at": place,
        "version_at": version_at(place),
        "examples": EXAMPLES,
    }


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
    if not _counts_versions(functions["bump_version"]):
        return {}
    if not all(_tells_apart(functions[name], *pair) for name, pair in _pairs().items()):
        return {}
    return {
        name: ctypes.cast(function, ctypes.c_void_p).value or 0
        for name, function in functions.items()
    }


def shape_at() -> int:
    """Where the sizes are in a c10::TensorImpl; 0 where this version of PyTorch has other members
    after them than ``_has_shape_at`` and ``_kind`` expect."""
    shape = (2, 3, 5, 7, 11)
    words = _words(torch.empty(shape, device="cpu"), 0, 16)
    places = [i for i in range(1, len(words) - 4) if words[i - 1 : i + 5] == (len(shape), *shape)]
    found = 8 * places[0] if len(places) == 1 else 0
    if not found or not all(_has_shape_at(found, x) for x in _strided()):
        return 0
    plain = torch.ones(3, 4, device="cpu")
    others = (torch._neg_view(plain), plain.to_sparse(), plain.to("meta"))
    kinds = {_kind(found, x) for x in (*EXAMPLES, *others)}
    return found if len(kinds) == len(EXAMPLES) + len(others) else 0


def version_at(end: int) -> int:
    """Where a c10::TensorImpl has the address of its version, which those made in inference mode
    lack; 0 where this is not known, or not before ``end``."""
    tensor, other = torch.ones(3, device="cpu"), torch.ones(3, device="cpu")
    tensors = (tensor, tensor.detach(), other, _made_in_inference_mode())
    words = zip(*(_words(x, 0, end // 8) for x in tensors), strict=True)
    places = [
        i
        for i, (own, same, different, none) in enumerate(words)
        if own == same != different and own and different and not none
    ]
    return 8 * places[0] if len(places) == 1 else 0


def _has_shape_at(place: int, tensor: Tensor) -> bool:
    """Whether the number of dimensions, sizes, strides, the offset and the number of elements are
    where they are expected."""
    ndim = tensor.dim()
    words = _words(tensor, place - 8, 1 + 2 * _INLINE + 2)
    return (
        words[0] == ndim
        and words[1 : 1 + ndim] == tensor.shape
        and words[1 + _INLINE : 1 + _INLINE + ndim] == tensor.stride()
        and words[-2:] == (tensor.storage_offset(), tensor.numel())
    )


def _kind(place: int, tensor: Tensor) -> tuple[int, ...]:
    """The dtype, the device and flags; the layout and the sign."""
    return _words(tensor, place + 8 * (2 * _INLINE + 2), 2)


def _words(tensor: Tensor, place: int, count: int) -> tuple[int, ...]:
    """Of its c10::TensorImpl."""
    return tuple((ctypes.c_int64 * count).from_address(tensor._cdata + place))


def _path_of_library() -> Path:
    folder = Path(torch.__file__).parent / "lib"
    return next((folder / x for x in _LIBRARIES if (folder / x).exists()), folder)


def _strided() -> Iterator[Tensor]:
    matrix = torch.ones(3, 4, device="cpu")
    yield from (matrix, matrix.t()[1:], matrix[:, 1:3], torch._neg_view(matrix))
    yield from (matrix[0, 0], torch.empty(0, 2, device="cpu"), torch.nn.Parameter(matrix))
    yield _made_in_inference_mode()


def _made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3, device="cpu")


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
    right: bool = (
        _answer(functions["dim"], tensor, ctypes.c_int64) == tensor.dim()
        and _lengths(functions["sizes"], tensor) == tensor.shape
        and _lengths(functions["strides"], tensor) == tensor.stride()
        and (_answer(functions["data"], tensor, ctypes.c_void_p) or 0) == tensor.data_ptr()
        and _has_property(functions["is_negated"], tensor) == tensor.is_neg()
        and _has_property(functions["is_inference"], tensor) == tensor.is_inference()
    )
    return right


def _has_property(function: Any, tensor: Tensor) -> bool:
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_bool
    found: bool = function(id(tensor) + OFFSET)
    return found


def _counts_versions(function: Any) -> bool:
    tensor = torch.ones(3, device="cpu")
    before = tensor._version
    function.argtypes, function.restype = [ctypes.c_void_p], None
    function(id(tensor) + OFFSET)
    counted: bool = tensor._version == before + 1
    return counted


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
