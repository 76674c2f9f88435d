"""Ranks in different operations, at different steps, or in several threads: an error on all.

The first argument is a folder.
"""

import sys
import threading
from itertools import permutations
from pathlib import Path

from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, refused, run, same_bits

from fused_adamw.checkpoint import load_checkpoint, save_checkpoint
from fused_adamw.sharded import ShardedAdamW

PATH = Path(sys.argv.pop(1)) / "checkpoint"
SHAPES = [(70_000,), (7, 9)]
LAST = RANKS - 1
SAME = "must be the same on all ranks; got"


def made():
    return ShardedAdamW(draw(SHAPES), bucket_bytes=SMALL_BUCKETS, ema_decay=0.5)


OPERATIONS = {
    "step": lambda opt: opt.step(draw(SHAPES)),
    "gather_ema": lambda opt: opt.gather_ema(),
    "gather_master": lambda opt: opt.gather_master(),
    "save_checkpoint": lambda opt: save_checkpoint(PATH, opt),
    "load_checkpoint": lambda opt: load_checkpoint(PATH, opt),
    "ShardedAdamW": lambda opt: made(),
}


def state(opt):
    return [x.copy() for x in opt.param_groups[0]["params"]], opt.t


def unchanged(opt, before):
    return same_bits(opt.param_groups[0]["params"], before[0]) and opt.t == before[1]


def different_operations():
    if RANKS == 1:
        return
    opt = made()
    save_checkpoint(PATH, opt)
    opt.step(draw(SHAPES))
    file, before = PATH.read_bytes(), state(opt)
    for ours, theirs in permutations(OPERATIONS, 2):
        operation = OPERATIONS[theirs if RANK == LAST else ours]
        expected = f"the operation {SAME} {ours!r} on rank 0 and {theirs!r} on rank {LAST}"
        refused(ValueError, expected, lambda: operation(opt))  # noqa: B023
        assert unchanged(opt, before)
        assert PATH.read_bytes() == file
    for operation in OPERATIONS.values():  # all of them work all the same
        operation(opt)


def different_steps():
    if RANKS == 1:
        return
    opt = made()
    opt.step(draw(SHAPES))
    if RANK == LAST:
        opt._bound.t = 7
    before = state(opt)
    for name in ("step", "gather_ema", "save_checkpoint"):
        expected = f"t {SAME} 1 on rank 0 and 7 on rank {LAST}"
        refused(ValueError, expected, lambda: OPERATIONS[name](opt))  # noqa: B023
        assert unchanged(opt, before)
    load_checkpoint(PATH, opt)  # is how they get to the same step
    opt.step(draw(SHAPES))


def different_optimizers():
    if RANKS == 1:
        return
    one, other = made(), made()
    opt = other if RANK == LAST else one
    for name in ("step", "gather_ema", "save_checkpoint", "load_checkpoint"):
        expected = f"the optimizer (by order of construction) {SAME}"
        refused(ValueError, expected, lambda: OPERATIONS[name](opt))  # noqa: B023
    one.step(draw(SHAPES))
    other.step(draw(SHAPES))


def exit_in_a_schedule():
    """Even what is no Exception leaves no rank waiting."""
    opt = made()

    def ends(t):
        raise SystemExit(3)

    opt.param_groups[0]["lr"] = ends if RANK == LAST else 0.1
    raised = None
    try:
        opt.step(draw(SHAPES))
    except (SystemExit, RuntimeError) as error:
        raised = repr(error)
    others = f"RuntimeError('rank {LAST}: SystemExit: 3')"
    assert raised == ("SystemExit(3)" if RANK == LAST else others)
    opt.param_groups[0]["lr"] = 0.1
    opt.step(draw(SHAPES))


def within():
    """One in an operation of the same thread is refused as well, with one error."""
    opt = made()
    save_checkpoint(PATH, opt)
    for name, operation in OPERATIONS.items():

        def begins(t, operation=operation):
            operation(opt)

        before = state(opt)
        opt.param_groups[0]["lr"] = begins if RANK == LAST else 0.1
        refused(RuntimeError, f"got {name} during step", lambda: opt.step(draw(SHAPES)))
        assert unchanged(opt, before)
        opt.param_groups[0]["lr"] = 0.1
        opt.step(draw(SHAPES))


def threads():
    """While one is in a step, another one is refused; all ranks learn of it, once."""
    opt, other = made(), made()
    save_checkpoint(PATH, opt)
    start_gather = opt._bucket_comm.start_gather
    for name, operation in OPERATIONS.items():
        for used in (opt, other):  # the communicator is the same
            caught = []

            def call(operation=operation, used=used, caught=caught):
                try:
                    operation(used)
                except RuntimeError as error:
                    caught.append(str(error))

            def gather(*arguments, call=call, caught=caught):
                if RANK == LAST and not caught:
                    thread = threading.Thread(target=call)
                    thread.start()
                    thread.join()
                start_gather(*arguments)

            opt._bucket_comm.start_gather = gather
            t = opt.t
            opt.step(draw(SHAPES))
            assert opt.t == t + 1
            expected = f"one within another; got {name} during step"
            if RANK == LAST:
                (message,) = caught
                assert expected in message
            opt._bucket_comm.start_gather = start_gather
            refused(RuntimeError, expected, lambda: opt.step(draw(SHAPES)))
            opt.step(draw(SHAPES))
            assert opt.t == t + 2


def unusable_options():
    """On one rank: no file is replaced by one that nothing can load."""
    opt = ShardedAdamW(draw(SHAPES), bucket_bytes=SMALL_BUCKETS)
    save_checkpoint(PATH, opt)
    COMM.Barrier()
    before = PATH.read_bytes()
    if RANK == LAST:
        opt.ema_decay = 0.5
    message = "ema_decay must be None, as at construction; got 0.5"
    refused(ValueError, message, lambda: save_checkpoint(PATH, opt))
    COMM.Barrier()
    assert PATH.read_bytes() == before
    opt.ema_decay = None
    save_checkpoint(PATH, opt)
    COMM.Barrier()


PROGRAMS = (
    unusable_options,
    different_operations,
    different_steps,
    different_optimizers,
    exit_in_a_schedule,
    within,
    threads,
)
run({f.__name__: f for f in PROGRAMS})
COMM.Barrier()
