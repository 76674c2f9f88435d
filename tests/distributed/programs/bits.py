"""The sharded optimizer against a single process that has the mean gradients, step by step."""

from contextlib import suppress
from itertools import product

import numpy as np
from common import RANK, RANKS, SMALL_BUCKETS, draw, local_gradients, mean, run, same_bits

from fused_adamw import AdamW
from fused_adamw._core import BLOCK
from fused_adamw.schedules import LinearWarmup
from fused_adamw.sharded import ShardedAdamW

HALF = [np.float16]
with suppress(ImportError):
    from ml_dtypes import bfloat16

    HALF.append(bfloat16)

UNEVEN = [(100_001,), (7, 9), (), (0, 3), (200, 201), (16_384,), (5,)]
EVEN = [(1 << 17,)]
TINY = [(3,), (2,)]  # not enough for more than two ranks
SMALL = [(100 + i,) for i in range(400)]  # several packed buckets
ALL = UNEVEN, EVEN, TINY, SMALL


def end_below_zero(t):
    """A schedule that misses 0 by rounding."""
    return 0.1 if t == 1 else -1e-17


OPTIONS = [
    {},
    {"lr": end_below_zero, "weight_decay": 0.3},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.3},
    {"max_grad_norm": 1.0, "eps": lambda t: 0.1 / t},
    {"skip_nonfinite": True, "lr": LinearWarmup(0.1, 3)},
    {"max_grad_norm": 1e9, "skip_nonfinite": True, "amsgrad": True, "ema_decay": 0.9},
]
LOW_PRECISION = [
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16", "max_grad_norm": 0.5},
    {"state_dtype": "8bit", "max_grad_norm": 0.5, "seed": 7, "ema_decay": 0.75},
    {"state_dtype": "bfloat16", "amsgrad": True, "seed": None},
]


def pair(params, sharded_options=None, **options):
    """The same optimizer twice, over two copies: whole, and sharded in small buckets."""
    copies = [p.copy("K") for p in params]
    buckets = {"bucket_bytes": np.int64(SMALL_BUCKETS)}  # as arithmetic of NumPy gives it
    sharded = ShardedAdamW(copies, **buckets, **options, **(sharded_options or {}))
    return params, AdamW(params, **options), copies, sharded


def same_state(single, sharded):
    """Whether each slice of this rank is that part of the state of the single process."""
    for tensor, state in enumerate(single._state):
        for shard in sharded._shards(tensor):
            if shard.rank != RANK:
                continue
            for role in sharded._state_entries(sharded._arrays[tensor]):
                whole = single._own_state(single._shards(tensor)[0], role)
                first = shard.begin // BLOCK if role.endswith("_scale") else shard.begin
                own = sharded._own_state(shard, role)
                if own.tobytes() != whole[first : first + own.size].tobytes():
                    return False
        assert list(sharded._state_entries(sharded._arrays[tensor])) == list(state.arrays)
    gathered = sharded.gather_ema(), sharded.gather_master()
    for whole, found in zip((single.ema, single.master), gathered, strict=True):
        if whole is None or found is None:
            same = whole is found
        else:
            same = same_bits(leaves(whole), leaves(found))
        if not same:
            return False
    return True


def leaves(tree):
    if isinstance(tree, np.ndarray):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [leaf for item in items for leaf in leaves(item)]


def step_both(pair, gradients, scale=1.0):
    params, single, copies, sharded = pair
    norm = single.step(mean(gradients), scale)
    assert sharded.step(gradients[RANK], scale) == norm
    assert sharded.t == single.t
    assert same_bits(params, copies)
    assert same_state(single, sharded)


def compare(shapes, dtypes, steps=2, scale=1.0, **options):
    made = pair([*map(np.array, draw_each(shapes, dtypes))], **options)
    for step in range(steps):
        step_both(made, local_gradients(shapes, dtypes, step), scale)


def draw_each(shapes, dtypes):
    return [x.astype(d) for x, d in zip(draw(shapes, np.float64), dtypes, strict=True)]


def float32():
    for shapes in ALL:
        for options in OPTIONS if shapes is UNEVEN else OPTIONS[1:3]:
            compare(shapes, [np.float32] * len(shapes), **options)


def float64():
    for options in OPTIONS:
        compare(UNEVEN, [np.float64] * len(UNEVEN), **options)


def mixed_dtypes():
    for options in OPTIONS:
        compare(UNEVEN, [np.float32, np.float64] * 3 + [np.float32], **options)


def low_precision():
    for shapes in (UNEVEN, SMALL):
        for options in LOW_PRECISION:
            compare(shapes, [np.float32] * len(shapes), steps=3, **options)


