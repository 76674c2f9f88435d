"""A mistake on one rank raises the same error on all, and changes nothing."""

import copy
import pickle

import numpy as np
from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, refused, run, same_bits
from mpi4py import MPI

from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.sharded import ShardedAdamW

SHAPES = [(70_000,), (7, 9), ()]
LAST = RANKS - 1  # the rank on which things go wrong


def params(shapes=SHAPES, dtype=np.float32):
    return dict(zip("abc", draw(shapes, dtype), strict=True))


def made(**options):
    return ShardedAdamW(params(), bucket_bytes=SMALL_BUCKETS, **options)


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


def on_last(wrong, right):
    return wrong if RANK == LAST else right


def on_rank(text):
    return f"rank {LAST}: {text}" if RANKS > 1 else text


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
            step_raises(
                ValueError, "grads must not share memory", on_last(shared, right), **options
            )


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

    step_raises(ValueError, on_rank("lr must be"), params(), change=rate)
    step_raises(ValueError, on_rank("ema_decay must be"), params(), change=average, ema_decay=0.5)
    step_raises(
        ValueError,
        on_rank("ema_decay must be a number"),
        params(),
        change=no_average,
        ema_decay=0.5,
    )
    step_raises(RuntimeError, on_rank("KeyError: 'no such step'"), params(), change=schedule)


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
        "bucket_bytes must be >= 131,072; got 5",
        lambda: ShardedAdamW(params(), bucket_bytes=5),
    )
    refused(
        TypeError,
        "bucket_bytes must be an integer; got 'x'",
        lambda: ShardedAdamW(params(), bucket_bytes="x"),
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
        on_rank("param_groups[0]: unknown key 'momentum'"),
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


def communicators():
    kind = f"got {type(COMM.Get_group()).__name__}"
    refused(TypeError, kind, lambda: made(comm=COMM.Get_group()), start="comm must be")
    freed = COMM.Dup()
    freed.Free()
    for absent in (MPI.COMM_NULL, freed):
        expected = "comm must have this process and not be freed; got MPI.COMM_NULL"
        refused(ValueError, expected, lambda absent=absent: made(comm=absent))


def copies():
    opt = made()
    expected = "ShardedAdamW cannot be copied in part; use save_checkpoint"
    refused(TypeError, expected, lambda: copy.copy(opt))
    for copied in (copy.deepcopy, pickle.dumps):
        refused(TypeError, "ShardedAdamW cannot be copied", lambda copied=copied: copied(opt))


PROGRAMS = (
    arrays_that_are_replaced,
    communicators,
    copies,
    gradients,
    what_may_differ_between_ranks,
    gradients_to_be_overwritten,
    gradients_in_the_memory_of_parameters,
    numbers_that_differ,
    numbers_that_are_wrong,
    construction,
    construction_that_differs,
)
run({program.__name__: program for program in PROGRAMS})
