"""An optimizer of one process and a sharded one, side by side."""

import numpy as np
from common import RANK, SMALL_BUCKETS, mean, same_bits

from fused_adamw import AdamW
from fused_adamw._core import BLOCK
from fused_adamw.sharded import ShardedAdamW

UNEVEN = [(100_001,), (7, 9), (), (0, 3), (200, 201), (16_384,), (5,)]
EVEN = [(1 << 17,)]
TINY = [(3,), (2,)]  # not enough for more than two ranks
SMALL = [(100 + i,) for i in range(400)]  # several packed buckets


def pair(params, sharded_options=None, **options):
    """The same optimizer twice, over two copies: whole, and sharded in small buckets."""
    copies = [p.copy("K") for p in params]
    buckets = {"bucket_bytes": np.int64(SMALL_BUCKETS)}  # as arithmetic of NumPy gives it
    sharded = ShardedAdamW(copies, **buckets, **options, **(sharded_options or {}))
    return params, AdamW(params, **options), copies, sharded


def same_state(single, sharded):
    """Whether each slice of this rank is that part of the state of the single process."""
    for tensor, state in enumerate(single._state):
        for shard in sharded._shards(tensor):
            if shard.rank != RANK:
                continue
            for role in sharded._state_entries(sharded._arrays[tensor]):
                whole = single._own_state(single._shards(tensor)[0], role)
                first = shard.begin // BLOCK if role.endswith("_scale") else shard.begin
                own = sharded._own_state(shard, role)
                if own.tobytes() != whole[first : first + own.size].tobytes():
                    return False
        assert list(sharded._state_entries(sharded._arrays[tensor])) == list(state.arrays)
    gathered = sharded.gather_ema(), sharded.gather_master()
    for whole, found in zip((single.ema, single.master), gathered, strict=True):
        if whole is None or found is None:
            same = whole is found
        else:
            same = same_bits(leaves(whole), leaves(found))
        if not same:
            return False
    return True


def leaves(tree):
    if isinstance(tree, np.ndarray):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for item in items for leaf in leaves(item)]


def step_both(pair, gradients, scale=1.0):
    params, single, copies, sharded = pair
    norm = single.step(mean(gradients), scale)
    assert sharded.step(gradients[RANK], scale) == norm
    assert sharded.t == single.t
    assert same_bits(params, copies)
    assert same_state(single, sharded)