def half_precision():
    """Parameters of 16 bits, with all moments, with and without master weights."""
    kinds = (None, "float32", "bfloat16", "8bit")
    for dtype, state_dtype, masters in product(HALF, kinds, (False, True)):
        options = {"state_dtype": state_dtype, "master_weights": masters, "ema_decay": 0.9}
        compare(UNEVEN, [dtype] * len(UNEVEN), **options)
    for dtype, options in product(HALF, ({"max_grad_norm": 0.5}, {"skip_nonfinite": True})):
        compare(SMALL[:40], [dtype] * 40, master_weights=True, **options)
        compare(UNEVEN, [dtype, np.float32] * 3 + [np.float64], master_weights=True, **options)
        made = pair(
            [np.asarray(p, order="F") for p in draw([(300, 400), (6, 7)], dtype)],
            master_weights=True,
            **options,
        )
        for step in range(2):
            step_both(made, local_gradients([(300, 400), (6, 7)], [dtype] * 2, step), 0.3)


def large_float16():
    """Their sum would be infinite in float16; their mean is not."""
    made = pair(draw([(50_000,), (7,)], np.float16), lr=0.1, master_weights=True)
    large = [np.full(50_000, 60_000, np.float16), np.full(7, -60_000, np.float16)]
    step_both(made, [large] * RANKS)
    assert all(np.isfinite(p).all() for p in made[2])


def grad_scale():
    for options in OPTIONS[:3]:
        compare(UNEVEN, [np.float32] * len(UNEVEN), scale=0.3, **options)


def tiny_gradients():
    """Their means are subnormal, and rounded."""
    shapes = [(50_000,)]
    made = pair(draw(shapes))
    for step in range(2):
        step_both(made, local_gradients(shapes, [np.float32], step, scale=2.0**-149))


def random_gradients():
    """A sum of two has one order only."""
    if RANKS > 2:
        return
    made = pair(draw(UNEVEN), max_grad_norm=0.1)
    for step in range(3):
        step_both(made, [draw(UNEVEN, seed=10 * step + rank) for rank in range(RANKS)])


def groups():
    def grouped(params):
        return [
            {"params": params[:2], "lr": 0.1, "betas": (0.5, 0.9)},
            {"params": dict(zip("abcde", params[2:], strict=True)), "weight_decay": 0.0},
        ]

    def of(gradients):
        return [gradients[:2], dict(zip("abcde", gradients[2:], strict=True))]

    params = draw(UNEVEN)
    copies = [p.copy() for p in params]
    options = {
        "max_grad_norm": 0.7,
        "decay_mask": lambda name, array: array.ndim > 1,
        "ema_decay": 0.5,
    }
    single = AdamW(grouped(params), **options)
    sharded = ShardedAdamW(grouped(copies), bucket_bytes=SMALL_BUCKETS, **options)
    assert sharded.names == single.names
    for step in range(3):
        gradients = local_gradients(UNEVEN, [np.float32] * len(UNEVEN), step)
        single.param_groups[0]["lr"] = sharded.param_groups[0]["lr"] = 0.1 / (step + 1)
        assert single.step(of(mean(gradients))) == sharded.step(of(gradients[RANK]))
        assert same_bits(params, copies)
        assert same_state(single, sharded)


def nested():
    """Mappings and sequences in one another, with an average that changes its decay."""

    def tree(a):
        return {"layers": [{"w": a[0], "b": (a[1], a[2])}, [a[3], {"w": a[4]}]], "head": a[5:]}

    params = draw(UNEVEN)
    copies = [p.copy() for p in params]
    single = AdamW(tree(params), ema_decay=0.5)
    sharded = ShardedAdamW(tree(copies), ema_decay=0.5, bucket_bytes=SMALL_BUCKETS)
    assert sharded.names == single.names
    assert single.names[:2] == ["layers.0.w", "layers.0.b.0"]
    for step in range(3):
        gradients = local_gradients(UNEVEN, [np.float32] * len(UNEVEN), step)
        single.ema_decay = sharded.ema_decay = 0.9 - step / 4
        single.step(tree(mean(gradients)))
        sharded.step(tree(gradients[RANK]))
        assert same_bits(params, copies)
        assert same_state(single, sharded)
        assert set(sharded.gather_ema()) == {"layers", "head"}


def missing_gradients():
    """Not all tensors in each step; none at all in one."""
    for options in ({}, {"max_grad_norm": 0.5, "ema_decay": 0.5}):
        made = params, single, copies, sharded = pair(draw(UNEVEN), **options)
        for step, missing in enumerate(([0], [1, 2], range(7), [4, 6], [])):
            gradients = local_gradients(UNEVEN, [np.float32] * len(UNEVEN), step)
            means = [None if i in missing else g for i, g in enumerate(mean(gradients))]
            own = [None if i in missing else g for i, g in enumerate(gradients[RANK])]
            assert single.step(means) == sharded.step(own)
            assert same_bits(params, copies), (step, missing)
            assert same_state(single, sharded)
        assert made[3].t == 5


