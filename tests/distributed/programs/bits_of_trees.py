"""The bits of a single process: with gradients that are missing, not finite or elsewhere in memory,
and with groups and nests of tensors."""

from itertools import product

import numpy as np
from common import RANK, RANKS, SMALL_BUCKETS, draw, local_gradients, mean, run, same_bits
from compared import EVEN, TINY, UNEVEN, pair, same_state, step_both

from fused_adamw import AdamW
from fused_adamw.sharded import ShardedAdamW


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
    *(groups, nested, missing_gradients, memory_orders, nonfinite, ranks_without_a_shard),
    *(gradients_that_are_not_aligned, gradients_are_only_read_without_a_norm),
    allocated_by_the_caller,
)
run({program.__name__: program for program in PROGRAMS})
