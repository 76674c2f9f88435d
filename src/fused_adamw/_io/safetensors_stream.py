"""Safetensors files, piece by piece: layout, header, and reading without a second copy.

A file is the length of its header (8 bytes), the header (JSON), and the data of the tensors in C
order. Length and data are little-endian, on every machine. The package ``safetensors`` writes and
reads whole dictionaries of arrays only, which takes memory of the size of the file. Format:
https://github.com/huggingface/safetensors
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._optim.arrays import Array, Shape, slabs
from .._optim.state_formats import storage_dtype

PIECE_BYTES = 1 << 20  # at most this much is copied, or sent, at once
PIECE_ELEMENTS = 1 << 16  # permuted or converted at once, with some 50 bytes each; whole blocks
MAX_HEADER_BYTES = 32 << 20  # 50,000 parameters; JSON can take 24 times its size in memory
IN_MEMORY_ORDER = sys.byteorder == "little"  # files are little-endian

TAGS = {  # dtype of a tensor -> its tag in the header
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES = {tag: name for name, tag in TAGS.items()}


class TensorInfo(NamedTuple):
    """A tensor in a file."""

    dtype: str  # a key of TAGS
    shape: Shape
    begin: int = 0  # byte of the data section

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype of an array with these bytes."""
        return storage_dtype(self.dtype)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.storage.itemsize


class RawHeader(NamedTuple):
    """A header whose JSON has been parsed but not checked."""

    content: Any
    data_start: int  # byte of the file
    data_bytes: int  # size of the data section


# ---------------------------------------------------------------------------- the header


def arrange(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Place the tensors in the order of safetensors, which aligns them: widest dtype first."""
    placed, begin = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].storage.itemsize, name)):
        placed[name] = tensors[name]._replace(begin=begin)
        begin += placed[name].nbytes
    return placed


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """All that precedes the data, padded to a multiple of 8 bytes.

    Raises ValueError for names that UTF-8 cannot encode, and for a header that no reader accepts.
    """
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, tensor in tensors.items():
        content[name] = {
            "dtype": TAGS[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (tensor.begin, tensor.begin + tensor.nbytes),
        }
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"names must be encodable as UTF-8: {error}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        extra = len(metadata.get("extra", "").encode())
        found = f"{len(text):,}, for {len(tensors):,} tensors: use fewer arrays, or shorter names"
        if extra > len(text) // 2:
            found = f"{len(text):,}, of which extra is {extra:,}: save large data with `arrays`"
        raise ValueError(
            f"names and extra must fit in a header of {MAX_HEADER_BYTES:,} bytes; got {found}"
        )
    return len(text).to_bytes(8, "little") + text


def read_header(file: FileIO) -> RawHeader:
    """Read the header and nothing else. Raises ValueError if it is invalid."""
    file_bytes = os.fstat(file.fileno()).st_size
    prefix = bytearray(8)
    read_bytes(file, 0, memoryview(prefix))
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > file_bytes - 8:
        raise ValueError(f"header length {header_bytes} exceeds the file size {file_bytes}")
    if header_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"header length {header_bytes:,} exceeds {MAX_HEADER_BYTES:,}")
    text = bytearray(header_bytes)
    read_bytes(file, 8, memoryview(text))
    start = 8 + header_bytes
    return RawHeader(json.loads(text), start, file_bytes - start)


def parse_tensors(header: RawHeader) -> dict[str, TensorInfo]:
    """The tensors, in the order of their data, which they have to fill without gaps."""
    tensors = {
        name: _parse_tensor(name, entry)
        for name, entry in header.content.items()
        if name != "__metadata__"
    }
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].nbytes)))
    end = 0
    for name, tensor in ordered.items():
        if tensor.begin != end:
            raise ValueError(f"tensor {name} overlaps another one or leaves a gap")
        end += tensor.nbytes
    if end != header.data_bytes:
        raise ValueError(f"{header.data_bytes} bytes of data; expected {end}")
    return ordered


def _parse_tensor(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError(f"tensor {name} has shape {shape} and data_offsets {offsets}")
    begin, end = offsets
    tensor = TensorInfo(_NAMES[entry["dtype"]], tuple(shape), begin)
    if end - begin != tensor.nbytes:
        raise ValueError(f"tensor {name} has {end - begin} bytes; expected {tensor.nbytes}")
    return tensor


# ---------------------------------------------------------------------------- the data


def swap_order(array: Array) -> None:
    """Turn elements from the byte order of memory into that of files, in place, or back."""
    if not IN_MEMORY_ORDER:
        array.byteswap(inplace=True)


def read_exactly(file: FileIO, position: int, target: Array) -> None:
    """Fill a flat, contiguous array from ``position`` on; EOFError where the file is shorter."""
    read_bytes(file, position, target.view(np.uint8).data)
    swap_order(target)


def read_bytes(file: FileIO, position: int, target: memoryview) -> None:
    """Fill ``target`` as it is in the file, from ``position`` on."""
    file.seek(position)
    while len(target):
        count = file.readinto(target)
        if not count:
            raise EOFError("the file ends too early")
        target = target[count:]


def read_pieces(file: FileIO, position: int, nbytes: int) -> Iterator[memoryview]:
    """The bytes of the file from ``position`` on, in one buffer that each piece overwrites."""
    buffer = memoryview(bytearray(min(nbytes, PIECE_BYTES)))
    for done in range(0, nbytes, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, nbytes - done)]
        read_bytes(file, position + done, piece)
        yield piece


def pieces(array: Array) -> Iterator[Array]:
    """The elements in C order, flat: views of a C-contiguous array, else copies of a piece."""
    array = array.view(storage_dtype(array.dtype.name))
    if array.flags.c_contiguous:
        array = array.reshape(-1)
    for slab in slabs(array, PIECE_BYTES // array.dtype.itemsize):
        yield np.ascontiguousarray(slab).reshape(-1)