def memory_orders():
    """Of parameters and of gradients, each in C order, in Fortran order and with gaps."""
    shapes = [(300, 400), (301, 50), (6, 7)]
    for options in ({"ema_decay": 0.5}, {"max_grad_norm": 0.5, "state_dtype": "8bit"}):
        params = [np.asarray(p, order=o) for p, o in zip(draw(shapes), "FCF", strict=True)]
        made = pair(params, **options)
        for step in range(3):
            gradients = local_gradients(shapes, [np.float32] * 3, step)
            spaced = [np.zeros((*g.shape, 2), g.dtype)[..., 0] for g in gradients[RANK]]
            for target, g in zip(spaced, gradients[RANK], strict=True):
                target[...] = g
            fortran = [np.asarray(g, order="F") for g in gradients[RANK]]
            own = [gradients[RANK], fortran, spaced][step]
            assert made[1].step(mean(gradients)) == made[3].step(own)
            assert same_bits(made[0], made[2])
            assert same_state(made[1], made[3])


def nonfinite():
    """Skipped, with nothing changed; or let through, with the bits of a single process."""
    shapes, dtypes = UNEVEN, [np.float32] * len(UNEVEN)
    for bad in (np.nan, np.inf):
        for options in ({"skip_nonfinite": True}, {"max_grad_norm": 1.0}, {}):
            made = pair(draw(shapes), **options, ema_decay=0.5)
            for step in range(3):
                gradients = local_gradients(shapes, dtypes, step)
                if step == 1:
                    gradients[-1][0][12_345] = bad
                with np.errstate(all="ignore"):
                    means = mean(gradients)
                norms = made[1].step(means), made[3].step(gradients[RANK])
                assert np.array_equal(*np.array(norms, float), equal_nan=True)
                assert made[1].t == made[3].t
                assert same_bits(made[0], made[2]), (bad, options, step)
                assert same_state(made[1], made[3])


def ranks_without_a_shard():
    """Averages, and low-precision state, where there are fewer chunks than ranks."""
    for options in ({"ema_decay": 0.9}, {"ema_decay": 0.9, "state_dtype": "8bit"}):
        made = pair(draw(TINY), **options)
        for step in range(3):
            gradients = local_gradients(TINY, [np.float32] * len(TINY), step)
            assert made[1].step(mean(gradients)) == made[3].step(gradients[RANK])
        assert same_bits(made[0], made[2])
        assert same_state(made[1], made[3])


def gradients_are_only_read_without_a_norm():
    made = pair(draw(UNEVEN))
    gradients = local_gradients(UNEVEN, [np.float32] * len(UNEVEN), 1)
    before = [g.copy() for g in gradients[RANK]]
    for gradient in gradients[RANK]:
        gradient.flags.writeable = False
    made[3].step(gradients[RANK])
    assert same_bits(before, gradients[RANK])


def allocated_by_the_caller():
    """The state of the own part, all of it and no more, is where the caller wants it."""
    allocated = []

    def allocate(size, dtype):
        allocated.append(np.zeros(size, dtype))
        return allocated[-1]

    made = pair(draw(UNEVEN), {"allocate": allocate}, amsgrad=True)
    step_both(made, local_gradients(UNEVEN, [np.float32] * len(UNEVEN), 1))
    assert sum(array.nbytes for array in allocated) == made[3].state_nbytes
    assert all(array.any() for array in allocated)


def misaligned(array):
    """The same numbers, one byte further on."""
    if array.size == 0:
        return array
    moved = np.frombuffer(bytearray(array.nbytes + 1), array.dtype, array.size, 1)
    moved[...] = array.ravel()
    return moved.reshape(array.shape)


def gradients_that_are_not_aligned():
    """On the last rank, or on all."""
    for first, shapes in product((0, RANKS - 1), (UNEVEN, EVEN, TINY)):
        made = pair(draw(shapes))
        for step in range(2):
            grads = local_gradients(shapes, [np.float32] * len(shapes), step)
            if first <= RANK:
                grads[RANK] = list(map(misaligned, grads[RANK]))
            step_both(made, grads)


PROGRAMS = (
    *(
        float32,
        float64,
        mixed_dtypes,
        low_precision,
        half_precision,
        grad_scale,
        tiny_gradients,
        random_gradients,
    ),
    *(groups, nested, missing_gradients, memory_orders, nonfinite, ranks_without_a_shard),
    *(
        gradients_that_are_not_aligned,
        gradients_are_only_read_without_a_norm,
        large_float16,
        allocated_by_the_caller,
    ),
)
run({program.__name__: program for program in PROGRAMS})
