"""The memory-bandwidth bound for arrays of any widths: a C loop over the same streams as a step."""

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .._core import BLOCK
from .harness import Step
from .implementations.bandwidth_bound import compile_library
from .workloads import Array

WIDTHS = {1, 2, 4, 8}  # bytes of an integer


class Stream(NamedTuple):
    """An array that a step reads, or reads and writes; of any dtype.

    ``bytes_per_block``: those that belong to a block of BLOCK elements of the tensor.
    """

    array: Array
    bytes_per_block: int
    is_written: bool

    @property
    def width(self) -> int | None:
        """Bytes of an item; None where elements have no items of their own."""
        width, rest = divmod(self.bytes_per_block, BLOCK)
        return width if width in WIDTHS and not rest else None


TEMPLATE = """
#include <stddef.h>
#include <stdint.h>

unsigned loop(unsigned char *const *s, const ptrdiff_t *nbytes, ptrdiff_t size, int num_threads,
              unsigned char zero)
{{
    const uint64_t zeros = 0x0101010101010101u * zero;
    unsigned total = 0;
#pragma omp parallel for num_threads(num_threads) schedule(static) reduction(| : total)
    for (ptrdiff_t begin = 0; begin < size; begin += {block}) {{
        const ptrdiff_t n = size - begin < {block} ? size - begin : {block};
        uint64_t sum = 0;
        {declarations}
        for (ptrdiff_t i = 0; i < n; i++) {{
            {elements}
        }}
        {blocks}
        total |= sum != 0;
    }}
    return total;
}}
"""


def loop_source(streams: Sequence[Stream]) -> str:
    """The loop: it advances in all streams together, block by block.

    With zero = 0 the arrays keep their values, which the compiler cannot know.
    """
    declarations, elements, blocks = [], [], []
    for k, stream in enumerate(streams):
        if stream.width is None:
            first = f"begin / {BLOCK} * {stream.bytes_per_block}"
            action = "s[{0}][j] ^= zero" if stream.is_written else "sum |= s[{0}][j]"
            end = f"j < {first} + {stream.bytes_per_block} && j < nbytes[{k}]"
            blocks.append(f"for (ptrdiff_t j = {first}; {end}; j++) {action.format(k)};")
            continue
        type_ = f"uint{8 * stream.width}_t"
        declarations.append(f"{type_} *restrict a{k} = ({type_} *)s[{k}] + begin;")
        if stream.is_written:
            elements.append(f"a{k}[i] ^= ({type_})zeros;")
        else:
            declarations.append(f"{type_} sum{k} = 0;")
            elements.append(f"sum{k} |= a{k}[i];")
            blocks.append(f"sum |= sum{k};")
    texts = ("\n".join(lines) for lines in (declarations, elements, blocks))
    return TEMPLATE.format(
        block=BLOCK, **dict(zip(("declarations", "elements", "blocks"), texts, strict=True))
    )


def bind_streams(size: int, streams: Sequence[Stream], threads: int, zero: int = 0) -> Step:
    """The call of the loop for the arrays of one tensor of ``size`` elements.

    ``zero``: every byte that is written is combined with it by exclusive or.
    """
    pointers = (ctypes.c_void_p * len(streams))(*(s.array.ctypes.data for s in streams))
    nbytes = (ctypes.c_ssize_t * len(streams))(*(s.array.nbytes for s in streams))
    loop = compile_library(loop_source(streams)).loop
    return partial(loop, pointers, nbytes, ctypes.c_ssize_t(size), threads, ctypes.c_ubyte(zero))
