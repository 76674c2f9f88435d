"""Exceptions of the user's, whose text or pickle raises, on one rank: no rank waits for it."""

import numpy as np
from common import RANK, RANKS, refused, run

from fused_adamw._distributed.agreement import raise_on_all_ranks
from fused_adamw._distributed.mpi import private_duplicate, world
from fused_adamw.sharded import ShardedAdamW

LAST = RANKS - 1  # the rank on which things go wrong


class NoTextError(Exception):
    def __str__(self):
        raise KeyError("no text")


class NoTextOfValueError(NoTextError, ValueError):
    pass


class StopsError(Exception):
    def __str__(self):
        raise SystemExit(3)


class Unsendable:
    def __repr__(self):
        raise KeyError("no text")

    def __reduce__(self):
        raise TypeError("no pickle")


def expected(text):
    return f"rank {LAST}: {text}" if RANKS > 1 else text


def in_a_schedule():
    """The step before and the one after are taken."""
    for error, kind, name in (
        (NoTextError(), RuntimeError, "NoTextError"),
        (NoTextOfValueError(), ValueError, "NoTextOfValueError"),
        (StopsError(), RuntimeError, "StopsError"),
        (ValueError(Unsendable()), ValueError, "ValueError"),
        (OSError(2, "no file", Unsendable()), RuntimeError, "FileNotFoundError"),
    ):
        opt = ShardedAdamW([np.ones(9, np.float32)])
        opt.step([np.ones(9, np.float32)])

        def schedule(t, error=error):
            raise error

        opt.param_groups[0]["lr"] = schedule if RANK == LAST else 0.1
        step = [np.ones(9, np.float32)]
        refused(kind, expected(f"{name}: <no message>"), lambda opt=opt, step=step: opt.step(step))
        opt.param_groups[0]["lr"] = 0.1
        opt.step(step)
        assert opt.t == 2


def in_what_is_compared():
    duplicate = private_duplicate(world())

    def compare():
        with raise_on_all_ranks(duplicate, {"value": Unsendable() if RANK == LAST else 1}):
            pass

    refused(RuntimeError, expected("KeyError: 'no text'"), compare)


run({program.__name__: program for program in (in_a_schedule, in_what_is_compared)})
