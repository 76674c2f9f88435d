"""The extension refuses whatever it is called with in a wrong way; nothing crashes."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from bound_tensors import HYPER, MOMENTS, bound, grads, state_of

from fused_adamw import _core
from fused_adamw._core import BoundArrays, DLPackExchange, TreeSpec


def scales(dtype):
    return np.zeros(2, dtype)


def bound_8bit(**arrays):
    given = {"m_scale": scales(np.float32), "v_scale": scales(np.uint32)} | arrays
    kept = state_of(300, "8bit", **{k: v for k, v in given.items() if v is not None})
    return bound([300], state=[kept])


BOUND = {
    "no state": lambda: bound(state=None).step(grads(), [HYPER]),
    "no state, a range": lambda: bound(state=None).step_range(0, grads(), [HYPER]),
    "state of one tensor": lambda: bound(state=[state_of(300)]),
    "state without arrays": lambda: bound(state=[state_of(300), None]),
    "arrays in a list": lambda: bound(
        state=[state_of(300), SimpleNamespace(format="float32", arrays=[np.zeros(300)])]
    ),
    "no moments": lambda: bound(state=[SimpleNamespace(format="float32", arrays={})] * 2),
    "no v": lambda: bound(
        [300], state=[SimpleNamespace(format="float32", arrays={"m": grads()[0]})]
    ),
    "format": lambda: bound([300], state=[SimpleNamespace(format=3, arrays={})]),
    "role": lambda: bound([300], state=[state_of(300, params=grads()[0])]),
    "role's type": lambda: bound([300], state=[state_of(300, w=1)]),
    "no m_scale": lambda: bound_8bit(m_scale=None),
    "no v_scale": lambda: bound_8bit(v_scale=None),
    "8bit v_max": lambda: bound_8bit(v_max=np.zeros(300, np.uint8)),
    "scales too short": lambda: bound_8bit(m_scale=np.zeros(1, np.float32)),
    "master of float32": lambda: bound([300], state=[state_of(300, master=grads()[0])]),
    "m that is read-only": lambda: bound([300], state=[state_of(300, m=FIXED)]),
    "m with gaps": lambda: bound([300], state=[state_of(300, m=GAPS)]),
    "m too short": lambda: bound([300], state=[state_of(300, m=MOMENTS["m"][1:])]),
    "empty master of float32": lambda: bound(
        [300], state=[state_of(300, master=np.zeros(0, np.float32))]
    ),
    "average without its role": lambda: bound([300], state=[state_of(300, ema=grads()[0])]),
    "role without average": lambda: bound([300], roles=("ema",)),
    "slices of no tensor": lambda: bound(slices=[(0, 0, 256), (7, 0, 256)]),
    "slices before one": lambda: bound(slices=[(0, 0, 256), (-1, 0, 256)]),
    "slices beyond one": lambda: bound(slices=[(0, 0, 300), (1, 0, 301)]),
    "slices backwards": lambda: bound(slices=[(0, 0, 300), (1, 256, 200)]),
    "slices within a block": lambda: bound(slices=[(0, 0, 300), (1, 1, 300)]),
    "slices of pairs": lambda: bound(slices=[(0, 0), (1, 0)]),
    "moments of one": lambda: bound(state=None, moments=(grads(),)),
    "moments of nothing": lambda: bound(state=None, moments=()),
    "moments of different lengths": lambda: bound(state=None, moments=(grads(), grads(1))),
    "decays": lambda: bound().set_decays([True]),
    "seed": lambda: bound(seed="1"),
    "no spec": lambda: BoundArrays(None, grads()),
    "no hypers": lambda: bound().step(grads(), []),
    "short hypers": lambda: bound().step(grads(), [(1e-3,)]),
    "hypers of None": lambda: bound().step(grads(), [None]),
    "decay rates left out": lambda: bound().step(grads(), [(*HYPER[:4], None)]),
    "hypers as a list": lambda: bound().step(grads(), [list(HYPER)]),
    "one beta": lambda: bound().step(grads(), [(1e-3, (0.9,), 1e-8, 0.01, (None, None))]),
    "check without steps": lambda: bound().check([HYPER], []),
    "check of None": lambda: bound().check([HYPER], None),
    "check of words": lambda: bound().check([HYPER], ["a", "b"]),
    "check of negative steps": lambda: bound().check([HYPER], [-1, 0]),
    "check of large steps": lambda: bound().check([HYPER], [2**70, 0]),
    "set_steps": lambda: bound().set_steps([1]),
    "set_steps of None": lambda: bound().set_steps([None, None]),
    "set_steps below 0": lambda: bound().set_steps([-5, 0]),
    "count_step": lambda: bound().count_step((None,)),
    "count_step of None": lambda: bound().count_step(None),
    "ranges": lambda: bound().step_range(1, grads(), [HYPER]),
    "ranges before": lambda: bound().step_range(-1, grads(), [HYPER]),
    "ranges far off": lambda: bound().step_range(sys.maxsize, grads(), [HYPER]),
    "sums": lambda: bound().sums_of_squares(2, grads(1)),
    "sums far off": lambda: bound().sums_of_squares(sys.maxsize, grads()),
    "sums of None": lambda: bound().sums_of_squares(0, None),
    "collective": lambda: bound().check_collective(grads(1), [HYPER]),
}

FIXED = np.zeros(300, np.float32)
FIXED.flags.writeable = False
GAPS = np.zeros(600, np.float32)[::2]
OTHERS = {
    "decode without v": lambda: _core.decode_state("float32", {"m": MOMENTS["m"]}, 300),
    "decode without scales": lambda: _core.decode_state("8bit", state_of(300, "8bit").arrays, 300),
    "decode of a list": lambda: _core.decode_state("float32", [], 300),
    "decode of objects": lambda: _core.decode_state("float32", {"m": 1, "v": 2}, 300),
    "decode of other sizes": lambda: _core.decode_state("float32", MOMENTS, 299),
    "decode of gaps": lambda: _core.decode_state("float32", MOMENTS | {"m": GAPS}, 300),
    "decode of a negative size": lambda: _core.decode_state("float32", MOMENTS, -1),
    "decode of another format": lambda: _core.decode_state(None, MOMENTS, 300),
    "encode into read-only": lambda: _core.encode_state(
        "float32", {"m": FIXED, "v": FIXED}, **MOMENTS
    ),
    "encode without scales": lambda: _core.encode_state(
        "8bit", state_of(300, "8bit").arrays, **MOMENTS
    ),
    "encode v_max into nothing": lambda: _core.encode_state(
        "float32", MOMENTS, **MOMENTS, v_max=MOMENTS["v"]
    ),
    "encode without v_max": lambda: _core.encode_state(
        "float32", MOMENTS | {"v_max": MOMENTS["v"]}, **MOMENTS
    ),
    "encode v of another size": lambda: _core.encode_state(
        "float32", MOMENTS, m=FIXED, v=FIXED[:9]
    ),
    "encode without m": lambda: _core.encode_state("float32", MOMENTS, v=FIXED),
    "encode None": lambda: _core.encode_state("float32", MOMENTS, m=FIXED, v=None),
    "exchange of nothing": lambda: DLPackExchange(is_negated=bool),
    "exchange of an object": lambda: DLPackExchange(3, is_negated=bool),
    "exchange of a type": lambda: DLPackExchange(int, is_negated=bool),
    "unflatten too few": lambda: TreeSpec(grads()).unflatten(grads(1)),
    "unflatten too many": lambda: TreeSpec(grads()).unflatten(grads(3)),
    "groups of nothing": lambda: TreeSpec(None, True),
    "threads": lambda: _core.check_num_threads("2"),
    "norm of words": lambda: _core.norm_of_chunks(["a"], 1.0),
    "clip_factor of words": lambda: _core.clip_factor("a", 1.0),
    "instruction set": lambda: _core._force_isa(3),
}


@pytest.mark.parametrize("call", (BOUND | OTHERS).values(), ids=BOUND | OTHERS)
def test_wrong_calls(call):
    with pytest.raises((TypeError, ValueError)):
        call()


MUST = "m[0] must be a writable array of 1200 contiguous bytes (float32); got "
MESSAGES = {
    "m that is read-only": f"{MUST}1200 bytes (read-only)",
    "m with gaps": f"{MUST}1200 bytes (not contiguous)",
    "m too short": f"{MUST}1196 bytes",
    "8bit v_max": "state in format '8bit' must have no 'v_max'; got one",
    "empty master of float32": "state of float32 must have no 'master'; got one",
    "decode of gaps": "m must have 1200 contiguous bytes; got 1200 bytes (not contiguous)",
    "decode of other sizes": "m must have 1196 contiguous bytes; got 1200 bytes",
}


@pytest.mark.parametrize("call", MESSAGES)
def test_messages_on_state(call):
    with pytest.raises(ValueError, match=f"^{re.escape(MESSAGES[call])}$"):
        (BOUND | OTHERS)[call]()


def test_right_calls():
    """What the calls above leave out or get wrong is all that is wrong with them."""
    bound().step(grads(), [HYPER])
    bound(slices=[(0, 0, 256), (1, 256, 300)], state=[state_of(256), state_of(44)])
    bound(state=None, moments=(grads(), grads())).step(grads(), [HYPER])
    tensors = bound()
    tensors.step_range(1, grads(1), [HYPER])
    tensors.step_range(2, [], [HYPER])
    assert tensors.sums_of_squares(0, grads()).tolist() == [300, 300]
    tensors.check([HYPER], [0, 7])
    tensors.set_steps([0, 7])
    tensors.count_step((None, 1))
    assert tensors.get_steps() == [0, 8]
    bound_8bit().step(grads(1), [HYPER])
    averaged = (*HYPER[:4], (None, 0.9))
    state = [state_of(300, ema=grads()[0])]
    bound([300], state=state, roles=("ema",)).step(grads(1), [averaged])
    moments = {"m": grads()[0], "v": grads()[0]}
    _core.encode_state("float32", moments, **moments)


@pytest.mark.parametrize("wrong", [None, 3])
def test_lists_of_other_objects(wrong):
    """None is one: a typed variable of Cython holds it, and reading its members reads anything."""
    found = f"got {type(wrong).__name__} in it"
    with pytest.raises(TypeError, match=f"^steps must be a list of PreparedStep; {found}$"):
        _core.share_counts([wrong], [])
    with pytest.raises(TypeError, match=f"^steps must be a list of PreparedStep; {found}$"):
        _core.step_all([wrong], [print])
    options = {"num_threads": print, "increment_version": print, "num_modes": print}
    with pytest.raises(TypeError, match=f"^groups must be a list of GroupPlan; {found}$"):
        _core.StepPlan([wrong], _core.ReentrantLock(), **options)
