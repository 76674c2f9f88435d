"""``AdamW``: its state, snapshots of it, and copies."""

import contextlib
import copy
import math
import pickle
import signal

import numpy as np
import pytest
from arrays import DELETED, spoil
from optimizers import (
    EVERYTHING,
    HYPER,
    OTHER,
    arrays_of,
    draw,
    group_grads,
    grouped_optimizer,
    leaves,
    snapshot,
)

from fused_adamw import AdamW


def test_moments_are_visible_and_live():
    opt = grouped_optimizer(amsgrad=True)
    assert [list(opt.m[0]), list(opt.v[1]), len(opt.v_max)] == [["w", "b"], ["w"], 2]
    m, v, v_max = opt.m, opt.v, opt.v_max
    before = [array.copy() for array in leaves([m, v, v_max])]
    opt.step(group_grads([10 * g for g in draw([(4, 3), (3,), (5,)], seed=99)]))
    for old, array in zip(before, leaves([m, v, v_max]), strict=True):
        assert (old != array).any()
    m[1]["w"][:] = 7
    assert (opt.state_dict()["state"]["1.w"]["m"] == 7).all()
    assert grouped_optimizer().v_max is None


@pytest.mark.parametrize(
    ("options", "arrays"), [({}, 2), ({"amsgrad": True}, 3), (EVERYTHING, 4)], ids=str
)
def test_state_nbytes(options, arrays):
    opt = grouped_optimizer(**options)
    assert opt.state_nbytes == arrays * (12 * 4 + 3 * 8 + 5 * 8)
    assert opt.state_nbytes == sum(a.nbytes for role in arrays_of(opt)[1:] for a in role)


def test_state_dict_is_a_snapshot():
    opt = grouped_optimizer(amsgrad=True)
    opt.param_groups[0]["betas"] = betas = [0.8, 0.9]
    state = opt.state_dict()
    assert state["t"] == 3
    assert {name: e["step"] for name, e in state["state"].items()} == {"0.w": 3, "0.b": 3, "1.w": 2}
    frozen = copy.deepcopy(state)
    opt.step(group_grads(draw([(4, 3), (3,), (5,)])))
    betas[0] = 0.1
    opt.param_groups[1]["lr"] = 5.0
    assert repr(state) == repr(frozen)
    for entry in state["state"].values():
        for role in ("m", "v", "v_max"):
            assert not any(np.shares_memory(entry[role], a) for a in leaves(arrays_of(opt)))


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_resuming_gives_the_bits_of_never_stopping(layout):
    def train(opt, steps):
        for t in steps:
            opt.step(group_grads(draw([(4, 3), (3,), (5,)], seed=t)), 0.5)

    opt = grouped_optimizer(**EVERYTHING)
    opt.ema_decay = 0.75
    opt.param_groups[0] |= {"lr": halving, "weight_decay": 0.3}
    train(opt, range(10))
    state = opt.state_dict()
    params = [array.copy() for array in arrays_of(opt)[0]]
    train(opt, range(10, 30))

    other = grouped_optimizer(seed=7, amsgrad=True, ema_decay=0.5)
    kept = arrays_of(other)
    for array, saved in zip(kept[0], params, strict=True):
        array[...] = saved
    for entry in state["state"].values():
        entry.update({role: layout(entry[role]) for role in ("m", "v", "v_max", "ema")})
    other.load_state_dict(state)
    for before, after in zip(leaves(kept), leaves(arrays_of(other)), strict=True):
        assert before is after  # its own memory, dtype and order
    for entry in state["state"].values():
        entry["m"][...] = entry["v"][...] = entry["ema"][...] = math.nan  # not aliased
    train(other, range(10, 30))
    assert snapshot(other) == snapshot(opt)
    assert other.maximize is other.skip_nonfinite is True


