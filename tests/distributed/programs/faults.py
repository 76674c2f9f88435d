"""A mistake on one rank raises the same error on all, and changes nothing."""

import os
from contextlib import suppress

import numpy as np
from common import RANK, RANKS, SMALL_BUCKETS, refused, run, same_bits
from one_rank import LAST, made, on_last, on_rank, params

from fused_adamw import sharded
from fused_adamw._core import _force_isa
from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.sharded import ShardedAdamW


def step_raises(kind, expected, grads, grad_scale=1.0, change=None, **options):
    """A step with these gradients raises and changes nothing; the next one is taken."""
    opt = made(**options)
    opt.step(params())
    if change is not None:
        change(opt)
    before = [array.copy() for array in opt.param_groups[0]["params"].values()]
    refused(kind, expected, lambda: opt.step(grads, grad_scale))
    assert opt.t == 1
    assert same_bits(before, opt.param_groups[0]["params"].values())
    if change is None:
        opt.step(params())
        assert opt.t == 2
        assert not same_bits(before, opt.param_groups[0]["params"].values())


def gradients():
    right = params()
    for key, wrong, kind, expected in (
        ("b", np.zeros((9, 7), np.float32), ValueError, "grads['b'] must have shape (7, 9)"),
        ("a", np.zeros(70_000), TypeError, "grads['a'] must have dtype float32"),
        ("c", "no array", TypeError, "grads['c'] must be a NumPy array"),
    ):
        step_raises(kind, on_rank(expected), on_last({**right, key: wrong}, right))
    step_raises(
        ValueError,
        on_rank("grads must have the same keys as params"),
        on_last({"a": right["a"]}, right),
    )
    step_raises(
        TypeError,
        on_rank("grads must be a mapping with the same keys as params; got int"),
        on_last(3, right),
    )
    step_raises(ValueError, on_rank("grad_scale must be"), right, grad_scale=on_last(np.nan, 1.0))


def what_may_differ_between_ranks():
    """Numbers of threads; and types of equal numbers."""
    for last in (None, 1):
        opt = ShardedAdamW(params(), num_threads=on_last(last, 2), bucket_bytes=SMALL_BUCKETS)
        opt.step(params())
        assert opt.num_threads != 2 or RANK != LAST
    opt = ShardedAdamW(
        params(),
        lr=on_last(1, 1.0),
        betas=on_last((0, np.float64(0.5)), (0.0, 0.5)),
        weight_decay=on_last(np.float32(0), 0.0),
        max_grad_norm=on_last(1, 1.0),
        ema_decay=on_last(0, 0.0),
        bucket_bytes=on_last(np.int64(SMALL_BUCKETS), SMALL_BUCKETS),
    )
    opt.step(params())
    opt.param_groups[0]["lr"] = on_last(2, 2.0)
    opt.step(params())
    assert opt.t == 2


def gradients_to_be_overwritten():
    right, frozen = params(), params()
    frozen["b"].flags.writeable = False
    twice = np.zeros((70_000 + 63), np.float32)
    shared = {**right, "a": twice[:70_000], "b": twice[-80:-17].reshape(7, 9)}
    if RANKS > 1:
        for options in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
            step_raises(ValueError, "must be writable", on_last(frozen, right), **options)
            expected = "grads['b'] must not share memory with grads['a'], since max_grad_norm and"
            step_raises(ValueError, on_rank(expected), on_last(shared, right), **options)


def gradients_whose_elements_share_memory():
    """To write the mean to one element would change others, which have yet to be added up."""
    right, values = params(), np.ones(70_000, np.float32)
    repeated = np.lib.stride_tricks.as_strided(values, (70_000,), (0,))
    window = np.lib.stride_tricks.as_strided(values, (7, 9), (4, 8))
    expected = on_rank("grads['{}'] must have memory of its own for each element, since")
    options = {"skip_nonfinite": True}
    if RANKS > 1:
        for key, wrong in (("a", repeated), ("b", window)):
            wrong = on_last({**right, key: wrong}, right)
            step_raises(ValueError, expected.format(key), wrong, **options)
    spaced = np.zeros((9, 2, 7), np.float32)[::-1, 1].T
    spaced[...] = right["b"]
    made(**options).step(on_last({**right, "a": right["a"][::-1], "b": spaced}, right))
    made().step(on_last({**right, "a": repeated}, right))  # is only read


def gradients_that_are_columns_of_one_array():
    """They have no element in common, though one begins before another ends."""
    right, columns = params(), np.zeros((70_000, 2), np.float32)
    apart = {**right, "a": columns[:, 0], "b": columns[:63, 1].reshape(7, 9)}
    for key in "ab":
        apart[key][...] = right[key]
    opt, other = made(max_grad_norm=1.0), made(max_grad_norm=1.0)
    assert opt.step(apart) == other.step(right)
    assert same_bits(*(x.param_groups[0]["params"].values() for x in (opt, other)))
    assert same_bits([apart["b"]], [right["b"]])


