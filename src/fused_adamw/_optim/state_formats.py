"""Optimizer state in fewer bits: what it consists of, and how it reads as float32.

Each tensor that is not plain float32 or float64 throughout has a ``Packed`` state: flat arrays, in
the order in which the parameters lie in memory. The kernels (``csrc/compressed.inc``) read and
write it; this module allocates it, and decodes and encodes it for whoever wants to look.

**bfloat16**: ``m`` and ``v`` as the upper 16 bits of their float32, in uint16.

**8bit**: blocks of 256 elements, the last one shorter, with two numbers of 4 bytes each:
2 bytes an element and 8 bytes a block.

- ``v`` (uint8) holds the root s = sqrt(v). Code 0 is 0, and a code c above is the float32 with the
  bits ``base + ((c - 1) << shift)``. ``v_scale`` (uint32) of the block is ``base | shift``: base is
  a multiple of 2^shift, and 5 <= shift <= 20.
- ``m`` (int8) is in proportion to that root: m = (m_scale c) s for a code c, with the float32
  ``m_scale`` of the block.

Both ranges are those of the block's own elements, so codes lie the closer the less these differ:
roots within one octave are told apart by less than a hundredth, and a block with an outlier 10,000
times the rest still has 16 codes an octave. A root that is not 0 never becomes 0; more than 31
octaves below the largest it is raised to there. An element whose v is NaN or infinite begins anew,
with both moments 0; a parameter that is NaN by then stays it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._core import BLOCK

COARSEST = 20  # the largest shift
INFINITE = 0x7F800000  # its bits as a float32
SMALLEST = np.float32(2.0**-100)  # where all |m| / s of a block are less, its m becomes 0

STATE_DTYPES = ("bfloat16", "8bit")
FLOATS_16 = ("float16", "bfloat16")

CODES: dict[str, tuple[Any, Any]] = {  # of m and of v
    "float32": (np.float32, np.float32),
    "bfloat16": (np.uint16, np.uint16),
    "8bit": (np.int8, np.uint8),
}


@dataclass
class Packed:
    """The state of one tensor, flat arrays all."""

    state_dtype: str  # "float32", "bfloat16" or "8bit"
    m: Any
    v: Any
    v_max: Any = None  # with AMSGrad
    m_scale: Any = None  # with "8bit", one a block
    v_scale: Any = None
    master: Any = None  # the parameters in float32

    def arrays(self) -> Iterator[tuple[str, Any]]:
        """What there is, by name."""
        return ((name, x) for name, x in vars(self).items() if isinstance(x, np.ndarray))


def require_state_dtype(state_dtype: str | None, amsgrad: bool = False) -> None:
    """Raise ValueError for what there is none of."""
    if state_dtype not in (None, *STATE_DTYPES):
        expected = ", ".join(map(repr, STATE_DTYPES))
        raise ValueError(f"state_dtype is {state_dtype!r}; expected None, {expected}")
    if state_dtype == "8bit" and amsgrad:
        raise ValueError("amsgrad is True; with state_dtype '8bit' there is none")


def packed_dtype(dtype: str, state_dtype: str | None) -> str | None:
    """What the moments of parameters of a dtype are packed in; None where they are arrays like the
    parameters. If nothing is asked for it is the parameters' own; float16 has not the range for
    v."""
    if dtype not in FLOATS_16 and (state_dtype is None or dtype != "float32"):
        return None
    if state_dtype is not None:
        return state_dtype
    return "float32" if dtype == "float16" else dtype


def layout(state_dtype: str, size: int, amsgrad: bool, master: bool) -> dict[str, tuple[Any, int]]:
    """The dtype and the length of each array of a state of ``size`` elements, by name."""
    of_m, of_v = CODES[state_dtype]
    arrays: dict[str, tuple[Any, int]] = {"m": (of_m, size), "v": (of_v, size)}
    if amsgrad:
        arrays["v_max"] = (of_v, size)
    if state_dtype == "8bit":
        blocks = -(-size // BLOCK)
        arrays |= {"m_scale": (np.float32, blocks), "v_scale": (np.uint32, blocks)}
    if master:
        arrays["master"] = (np.float32, size)
    return arrays


def packed_state(
    array: Any, state_dtype: str | None, amsgrad: bool, master_weights: bool
) -> Packed | None:
    """A state of zeros for one tensor; None where it takes arrays like its own."""
    array = np.asarray(array)
    chosen = packed_dtype(array.dtype.name, state_dtype)
    if chosen is None:
        return None
    has_master = master_weights and array.dtype.name in FLOATS_16
    arrays = layout(chosen, array.size, amsgrad, has_master)
    packed = Packed(chosen, **{name: np.zeros(n, dtype) for name, (dtype, n) in arrays.items()})
    if packed.master is not None:
        packed.master[:] = array.ravel(order="K")
    return packed


def order_of(array: Any) -> str:
    """In which the elements lie in memory: "C", also where it is both, or "F"."""
    return "C" if np.asarray(array).flags.c_contiguous else "F"


def like(array: Any, flat: Any) -> Any:
    """Flat elements in memory order, in the shape of the array that has this order."""
    return flat.reshape(np.shape(array), order=order_of(array))


# ---------------------------------------------------------------------------- conversion


def converted(
    where: str, entry: Mapping[str, Any], array: Any, packed: Packed | None
) -> dict[str, Any]:
    """The entry of a state dict, kept as in ``packed``, or as ``array`` is where that is None.
    What is kept in that way already keeps its bits."""
    array = np.asarray(array)
    step = {name: x for name, x in entry.items() if name == "step"}
    was, moments, master = unpacked(where, entry, array)
    if packed is None:
        return step | {role: x.astype(array.dtype) for role, x in moments.items()}
    if (packed.v_max is None) != ("v_max" not in moments):
        raise ValueError(f"{where} has {', '.join(moments)}: it is of another amsgrad")
    order = order_of(array)
    if was is not None and (was.state_dtype, entry["order"]) == (packed.state_dtype, order):
        new = replace(was)
    else:
        new = replace(packed, **{name: np.zeros_like(x) for name, x in packed.arrays()})
        encode(new, **{role: x.ravel(order=order) for role, x in moments.items()})
    new.master = None
    if packed.master is not None:
        new.master = (array if master is None else master).ravel(order=order).astype(np.float32)
    return step | {"order": order} | dict(new.arrays())


def unpacked(where: str, entry: Mapping[str, Any], array: Any) -> tuple[Any, dict[str, Any], Any]:
    """The packed state in an entry of a state dict, its moments and its master weights, in the
    shape of ``array``. None for what it has not."""
    arrays = {name: x for name, x in entry.items() if name not in ("step", "order")}
    found = {name: (getattr(x, "dtype", None), np.shape(x)) for name, x in arrays.items()}
    options = "v_max" in arrays, "master" in arrays
    order = entry.get("order")
    if order is None:
        for dtype in (np.float32, np.float64):
            roles = ("m", "v", "v_max") if options[0] else ("m", "v")
            if found == {role: (np.dtype(dtype), array.shape) for role in roles}:
                return None, arrays, None
    for state_dtype in CODES if order in ("C", "F") else ():
        expected = layout(state_dtype, array.size, *options).items()
        if found == {name: (np.dtype(dtype), (n,)) for name, (dtype, n) in expected}:
            packed = Packed(state_dtype, **arrays)
            flat = {**decoded(packed), "master": packed.master}
            shaped = {
                name: None if x is None else x.reshape(array.shape, order=order)
                for name, x in flat.items()
            }
            return packed, shaped, shaped.pop("master")
    raise ValueError(f"{where} is no state of shape {array.shape}: order {order!r}, {found}")


# ---------------------------------------------------------------------------- decoding


def decoded(packed: Packed) -> dict[str, Any]:
    """{"m": ..., "v": ..., and "v_max" where there is one}: flat, in float32."""
    if packed.state_dtype == "8bit":
        return decoded_8bit(packed)
    roles = {"m": packed.m, "v": packed.v, "v_max": packed.v_max}
    read = np.copy if packed.state_dtype == "float32" else from_bfloat16
    return {name: read(x) for name, x in roles.items() if x is not None}


def from_bfloat16(codes: Any) -> Any:
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def decoded_8bit(packed: Packed) -> dict[str, Any]:
    code = packed.v.astype(np.uint32)
    v_scale, m_scale = by_element(packed.v_scale, code.size), by_element(packed.m_scale, code.size)
    shift, base = v_scale & np.uint32(31), v_scale & ~np.uint32(31)
    bits = np.where(code == 0, 0, base + ((code - np.uint32(1)) << shift)).astype(np.uint32)
    root = bits.view(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        return {"m": m_scale * packed.m.astype(np.float32) * root, "v": root * root}


def by_element(scales: Any, size: int) -> Any:
    return np.repeat(scales, BLOCK)[:size]


# ---------------------------------------------------------------------------- encoding


def encode(packed: Packed, m: Any, v: Any, v_max: Any = None) -> None:
    """Write flat moments into a state, each rounded to the nearest."""
    m, v = (np.asarray(x, np.float32) for x in (m, v))
    if packed.state_dtype == "8bit":
        for block in range(packed.v_scale.size):
            encode_block(packed, block, m, v)
        return
    for role, values in (("m", m), ("v", v), ("v_max", v_max)):
        if values is not None:
            getattr(packed, role)[:] = (
                values if packed.state_dtype == "float32" else to_bfloat16(values, role != "m")
            )


def to_bfloat16(values: Any, keep_positive: bool = False) -> Any:
    """``keep_positive``: what is above 0 does not become 0."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    nearest = np.where(np.isnan(values), bits | np.uint32(0x400000), nearest)
    least = keep_positive & (bits > 0) & (bits < 0x10000)
    return (nearest >> np.uint32(16)).astype(np.uint16) | least.astype(np.uint16)