ENDLESS = {}
ENDLESS["lr"] = ENDLESS
CORRUPTIONS = [
    *((["t"], value, ValueError) for value in (-1, 2**63, DELETED)),
    *((["t"], value, TypeError) for value in (1.5, "3", None)),
    (["extra"], 1, ValueError),
    (["param_groups"], 3, TypeError),
    (["param_groups"], [], ValueError),
    (["param_groups"], [1, 2], TypeError),
    (["param_groups", 1, "params"], [], ValueError),
    *((["param_groups", 1, "lr"], value, ValueError) for value in (-1.0, math.nan, DELETED)),
    *((["param_groups", 1, "lr"], x, TypeError) for x in ("1", ENDLESS)),
    (["state", "1.w"], ENDLESS, ValueError),
    (["param_groups", 1, "lr"], lambda t: math.inf, ValueError),
    (["param_groups", 0, "betas"], 0.9, TypeError),
    (["param_groups", 0, "betas"], iter((0.9, 0.99)), TypeError),
    (["param_groups", 0, "betas"], (0.9, 1 - 1e-9), ValueError),  # 1 in float32
    (["param_groups", 1, "eps"], -1e-8, ValueError),
    (["param_groups", 1, "weight_decay"], None, TypeError),
    *((["max_grad_norm"], value, ValueError) for value in (0.0, -1, math.inf, DELETED)),
    (["max_grad_norm"], "1", TypeError),
    (["maximize"], "no", TypeError),
    (["skip_nonfinite"], None, TypeError),
    (["state"], None, TypeError),
    (["state", "1.w"], DELETED, ValueError),
    (["state", "2.w"], {}, ValueError),
    (["state", "1.w"], None, TypeError),
    *((["state", "1.w", "step"], x, ValueError) for x in (-1, 2**63 - 1, 2**63, DELETED)),
    *((["state", "1.w", "step"], x, TypeError) for x in (0.5, None)),
    *((["state", "1.w", role], DELETED, ValueError) for role in ("m", "v", "v_max", "ema")),
    *((["ema_decay"], value, ValueError) for value in (-0.1, 1.0, math.nan, 1 - 1e-9, DELETED)),
    (["ema_decay"], "1", TypeError),
    (["state", "1.w", "extra"], np.ones(5), ValueError),
    (["state", "1.w", "m"], [0.0] * 5, TypeError),
    (["state", "1.w", "v"], np.ones(5, np.float32), TypeError),
    (["state", "1.w", "ema"], np.ones(5, np.float32), TypeError),
    (["state", "1.w", "v"], np.ones(5, np.dtype(float).newbyteorder()), TypeError),
    *((["state", "1.w", "v_max"], np.ones(n), ValueError) for n in (1, 4, (5, 1), ())),
]


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_groups_is_refused(count):
    opt = grouped_optimizer()
    state = opt.state_dict()
    state["param_groups"] = (2 * state["param_groups"])[:count]
    with pytest.raises(ValueError, match=f"must have length 2; got {count}"):
        opt.load_state_dict(state)


@pytest.mark.parametrize(("path", "value", "error"), CORRUPTIONS)
def test_a_bad_state_is_named_and_nothing_changes(path, value, error):
    """The state is another one throughout, so that whatever were loaded from it would show."""
    opt = grouped_optimizer(amsgrad=True, ema_decay=0.5)
    saved = grouped_optimizer(seed=7, **EVERYTHING)
    saved.step(group_grads(draw([(4, 3), (3,), (5,)])))
    saved.param_groups[0] |= OTHER
    state = saved.state_dict()
    spoil(state, path, value)
    before = snapshot(opt)
    with pytest.raises(error) as caught:
        opt.load_state_dict(state)
    assert path[-1] in str(caught.value)
    assert snapshot(opt) == before


@pytest.mark.parametrize("name", ["t", "seed", "max_grad_norm", "maximize", "ema_decay"])
def test_a_bad_option_of_a_state_is_named_as_its_entry(name):
    opt = grouped_optimizer(ema_decay=0.5)
    with pytest.raises((TypeError, ValueError), match=rf"^state_dict\['{name}'\] must be .*'x'"):
        opt.load_state_dict(opt.state_dict() | {name: "x"})
    with pytest.raises(
        ValueError, match=r"^state_dict\['seed'\] must be None or from 0 .*; got -1"
    ):
        opt.load_state_dict(opt.state_dict() | {"seed": -1})


@pytest.mark.parametrize("state", [None, 3, [], {}])
def test_what_is_no_state(state):
    opt = grouped_optimizer()
    with pytest.raises((TypeError, ValueError), match="state_dict"):
        opt.load_state_dict(state)


