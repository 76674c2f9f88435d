"""Conversion of the state of one tensor between formats and memory orders, rounded to the nearest.

The kernels encode and decode.
"""

from math import prod

from .._core import decode_state, encode_state
from .arrays import Array, MemoryOrder, Shape, order_of, ravel_like
from .master_weights import rest_of, start_of
from .state_formats import AS_COMPUTED, FORMATS, TensorState, has_scales


def convert_range(source: TensorState, target: TensorState, params: Array) -> None:
    """Write the state of a range of a tensor's elements in a different format.

    Moments are decoded and rounded to the nearest; those of the same format keep their bits.
    Arrays that start as the parameters are made from them where the source lacks them.

    Args:
        source, target: flat arrays for a range of elements that begins at a multiple of the blocks
            of both formats. The arrays of ``target`` are written.
        params: the parameters of the range, flat; bfloat16 may be given as uint16.
    """
    for role, array in target.arrays.items():
        if role in AS_COMPUTED or source.format == target.format:
            saved = source.arrays.get(role)
            if saved is not None and saved.dtype != array.dtype:
                saved = rest_of(saved, params)
            array[...] = start_of(array.dtype, params) if saved is None else saved
    if source.format != target.format:
        encode_state(target.format, target.arrays, **_moments_of(source, params.size))


def _moments_of(state: TensorState, size: int) -> dict[str, Array]:
    """Flat moments, and what is stored like v, as floats: the arrays themselves where these are."""
    if FORMATS[state.format].m != "float32":
        return dict(decode_state(state.format, state.arrays, size))
    return {role: x for role, x in state.arrays.items() if role not in AS_COMPUTED}


def convert_state(
    source: TensorState, order: MemoryOrder | None, target: TensorState, param: Array
) -> None:
    """Write the state of a whole tensor in a different format or memory order.

    Args:
        source: arrays as in a state dict.
        order: the memory order of flat arrays; None where they have the parameter's shape.
        target: the state to write.
        param: the parameter, dense.
    """
    own = order_of(param)
    flat = {role: ravel_like(array, own) for role, array in target.arrays.items()}
    source = _in_order(source, order, own, param.shape)
    convert_range(source, TensorState(target.format, flat), ravel_like(param, own))


def _in_order(
    state: TensorState, order: MemoryOrder | None, wanted: MemoryOrder, shape: Shape
) -> TensorState:
    """The state with flat arrays in the wanted memory order; a format with scales is decoded."""
    if order == wanted:
        return state
    if order is None:
        flat = {role: x.ravel(order=wanted) for role, x in state.arrays.items()}
        return TensorState(state.format, flat)
    state = without_blocks(state, prod(shape))
    return TensorState(
        state.format,
        {r: x.reshape(shape, order=order).ravel(order=wanted) for r, x in state.arrays.items()},
    )


def without_blocks(state: TensorState, size: int) -> TensorState:
    """The same state with one item for each of its elements; a format with scales is decoded."""
    if not has_scales(state.format):
        return state
    kept = {role: x for role, x in state.arrays.items() if role in AS_COMPUTED}
    moments = decode_state(state.format, state.arrays, size)
    return TensorState("float32", moments | kept)  # what moments are decoded to
