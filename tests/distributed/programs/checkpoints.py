"""Files that do not depend on how many ranks wrote them.  The first argument is a folder."""

import os
import signal
import sys
import tracemalloc
from errno import ENOSPC
from pathlib import Path

import numpy as np
from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, refused, run, same_bits

from fused_adamw import AdamW
from fused_adamw._io import checkpoint_convert, checkpoint_load, checkpoint_save, safetensors_stream
from fused_adamw.checkpoint import (
    CorruptCheckpointError,
    MismatchedCheckpointError,
    load_checkpoint,
    read_arrays,
    save_checkpoint,
)
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

MIXES = {  # of float16 parameters
    "float32 and master": {"state_dtype": "float32", "master_weights": True},
    "float32": {"state_dtype": "float32"},
    "bfloat16 and master": {"state_dtype": "bfloat16", "master_weights": True},
    "8bit": {"state_dtype": "8bit"},
    "8bit and master": {"state_dtype": "8bit", "master_weights": True},
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
    for name, options in MIXES.items():
        any_number_of_ranks_with(options, f"16 bits, {name}", np.float16)


def any_number_of_ranks_with(options, name, dtype=np.float32):
    opt = sharded(dtype=dtype, **options)
    take(opt, range(2), dtype)
    save_checkpoint(path(name), opt, extra={"step": 2})
    take(opt, range(2, 4), dtype)
    save_checkpoint(path("later"), opt)
    for ranks in range(1, RANKS + 1):
        comm = COMM.Split(0 if ranks > RANK else 1)
        if ranks > RANK:
            fewer = sharded(comm, first=9, dtype=dtype, **options)
            assert load_checkpoint(path(name), fewer) == {"step": 2}
            take(fewer, range(2, 4), dtype)
            assert same_bits(arrays(fewer), arrays(opt))
            save_checkpoint(path(f"fewer {ranks}"), fewer)
        comm.Free()
    if RANK == 0:
        expected = path("later").read_bytes()
        for ranks in range(1, RANKS + 1):
            assert path(f"fewer {ranks}").read_bytes() == expected
        single_process(options, name, dtype)
    opt = sharded(first=9, dtype=dtype, **options)
    COMM.Barrier()
    load_checkpoint(path("single"), opt)
    save_checkpoint(path("again"), opt)
    if RANK == 0:
        assert path("again").read_bytes() == path("later").read_bytes()
    COMM.Barrier()


def single_process(options, name, dtype):
    """``AdamW`` goes on from a file of several ranks, and they from its own."""
    single = AdamW(params(9, dtype), **options)
    assert load_checkpoint(path(name), single) == {"step": 2}
    take(single, range(2, 4), dtype)
    save_checkpoint(path("single"), single)
    other = AdamW(params(8, dtype), **options)
    load_checkpoint(path("later"), other)
    assert path("single").read_bytes() == path("later").read_bytes()
    assert same_bits(arrays(single), arrays(other))
    states = [opt.state_dict()["state"].values() for opt in (single, other)]
    for ours, theirs in zip(*states, strict=True):
        roles = [role for role, x in ours.items() if isinstance(x, np.ndarray)]
        assert same_bits([ours[role] for role in roles], [theirs[role] for role in roles])


def bad_files():
    opt = sharded()
    take(opt, range(1))
    save_checkpoint(path("good"), opt)
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
            "is corrupt",
            lambda: load_checkpoint(path("bad"), opt),
        )
        COMM.Barrier()
    refused(
        FileNotFoundError,
        "nowhere",
        lambda: load_checkpoint(path("nowhere"), opt),
    )
    assert same_bits(arrays(opt), before[0])
    assert opt.t == before[1]
    for other in ({"amsgrad": True}, {"state_dtype": "8bit"}, {"lr": LinearWarmup(0.1, 3)}):
        refused(
            MismatchedCheckpointError,
            "does not match this optimizer",
            lambda: load_checkpoint(path("good"), sharded(**other), convert=False),  # noqa: B023
            start=str(path("good")),  # as on all ranks, without the number of one
        )


def failed_saves():
    """Leave the file that was there, and nothing else."""
    opt = sharded()
    save_checkpoint(path("kept"), opt)
    before = path("kept").read_bytes()
    files = sorted(FOLDER.iterdir())
    COMM.Barrier()
    take(opt, range(1))
    extra = {"no": object()} if RANK == 0 else None
    refused(
        TypeError,
        "extra must be serializable",
        lambda: save_checkpoint(path("kept"), opt, extra=extra),
        start="rank 0: " if RANKS > 1 else "extra",
    )
    missing = FOLDER / "missing" / "file"
    refused(FileNotFoundError, "missing", lambda: save_checkpoint(missing, opt))
    fsync = os.fsync

    def full(descriptor):
        raise OSError(ENOSPC, "No space left on device")

    os.fsync = full
    refused(OSError, "No space", lambda: save_checkpoint(path("kept"), opt))
    os.fsync = fsync
    assert path("kept").read_bytes() == before
    assert sorted(FOLDER.iterdir()) == files