def test_a_loaded_schedule_is_asked_for_the_step_that_comes_next():
    """One that ends is not asked for a step after its end, where this optimizer happens to be."""
    rates, asked = [None, 0.1, 0.2, 0.3], set()

    def lr(t):
        asked.add(t)
        return rates[t]

    opt = AdamW(np.ones(2), lr=lr)
    opt.step(np.ones(2))
    state = opt.state_dict()
    opt.step(np.ones(2))
    opt.step(np.ones(2))
    asked.clear()
    opt.load_state_dict(state)
    assert opt.t == 1
    assert asked == {2}


def halving(t):
    return 0.1 * 0.5**t


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_share_no_memory_and_continue_identically(copied):
    opt = grouped_optimizer(**EVERYTHING)
    opt.param_groups[1]["lr"] = halving
    opt.num_threads = 2
    before = snapshot(opt)
    other = copied(opt)
    assert snapshot(other) == before
    for a in leaves(arrays_of(opt)):
        assert not any(np.shares_memory(a, b) for b in leaves(arrays_of(other)))
    for a, b in zip(leaves(arrays_of(opt)), leaves(arrays_of(other)), strict=True):
        assert (a.dtype, a.strides) == (b.dtype, b.strides)
    gradients = [group_grads(draw([(4, 3), (3,), (5,)], seed=t)) for t in range(5)]
    norms = [other.step(g) for g in gradients]
    other.param_groups[0]["lr"] = 1.0
    assert snapshot(opt) == before
    assert norms == [opt.step(g) for g in gradients]
    opt.param_groups[0]["lr"] = 1.0
    assert snapshot(opt) == snapshot(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_together_with_the_model_steps_the_copied_model(copied):
    model = {"w": np.ones(3)}
    other, opt = copied((model, AdamW(model)))
    opt.step({"w": np.ones(3)})
    assert (other["w"] != 1).all()
    assert (model["w"] == 1).all()


def test_repr():
    text = repr(grouped_optimizer(amsgrad=True, max_grad_norm=0.5))
    for word in ("AdamW(3 tensors, 20 parameters, t=3", "amsgrad=True", "max_grad_norm=0.5"):
        assert word in text
    for g, hyper in enumerate([HYPER, OTHER]):
        line = next(line for line in text.splitlines() if f"group {g}" in line)
        assert all(f"{name}={value!r}" in line for name, value in hyper.items())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that signals")
def test_an_interrupt_leaves_whole_steps():
    """Ctrl-C that arrives within a step is raised after it, with the step counted."""
    opt = AdamW(np.ones(200_000), num_threads=1)
    gradient = np.full(200_000, 0.1)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in np.linspace(1e-4, 2e-3, 100):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    opt.step(gradient)
            assert opt.t == opt.state_dict()["state"]["params"]["step"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_changed_dict_does_not_mix_up_tensors():
    """The optimizer keeps its own arrangement of the arrays that it was given."""
    params = {"w": np.ones(3), "b": np.full(3, 2.0)}
    opt = AdamW(params)
    opt.step({"w": np.full(3, 5.0), "b": np.full(3, -7.0)})
    params["w"] = params.pop("w")
    params["new"] = np.ones(1)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        for name in ("w", "b"):
            np.testing.assert_array_equal(other.m[name], opt.m[name])
            np.testing.assert_array_equal(other.param_groups[0]["params"][name], params[name])


def test_flags_of_other_kinds_are_saved_as_bools():
    opt = AdamW(np.ones(2))
    opt.skip_nonfinite, opt.maximize = 1, np.True_
    other = AdamW(np.ones(2))
    other.load_state_dict(opt.state_dict())
    assert (other.skip_nonfinite, other.maximize) == (True, True)


def test_a_state_is_checked_at_its_own_step():
    """A rate that the bias correction of an early step makes too large for float32."""
    opt = AdamW(np.ones(2, np.float32))
    state = opt.state_dict()
    for _ in range(400):
        opt.step(np.ones(2, np.float32))
    state["param_groups"][0]["lr"] = 1e38
    with pytest.raises(ValueError, match=r"^lr / .* must be .*; got lr=1e\+38$"):
        opt.load_state_dict(state)
    assert opt.t == 400
