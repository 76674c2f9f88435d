"""Files that do not depend on how many ranks wrote them.  The first argument is a folder."""

import os
import sys
import tracemalloc
from errno import ENOSPC
from pathlib import Path

import numpy as np
from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, refused, run, same_bits

from fused_adamw import AdamW, checkpoint
from fused_adamw._io import sharded_checkpoint
from fused_adamw.checkpoint import CorruptCheckpointError, MismatchedCheckpointError
from fused_adamw.schedules import LinearWarmup
from fused_adamw.sharded import ShardedAdamW

FOLDER = Path(sys.argv.pop(1))
SHAPES = [(100_001,), (7, 9), (), (0, 3), (200, 301), (16_384,), (300, 400)]
OPTIONS = {
    "plain": {},
    "all": {"amsgrad": True, "max_grad_norm": 1.0, "maximize": True, "lr": LinearWarmup(0.1, 3)},
    "8bit": {"state_dtype": "8bit", "seed": 5},
    "bfloat16": {"state_dtype": "bfloat16", "amsgrad": True},
}


def params(seed=0, dtype=np.float32):
    arrays = [x.astype(dtype) for x in draw(SHAPES, np.float64, seed)]
    arrays[-1] = np.asarray(arrays[-1], order="F")
    return {f"tensor {i}": array for i, array in enumerate(arrays)}


def gradients(step, dtype=np.float32):
    """The same on all ranks, and so their own mean, exactly."""
    rng = np.random.default_rng(step)
    return {
        name: np.array(rng.integers(-999, 1000, x.shape) / 64, dtype)
        for name, x in params().items()
    }


def sharded(comm=COMM, first=0, dtype=np.float32, **options):
    return ShardedAdamW(params(first, dtype), comm=comm, bucket_bytes=SMALL_BUCKETS, **options)


def take(opt, steps, dtype=np.float32):
    for step in steps:
        opt.step(gradients(step, dtype))


def arrays(opt):
    return list(opt.param_groups[0]["params"].values())


def path(name):
    return FOLDER / f"{name}.safetensors"


def any_number_of_ranks():
    for name, options in OPTIONS.items():
        any_number_of_ranks_with(options, name)
    any_number_of_ranks_with({}, "float64", np.float64)


def any_number_of_ranks_with(options, name, dtype=np.float32):
    opt = sharded(dtype=dtype, **options)
    take(opt, range(2), dtype)
    sharded_checkpoint.save_checkpoint(path(name), opt, extra={"step": 2})
    take(opt, range(2, 4), dtype)
    sharded_checkpoint.save_checkpoint(path("later"), opt)
    for ranks in range(1, RANKS + 1):
        comm = COMM.Split(0 if ranks > RANK else 1)
        if ranks > RANK:
            fewer = sharded(comm, first=9, dtype=dtype, **options)
            assert sharded_checkpoint.load_checkpoint(path(name), fewer) == {"step": 2}
            take(fewer, range(2, 4), dtype)
            assert same_bits(arrays(fewer), arrays(opt))
            sharded_checkpoint.save_checkpoint(path(f"fewer {ranks}"), fewer)
        comm.Free()
    if RANK == 0:
        expected = path("later").read_bytes()
        for ranks in range(1, RANKS + 1):
            assert path(f"fewer {ranks}").read_bytes() == expected
        single_process(options, name, dtype)
    opt = sharded(first=9, dtype=dtype, **options)
    COMM.Barrier()
    sharded_checkpoint.load_checkpoint(path("single"), opt)
    sharded_checkpoint.save_checkpoint(path("again"), opt)
    if RANK == 0:
        assert path("again").read_bytes() == path("later").read_bytes()
    COMM.Barrier()


def single_process(options, name, dtype):
    """``AdamW`` goes on from a file of several ranks, and they from its own."""
    single = AdamW(params(9, dtype), **options)
    assert checkpoint.load_checkpoint(path(name), single) == {"step": 2}
    take(single, range(2, 4), dtype)
    checkpoint.save_checkpoint(path("single"), single)
    other = AdamW(params(8, dtype), **options)
    checkpoint.load_checkpoint(path("later"), other)
    assert same_bits(arrays(single), arrays(other))
    states = [opt.state_dict() for opt in (single, other)]
    for role in single.state_layout()["tensor 0"]:
        assert same_bits(*([x[role] for x in s["state"].values()] for s in states))


def bad_files():
    opt = sharded()
    take(opt, range(1))
    sharded_checkpoint.save_checkpoint(path("good"), opt)
    good = path("good").read_bytes()
    before = [x.copy() for x in arrays(opt)], opt.t
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for bad in (bytes(flipped), good[:-1], good[:100], b"", b"\xff" * 100, good + b"x"):
        if RANK == 0:
            path("bad").write_bytes(bad)
        COMM.Barrier()
        refused(
            CorruptCheckpointError,
            "is damaged",
            lambda: sharded_checkpoint.load_checkpoint(path("bad"), opt),
        )
        COMM.Barrier()
    refused(
        FileNotFoundError,
        "nowhere",
        lambda: sharded_checkpoint.load_checkpoint(path("nowhere"), opt),
    )
    assert same_bits(arrays(opt), before[0])
    assert opt.t == before[1]
    for other in ({"amsgrad": True}, {"state_dtype": "8bit"}, {"lr": LinearWarmup(0.1, 3)}):
        refused(
            MismatchedCheckpointError,
            "does not fit",
            lambda: sharded_checkpoint.load_checkpoint(path("good"), sharded(**other)),  # noqa: B023
        )


def failed_saves():
    """Leave the file that was there, and nothing else."""
    opt = sharded()
    sharded_checkpoint.save_checkpoint(path("kept"), opt)
    before = path("kept").read_bytes()
    files = sorted(FOLDER.iterdir())
    COMM.Barrier()
    take(opt, range(1))
    extra = {"no": object()} if RANK == 0 else None
    refused(
        TypeError,
        "extra cannot be written",
        lambda: sharded_checkpoint.save_checkpoint(path("kept"), opt, extra=extra),
    )
    missing = FOLDER / "missing" / "file"
    refused(FileNotFoundError, "missing", lambda: sharded_checkpoint.save_checkpoint(missing, opt))
    fsync = os.fsync

    def full(descriptor):
        raise OSError(ENOSPC, "No space left on device")

    os.fsync = full
    refused(OSError, "No space", lambda: sharded_checkpoint.save_checkpoint(path("kept"), opt))
    os.fsync = fsync
    assert path("kept").read_bytes() == before
    assert sorted(FOLDER.iterdir()) == files


def memory():
    """Piece by piece: not a tenth of the file in any memory."""
    sharded_checkpoint.PIECE = 1 << 14
    arrays = {"a": np.ones(1 << 20, np.float32), "b": np.ones((500, 500), np.float32)}
    opt = ShardedAdamW(arrays, bucket_bytes=SMALL_BUCKETS)
    opt.step({name: np.ones_like(x) for name, x in arrays.items()})
    for call in (sharded_checkpoint.save_checkpoint, sharded_checkpoint.load_checkpoint):
        tracemalloc.start()
        call(path("large"), opt)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 19, peak
        COMM.Barrier()


run({f.__name__: f for f in (any_number_of_ranks, bad_files, failed_saves, memory)})