def saves_that_fail_while_data_is_sent():
    """No rank waits for one that has failed, whichever it is, and the next save works."""
    opt = sharded()
    take(opt, range(1))
    save_checkpoint(path("sent"), opt)
    before = path("sent").read_bytes()
    COMM.Barrier()
    for name, kind in (("pieces", "in memory"), ("transposed_positions", "transposed")):
        original = getattr(checkpoint_save, name)
        for failing in {(0,), (RANKS - 1,), (0, RANKS - 1), tuple(range(RANKS))}:
            for after in (0, 1, 3):
                calls = iter(range(after))

                def fail(*arguments, original=original, calls=calls, kind=kind):
                    if next(calls, None) is None:
                        raise MemoryError(f"no memory for what is {kind}")
                    return original(*arguments)

                if RANK in failing:
                    setattr(checkpoint_save, name, fail)
                refused(MemoryError, kind, lambda: save_checkpoint(path("sent"), opt))
                setattr(checkpoint_save, name, original)
                assert path("sent").read_bytes() == before
    COMM.Barrier()
    save_checkpoint(path("sent"), opt)
    assert path("sent").read_bytes() == before


def conversion():
    """Of a file, by any number of ranks, as by a single process; in small pieces."""
    checkpoint_convert.PIECE_ELEMENTS = 1 << 13
    options = {
        "float32": {},
        "bfloat16": {"state_dtype": "bfloat16"},
        "8bit": {"state_dtype": "8bit"},
    }
    convert_each(options, np.float32)
    convert_each(MIXES, np.float16)


def convert_each(options, dtype):
    for saved in options:
        if RANK == 0:
            single = AdamW(params(dtype=dtype), **options[saved])
            take(single, range(2), dtype)
            save_checkpoint(path(saved), single)
        COMM.Barrier()
        for loaded in (name for name in options if name != saved):
            for order in "CF":
                convert(path(saved), order, options[loaded], dtype)


def convert(file, order, options, dtype):
    """To parameters that are all in this memory order."""
    both = [
        {name: np.asarray(x, order=order) for name, x in params(9, dtype).items()} for _ in range(2)
    ]
    opt = ShardedAdamW(both[0], bucket_bytes=SMALL_BUCKETS, **options)
    refused(
        MismatchedCheckpointError,
        "pass convert=True",
        lambda: load_checkpoint(file, opt, convert=False),
    )
    load_checkpoint(file, opt, convert=True)
    save_checkpoint(path("converted"), opt)
    if RANK == 0:
        single = AdamW(both[1], **options)
        load_checkpoint(file, single, convert=True)
        save_checkpoint(path("expected"), single)
        assert path("converted").read_bytes() == path("expected").read_bytes()
    COMM.Barrier()


def arguments_of_rank_0():
    """Count; those of other ranks are not looked at."""
    opt = sharded()
    losses = {"losses": np.arange(5.0)} if RANK == 0 else {"no": object()}
    extra = {"n": 1} if RANK == 0 else {"no": object()}
    file = path("arrays") if RANK == 0 else "/no/such/folder"
    save_checkpoint(file, opt, extra=extra, arrays=losses)
    COMM.Barrier()
    assert load_checkpoint(path("arrays"), opt) == {"n": 1}
    assert read_arrays(path("arrays"))["losses"].tolist() == [0, 1, 2, 3, 4]
    refused(TypeError, "arrays", lambda: save_checkpoint(path("arrays"), opt, arrays=[1]))


def another_file_on_one_rank():
    opt = sharded()
    for step in range(2):
        save_checkpoint(path(f"step {step}"), opt)
        take(opt, [step])
    before = [x.copy() for x in arrays(opt)]
    last = RANK == RANKS - 1 > 0
    if RANKS > 1:
        file = path("step 1" if last else "step 0")
        refused(
            CorruptCheckpointError,
            "differs from the file read by rank 0",
            lambda: load_checkpoint(file, opt),
        )
        file = path("no" if last else "step 0")
        refused(FileNotFoundError, "No such file", lambda: load_checkpoint(file, opt))
    assert same_bits(arrays(opt), before)


def interrupted():
    """SIGINT on one rank takes effect when the file, or the state, is complete on all."""
    opt, other = sharded(), sharded(first=9)
    last = RANK == RANKS - 1
    for optimizer, name, function in (
        (opt, "_own_state", save_checkpoint),
        (other, "_gather_params", load_checkpoint),
    ):
        original, caught = getattr(optimizer, name), False

        def interrupting(*arguments, original=original):
            signal.raise_signal(signal.SIGINT)
            return original(*arguments)

        if last:
            setattr(optimizer, name, interrupting)
        try:
            function(path("interrupted"), optimizer)
        except KeyboardInterrupt:
            caught = True
        assert caught == last
        COMM.Barrier()
    assert same_bits(arrays(other), arrays(opt))


def memory():
    """Piece by piece: not a tenth of the file in any memory."""
    checkpoint_save.PIECE_BYTES = safetensors_stream.PIECE_BYTES = 1 << 14
    for module in (checkpoint_save, checkpoint_load):
        module.PIECE_ELEMENTS = 1 << 12
    arrays = {
        "a": np.ones(1 << 20, np.float32),
        "b": np.ones((500, 500), np.float32),
        "c": np.ones((500, 501), np.float32, order="F"),
    }
    opt = ShardedAdamW(arrays, bucket_bytes=SMALL_BUCKETS)
    opt.step({name: np.ones_like(x) for name, x in arrays.items()})
    for call in (save_checkpoint, load_checkpoint):
        tracemalloc.start()
        call(path("large"), opt)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 19, peak
        COMM.Barrier()


PROGRAMS = (
    any_number_of_ranks,
    bad_files,
    failed_saves,
    saves_that_fail_while_data_is_sent,
    conversion,
    arguments_of_rank_0,
    another_file_on_one_rank,
    interrupted,
    memory,
)
run({f.__name__: f for f in PROGRAMS})
