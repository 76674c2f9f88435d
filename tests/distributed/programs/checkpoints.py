"""Files that do not depend on how many ranks wrote them.  The first argument is a folder."""

import tracemalloc

import numpy as np
from common import COMM, RANK, RANKS, SMALL_BUCKETS, refused, run, same_bits, wait_for_all
from files import arrays, params, path, sharded, take

from fused_adamw import AdamW
from fused_adamw._io import checkpoint_convert, checkpoint_load, checkpoint_save, safetensors_stream
from fused_adamw.checkpoint import MismatchedCheckpointError, load_checkpoint, save_checkpoint
from fused_adamw.schedules import LinearWarmup
from fused_adamw.sharded import ShardedAdamW

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
        wait_for_all()
        comm.Free()
    if RANK == 0:
        expected = path("later").read_bytes()
        for ranks in range(1, RANKS + 1):
            assert path(f"fewer {ranks}").read_bytes() == expected
        single_process(options, name, dtype)
    wait_for_all()
    opt = sharded(first=9, dtype=dtype, **options)
    load_checkpoint(path("single"), opt)
    save_checkpoint(path("again"), opt)
    if RANK == 0:
        assert path("again").read_bytes() == path("later").read_bytes()
    wait_for_all()


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
        wait_for_all()
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
    wait_for_all()


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
        wait_for_all()


PROGRAMS = any_number_of_ranks, conversion, memory
run({f.__name__: f for f in PROGRAMS})