def encode_block(packed: Packed, block: int, m: Any, v: Any) -> None:
    part = slice(block * BLOCK, (block + 1) * BLOCK)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        bits = np.sqrt(v[part]).view(np.uint32).astype(np.int64)
        counts = (bits > 0) & (bits < INFINITE)
        base, shift = span(bits[counts])
        step = (np.maximum(bits - base, 0) + (1 << shift >> 1)) >> shift
        packed.v[part] = np.where(counts, step + 1, 0)
        packed.v_scale[block] = base | shift
        root = (base + (step << shift)).astype(np.uint32).view(np.float32)
        ratio = np.where(counts & np.isfinite(m[part]), m[part] / root, np.float32(0))
        largest = np.abs(ratio).max(initial=np.float32(0))
        largest = largest if largest >= SMALLEST else np.float32(0)
        parts = np.float32(127) / largest if largest > 0 else np.float32(0)
        at = ratio * parts + np.float32(0.5) + np.float32(128)
        packed.m[part] = np.floor(np.minimum(at, np.float32(255))) - 128
        packed.m_scale[block] = largest / np.float32(127)


def span(bits: Any) -> tuple[int, int]:
    """(base, shift) for roots with these bits, of which there are none in a block of zeros."""
    if not bits.size:
        return 0, COARSEST
    low, high = int(bits.min()), int(bits.max())
    shift = 5
    while shift < COARSEST and -(-high >> shift) - (low >> shift) > 253:  # rounded up, and down
        shift += 1
    return max(low >> shift, -(-high >> shift) - 253, 0) << shift, shift