def gradients_whose_memory_cannot_be_described():
    """At the second look, which follows that of the checks."""
    opt, described = made(), sharded.ravel_like

    def fails(array, order):
        raise MemoryError("no memory")

    sharded.ravel_like = on_last(fails, described)
    refused(MemoryError, on_rank("no memory"), lambda: opt.step(params()))
    sharded.ravel_like = described
    assert opt.t == 0
    opt.step(params())


def an_instruction_set_that_one_machine_lacks():
    asked = os.environ.get("FUSED_ADAMW_ISA")
    opt = made()
    before = [array.copy() for array in opt.param_groups[0]["params"].values()]
    with suppress(ValueError):
        _force_isa(on_last("none", asked))
    expected = on_rank("the environment variable FUSED_ADAMW_ISA must be one of")
    refused(ValueError, expected, lambda: opt.step(params()))
    _force_isa(asked)
    assert opt.t == 0
    assert same_bits(before, opt.param_groups[0]["params"].values())
    opt.step(params())


def gradients_in_the_memory_of_parameters():
    opt = made()
    own = opt.param_groups[0]["params"]
    right = params()
    for wrong in (
        {**right, "b": own["a"][:63].reshape(7, 9)},
        {**right, "b": own["a"][-1:-64:-1].reshape(7, 9)},
    ):
        refused(ValueError, "share memory", lambda: opt.step(on_last(wrong, right)))  # noqa: B023
    assert opt.t == 0


def numbers_that_differ():
    if RANKS == 1:
        return
    right = params()
    same = "must be the same on all ranks; got"
    none, missing = f"is None {same}", {**right, "b": None}
    has, lacks = (f"{x} on rank 0 and {not x} on rank {LAST}" for x in (False, True))
    step_raises(ValueError, f"whether grads['b'] {none} {has}", on_last(missing, right))
    step_raises(ValueError, f"whether grads['b'] {none} {lacks}", on_last(right, missing))
    both = on_last({**missing, "c": None}, missing)
    step_raises(ValueError, f"whether grads['c'] {none} {has}", both)
    step_raises(ValueError, f"grad_scale {same}", right, grad_scale=on_last(0.5, 1.0))

    def rate(opt):
        opt.param_groups[0]["lr"] = on_last(0.5, 0.1)

    def norm(opt):
        opt.max_grad_norm = on_last(0.5, None)

    step_raises(ValueError, f"lr of group 0 {same} 0.1 on rank 0", right, change=rate)
    step_raises(ValueError, f"max_grad_norm {same}", right, change=norm)


def numbers_that_are_wrong():
    def rate(opt):
        opt.param_groups[0]["lr"] = on_last(-1.0, 0.1)

    def schedule(opt):
        def fails(t):
            raise KeyError("no such step")

        opt.param_groups[0]["lr"] = on_last(fails, lambda t: 0.1)

    def average(opt):
        opt.ema_decay = on_last(1.0, 0.5)

    def no_average(opt):
        opt.ema_decay = on_last(None, 0.5)

    for grads in (params(), dict.fromkeys("abc")):
        step_raises(ValueError, on_rank("lr must be"), grads, change=rate)
    step_raises(ValueError, on_rank("ema_decay must be"), params(), change=average, ema_decay=0.5)
    step_raises(
        ValueError,
        on_rank("ema_decay must be a number"),
        params(),
        change=no_average,
        ema_decay=0.5,
    )
    step_raises(RuntimeError, on_rank("KeyError: 'no such step'"), params(), change=schedule)


def arrays_that_are_replaced():
    def replaced(opt):
        if RANK == LAST:
            opt.param_groups[0]["params"]["b"] = np.ones((7, 9), np.float32)

    def changed(opt):
        if RANK == LAST:
            opt.param_groups[0]["momentum"] = 0.9

    step_raises(
        ValueError,
        on_rank("param_groups[0]['params']['b'] must be the array that the optimizer was"),
        params(),
        change=replaced,
    )
    step_raises(
        ValueError,
        on_rank(
            "param_groups[0] must have only the keys params, lr, betas, eps, weight_decay; "
            "got 'momentum'"
        ),
        params(),
        change=changed,
    )
    opt = made(ema_decay=0.5)
    opt.step(params())
    replaced(opt)
    expected = on_rank("param_groups[0]['params']['b'] must be the array")
    refused(ValueError, expected, lambda: save_checkpoint("never", opt))
    refused(ValueError, expected, opt.gather_ema)
    frozen = made()
    if RANK == LAST:
        frozen.param_groups[0]["params"]["c"].flags.writeable = False
    refused(ValueError, on_rank("params['c'] must be writable"), lambda: frozen.step(params()))


PROGRAMS = (
    arrays_that_are_replaced,
    gradients,
    what_may_differ_between_ranks,
    gradients_to_be_overwritten,
    gradients_whose_elements_share_memory,
    gradients_that_are_columns_of_one_array,
    gradients_whose_memory_cannot_be_described,
    an_instruction_set_that_one_machine_lacks,
    gradients_in_the_memory_of_parameters,
    numbers_that_differ,
    numbers_that_are_wrong,
)
run({program.__name__: program for program in PROGRAMS})
