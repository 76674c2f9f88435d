"""How the scales of a DTensor are divided between ranks, and what becomes of parts of a block."""

from typing import NamedTuple

import numpy as np
import pytest
from twin_state import decode_8bit

torch = pytest.importorskip("torch", minversion="2.10")

from sharded_training import draw  # noqa: E402
from torch.distributed.tensor import Replicate, Shard  # noqa: E402
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402

from fused_adamw import AdamW as ForNumPy  # noqa: E402
from fused_adamw._torch.dtensors import grid_of  # noqa: E402
from fused_adamw._torch.merged_blocks import merge_blocks  # noqa: E402

BLOCK = 256


class Mesh(NamedTuple):
    shape: tuple


class Spec(NamedTuple):
    shape: tuple
    stride: tuple
    placements: tuple
    mesh: Mesh


def spec_of(shape, ranks, *placements):
    strides = torch.empty(shape, device="meta").stride()
    return Spec(shape, strides, placements, Mesh(ranks))


@pytest.mark.parametrize(
    ("spec", "shape", "cell"),
    [
        (spec_of((8, 512), (3,), Shard(0)), (8, 2), 256),
        (spec_of((7, 2, 384), (3,), Shard(0)), (7, 3), 256),
        (spec_of((6, 200), (4,), Shard(0)), (6, 25), 8),
        (spec_of((300,), (2,), Shard(0)), (300, 1), 1),
        (spec_of((4, 768), (3,), Shard(1)), (4, 3), 256),
        (spec_of((4, 768), (2,), Shard(1)), (4, 6), 128),
        (spec_of((4, 768), (2,), _StridedShard(1, split_factor=2)), (4, 768, 1), 1),
        (spec_of((4, 10), (3,), Shard(1)), (4, 5), 2),
        (spec_of((4, 9), (2,), Shard(1)), (4, 9), 1),
        (spec_of((4, 6, 64), (2, 2), Shard(1), Shard(1)), (4, 6, 1), 64),
        (spec_of((4, 768), (2, 2), Shard(0), Shard(1)), (4, 6), 128),
        (spec_of((7, 512), (2,), Replicate()), (7, 2), 256),
        (spec_of((), (2,), Replicate()), (1,), 1),
        (spec_of((0, 3), (2,), Shard(0)), (0, 3), 1),
    ],
    ids=str,
)
def test_cells(spec, shape, cell):
    grid = grid_of(spec, BLOCK)
    assert (grid.shape, grid.cell) == (shape, cell)
    placed = [placement for placement in spec.placements if placement.is_shard()]
    elements = torch.arange(int(np.prod(spec.shape))).view(spec.shape)
    cells = torch.arange(int(np.prod(shape))).view(shape)
    if len(placed) == 1:  # a cell's elements are on the rank that has the cell
        (dim,) = (placement.dim for placement in placed)
        ranks = spec.mesh.shape[spec.placements.index(placed[0])]
        parts = (x.chunk(ranks, dim) for x in (elements, cells))
        for own, its_cells in zip(*parts, strict=True):
            of_elements = own.reshape(-1) // cell
            assert torch.equal(of_elements, its_cells.reshape(-1).repeat_interleave(cell))
            assert grid.local_shape(own.shape) == its_cells.shape


def stored(size, seed):
    """Moments of 8 bits after steps, in NumPy."""
    opt = ForNumPy([draw((size,), seed).numpy()], state_dtype="8bit")
    sizes = np.linspace(1e-6, 1, size, dtype=np.float32)
    for step in range(3):
        opt.step([draw((size,), 10 * seed + step).numpy() * sizes])
    arrays = opt.state_dict()["state"]["0"]
    return {name: arrays[name] for name in ("m", "v", "m_scale", "v_scale")}


def with_scale_per_element(arrays):
    size = arrays["m"].size
    return {
        name: np.repeat(x, BLOCK)[:size] if name.endswith("_scale") else x
        for name, x in arrays.items()
    }


def test_whole_blocks_keep_their_bits():
    arrays = stored(700, 1)
    merged = merge_blocks("8bit", with_scale_per_element(arrays))
    for name, x in arrays.items():
        np.testing.assert_array_equal(merged[name], x)


@pytest.mark.parametrize("first", [1, 100, 255])
def test_parts_of_blocks_get_a_common_scale(first):
    arrays = stored(70 * BLOCK + 10, 2)
    part = {name: x[first:] for name, x in with_scale_per_element(arrays).items()}
    merged = merge_blocks("8bit", part)
    m, v = (x[first:] for x in decode_8bit(arrays))
    new_m, new_v = decode_8bit(merged)
    v_scale = np.repeat(merged["v_scale"], BLOCK)[: v.size].astype(np.int64)
    moved = np.abs(np.sqrt(new_v).view(np.int32) - np.sqrt(v).view(np.int32).astype(np.int64))
    assert np.all(moved <= 1 << v_scale % 32)
    unit = np.repeat(merged["m_scale"], BLOCK)[: m.size]
    (ratio, new_ratio), above_0 = (m, new_m) / np.sqrt([v, new_v], dtype=np.float64), v > 0
    assert np.all(np.abs(new_ratio - ratio)[above_0] <= 0.501 * unit[above_0])
    assert np.any(new_m != m)
