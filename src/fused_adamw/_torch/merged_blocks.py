"""From a scale per element to one per block, for moments that other ranks have saved."""

from collections.abc import Iterator

import numpy as np

from .._core import decode_state, encode_state
from .._optim.arrays import Array
from .._optim.state_formats import FORMATS
from .state import is_scale

Arrays = dict[str, Array]  # by role: m, v, and with a scale per element or block m_scale, v_scale

BLOCKS_AT_A_TIME = 64
"""Decoding an element that shares its scale with no other takes the memory of a block."""


def merge_blocks(state_format: str, arrays: Arrays) -> Arrays:
    """Flat state with a scale per block, from the same with a scale per element.

    Blocks whose elements have equal scales keep their bits; the moments of the others are rounded
    to the nearest with new scales.
    """
    block, size = FORMATS[state_format].block, arrays["m"].size
    merged = {role: x[::block].copy() if is_scale(role) else x.copy() for role, x in arrays.items()}
    for blocks in _pieces(_mixed_blocks(arrays, block)):
        elements = (blocks[:, None] * block + np.arange(block)).ravel()
        elements = elements[elements < size]
        moments = _decode(state_format, {role: x[elements] for role, x in arrays.items()})
        where = {role: blocks if is_scale(role) else elements for role in merged}
        encoded = {role: x[where[role]] for role, x in merged.items()}
        encode_state(state_format, encoded, **moments)
        for role, x in encoded.items():
            merged[role][where[role]] = x
    return merged


def _mixed_blocks(arrays: Arrays, block: int) -> Array:
    """The numbers of the blocks whose elements do not all have the same scales, in order."""
    differs = np.zeros(arrays["m"].size, bool)
    for role, x in arrays.items():
        if is_scale(role):
            differs |= x != np.repeat(x[::block], block)[: x.size]
    return np.unique(np.flatnonzero(differs) // block)


def _pieces(blocks: Array) -> Iterator[Array]:
    for first in range(0, blocks.size, BLOCKS_AT_A_TIME):
        yield blocks[first : first + BLOCKS_AT_A_TIME]


def _decode(state_format: str, arrays: Arrays) -> Arrays:
    """The moments of whole blocks with a scale per element: each run of elements with the same
    scales is decoded as a block of its own."""
    block, size = FORMATS[state_format].block, arrays["m"].size
    position = np.arange(size)
    begins = position % block == 0
    for role, x in arrays.items():
        if is_scale(role):
            begins[1:] |= x[1:] != x[:-1]
    firsts = np.flatnonzero(begins)
    run = np.cumsum(begins) - 1
    target = run * block + position - firsts[run]
    padded = {}
    for role, x in arrays.items():
        if is_scale(role):
            padded[role] = x[firsts]
        else:
            padded[role] = np.zeros(firsts.size * block, x.dtype)
            padded[role][target] = x
    decoded = decode_state(state_format, padded, firsts.size * block)
    return {role: x[target] for role, x in decoded.items()}
