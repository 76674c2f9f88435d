"""Exceptions of the user's, whose text or pickle raises, on one rank: no rank waits for it."""

import numpy as np
from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, refused, run, same_bits

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


class Failing(int):
    """The number 1, whose conversion fails at its n-th use, on one rank."""

    def __new__(cls, n):
        number = super().__new__(cls, 1)
        number.left = n if RANK == LAST else -1
        return number

    def __float__(self):
        self.left -= 1
        if self.left == 0:
            raise OverflowError("no number")
        return 1.0

    __repr__ = float.__repr__.__get__(1.0)


def in_numbers():
    """Whichever use of a number fails, all ranks have taken the step, or none has."""
    for name in ("grad_scale", "lr", "eps", "weight_decay", "max_grad_norm"):
        n, taken = 0, False
        while not taken:
            n += 1
            shapes = [(70_000,), (40_000,)]
            params = draw(shapes)
            opt = ShardedAdamW(params, bucket_bytes=SMALL_BUCKETS, ema_decay=0.5)
            opt.step(draw(shapes))
            before = [p.copy() for p in params]
            number, scale = Failing(n), {}
            if name == "grad_scale":
                scale = {"grad_scale": number}
            elif name == "max_grad_norm":
                opt.max_grad_norm = number
            else:
                opt.param_groups[0][name] = number
            message = ""
            try:
                opt.step(draw(shapes), **scale)
            except ValueError as error:
                message = str(error)
            taken = not message
            assert taken or f"{name} must be within the range of float64" in message, message
            assert taken or same_bits(params, before)
            assert n < 20
            assert same_bits(COMM.bcast(params), params)
            assert COMM.allgather(opt.t) == [2 if taken else 1] * RANKS


def in_what_is_compared():
    duplicate = private_duplicate(world())

    def compare():
        with raise_on_all_ranks(duplicate, {"value": Unsendable() if RANK == LAST else 1}):
            pass

    refused(RuntimeError, expected("KeyError: 'no text'"), compare)


run({program.__name__: program for program in (in_a_schedule, in_numbers, in_what_is_compared)})
