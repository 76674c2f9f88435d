"""Comparing the whole state of parameters that was divided over ranks in different ways."""

import numpy as np
import torch

BLOCK = 256


def plain_name(name):
    return name.replace("_shard_scale", "_scale")


def per_element(scale, size):
    """In a state dict of DTensors, one per part of a block; these are of one size."""
    scale = scale.reshape(-1)
    in_blocks = scale.numel() == -(-size // BLOCK)
    return scale.repeat_interleave(BLOCK if in_blocks else size // scale.numel())[:size]


def by_plain_names(state):
    """The arrays of one parameter as others can be compared with them: flat, master weights of 16
    bits as bytes, scales per element."""
    size = max(x.numel() for name, x in state.items() if name.startswith("exp_avg"))
    return {
        plain_name(name): per_element(x, size)
        if name.endswith("_scale")
        else x.reshape(-1).view(torch.int8)
        for name, x in state.items()
    }


def assert_same(found, expected):
    """Equal bits of one parameter and its state."""
    found, expected = by_plain_names(found), by_plain_names(expected)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert torch.equal(x, expected[name]), name


def decoded(state):
    """Per element: m by the root, the bits of the root, and how much a unit of each is."""
    flat = by_plain_names(state)
    m, v = flat["exp_avg_code"].numpy(), flat["exp_avg_sq_code"].numpy().view(np.uint8)
    m_scale, v_scale = flat["exp_avg_scale"].numpy(), flat["exp_avg_sq_scale"].numpy()
    v_scale = v_scale.view(np.uint32).astype(np.int64)
    shift = v_scale % 32
    bits = np.where(v == 0, 0, v_scale - shift + ((v.astype(np.int64) - 1) << shift))
    return m_scale * m, bits, m_scale, 1 << shift


def assert_within(units, found, expected):
    ratio, bits, *_ = decoded(expected)
    new_ratio, new_bits, ratio_unit, bits_unit = decoded(found)
    assert np.any(ratio != 0)
    assert np.all(np.abs(new_bits - bits) <= units * bits_unit)
    assert np.all(np.abs(new_ratio - ratio) <= units * ratio_unit * 1.001)
