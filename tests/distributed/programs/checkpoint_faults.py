"""Saves and loads that fail, or that differ between ranks.  The first argument is a folder."""

import os
import signal
from errno import ENOSPC, ESTALE

import numpy as np
from common import RANK, RANKS, refused, run, same_bits, wait_for_all
from files import FOLDER, arrays, path, sharded, take

from fused_adamw._io import checkpoint_load, checkpoint_save
from fused_adamw.checkpoint import (
    CorruptCheckpointError,
    MismatchedCheckpointError,
    load_checkpoint,
    read_arrays,
    save_checkpoint,
)
from fused_adamw.schedules import LinearWarmup


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
        wait_for_all()
        refused(
            CorruptCheckpointError,
            "is corrupt",
            lambda: load_checkpoint(path("bad"), opt),
        )
        wait_for_all()
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
    wait_for_all()
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
    wait_for_all()
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
    wait_for_all()
    save_checkpoint(path("sent"), opt)
    assert path("sent").read_bytes() == before


def arguments_of_rank_0():
    """Count; those of other ranks are not looked at."""
    opt = sharded()
    losses = {"losses": np.arange(5.0)} if RANK == 0 else {"no": object()}
    extra = {"n": 1} if RANK == 0 else {"no": object()}
    file = path("arrays") if RANK == 0 else "/no/such/folder"
    save_checkpoint(file, opt, extra=extra, arrays=losses)
    wait_for_all()
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


def copies_on_other_ranks():
    """Are verified too: the header alone does not tell that one is damaged."""
    opt = sharded()
    take(opt, range(1))
    save_checkpoint(path("first"), opt)
    before = [x.copy() for x in arrays(opt)]
    own = path(f"copy of rank {RANK}")
    content = bytearray(path("first").read_bytes())
    own.write_bytes(content)
    wait_for_all()
    load_checkpoint(own, opt)
    if RANK == RANKS - 1:
        content[-1] ^= 1
        own.write_bytes(content)
    refused(CorruptCheckpointError, "checksum mismatch", lambda: load_checkpoint(own, opt))
    assert same_bits(arrays(opt), before)


def files_that_are_gone_once_open():
    """As a network file system loses them, on one rank."""
    opt, original = sharded(), checkpoint_load._identity
    save_checkpoint(path("gone"), opt)
    wait_for_all()

    def gone(file):
        raise OSError(ESTALE, "Stale file handle")

    for rank in (0, RANKS - 1):
        checkpoint_load._identity = gone if rank == RANK else original
        refused(OSError, "Stale file handle", lambda: load_checkpoint(path("gone"), opt))
    checkpoint_load._identity = original
    load_checkpoint(path("gone"), opt)


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
        wait_for_all()
    assert same_bits(arrays(other), arrays(opt))


PROGRAMS = (
    *(bad_files, failed_saves, saves_that_fail_while_data_is_sent),
    *(arguments_of_rank_0, another_file_on_one_rank, copies_on_other_ranks, interrupted),
    files_that_are_gone_once_open,
)
run({f.__name__: f for f in PROGRAMS})
