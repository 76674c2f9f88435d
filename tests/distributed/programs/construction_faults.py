"""A mistake on one rank, in the construction of an optimizer, raises the same error on all."""

import copy
import pickle

import numpy as np
from common import COMM, RANKS, SMALL_BUCKETS, refused, run
from mpi4py import MPI
from one_rank import made, on_last, on_rank, params

from fused_adamw.sharded import ShardedAdamW


def construction():
    def sharded(arrays, **options):
        return lambda: ShardedAdamW(arrays, bucket_bytes=SMALL_BUCKETS, **options)

    refused(ValueError, on_rank("lr must be"), sharded(params(), lr=on_last(-1.0, 0.1)))
    refused(
        ValueError,
        on_rank("params must contain at least one array"),
        sharded(on_last([], params())),
    )
    refused(
        TypeError,
        on_rank("params['a'] must be a NumPy array"),
        sharded(on_last({"a": 3}, params())),
    )
    refused(
        TypeError,
        on_rank("params['a'] must be a NumPy array"),
        sharded(on_last({**params(), "a": np.arange(3)}, params())),
    )
    refused(
        TypeError,
        "params['a'] must have dtype float32, bfloat16 or float16 with state_dtype='float32'",
        sharded({"a": np.ones(3)}, state_dtype="float32"),
    )
    refused(
        ValueError,
        on_rank("state_dtype must be None, 'float32', 'bfloat16' or '8bit'; got '4bit'"),
        sharded(params(), state_dtype=on_last("4bit", "8bit")),
    )
    refused(
        ValueError,
        "bucket_bytes must be 131,072 or more; got 5",
        lambda: ShardedAdamW(params(), bucket_bytes=5),
    )
    for wrong in ("x", True):
        refused(
            TypeError,
            f"bucket_bytes must be an integer; got {wrong!r}",
            lambda wrong=wrong: ShardedAdamW(params(), bucket_bytes=wrong),
        )


def construction_that_differs():
    if RANKS == 1:
        return

    def differs(expected, arrays=None, **options):
        def construct():
            ShardedAdamW(params() if arrays is None else arrays, **options)

        refused(ValueError, f"{expected} must be the same on all ranks", construct)

    differs("lr of group 0", lr=on_last(0.2, 0.1))
    differs("betas of group 0", betas=on_last((0.9, 0.99), (0.9, 0.999)))
    differs("lr of group 0", lr=on_last(lambda t: 0.1, 0.1))
    differs("amsgrad", amsgrad=on_last(True, False))
    differs("master_weights", master_weights=on_last(True, False))
    differs("state_dtype", state_dtype=on_last("float32", "bfloat16"))
    differs("seed", seed=on_last(3, 0), state_dtype="8bit")
    differs("state_dtype", state_dtype=on_last("8bit", None))
    differs("ema_decay", ema_decay=on_last(0.5, 0.75))
    differs("max_grad_norm", max_grad_norm=on_last(1.0, None))
    differs("bucket_bytes", bucket_bytes=on_last(1 << 20, 1 << 21))
    differs("decay_mask for params['a']", decay_mask=lambda name, array: on_last(True, False))
    differs("the name of parameter 0", on_last({"d": np.ones(3)}, params()))
    differs("the name of parameter 1", on_last({"a": np.ones(3)}, params()))
    many = [np.ones(3) for _ in range(99)]
    differs("the name of parameter 99", on_last(many, [*many, np.ones(3)]))
    differs("params['b']", on_last(params([(70_000,), (9, 7), ()]), params()))
    differs("params['a']", on_last(params(dtype=np.float64), params()))
    other = params()
    other["c"] += 1
    differs("the values of params['c'] (CRC-32)", on_last(other, params()))


def communicators():
    for other in (COMM.Get_group(), np.ones(3)):  # which == compares by element
        kind = f"got {type(other).__name__}"
        refused(TypeError, kind, lambda other=other: made(comm=other), start="comm must be")
    freed = COMM.Dup()
    freed.Free()
    expected = "comm must include this process and must not have been freed; got MPI.COMM_NULL"
    for absent in (MPI.COMM_NULL, freed):
        refused(ValueError, expected, lambda absent=absent: made(comm=absent))
    used = COMM.Dup()
    made(comm=used).comm.Free()
    made(comm=used).step(params())  # over another duplicate


def copies():
    opt = made()
    expected = "ShardedAdamW cannot be copied in part; use save_checkpoint"
    refused(TypeError, expected, lambda: copy.copy(opt))
    for copied in (copy.deepcopy, pickle.dumps):
        refused(TypeError, "ShardedAdamW cannot be copied", lambda copied=copied: copied(opt))


PROGRAMS = (construction, construction_that_differs, communicators, copies)
run({program.__name__: program for program in PROGRAMS})
