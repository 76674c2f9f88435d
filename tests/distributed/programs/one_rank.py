"""What the programs share in which one rank, the last, makes a mistake."""

import numpy as np
from common import RANK, RANKS, SMALL_BUCKETS, draw

from fused_adamw.sharded import ShardedAdamW

SHAPES = [(70_000,), (7, 9), ()]
LAST = RANKS - 1  # the rank on which things go wrong


def params(shapes=SHAPES, dtype=np.float32):
    return dict(zip("abc", draw(shapes, dtype), strict=True))


def made(**options):
    return ShardedAdamW(params(), bucket_bytes=SMALL_BUCKETS, **options)


def on_last(wrong, right):
    return wrong if RANK == LAST else right


def on_rank(text):
    return f"rank {LAST}: {text}" if RANKS > 1 else text
