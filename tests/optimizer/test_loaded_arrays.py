"""``load_state_dict``: arrays of other classes, in other places, and what is said of them."""

import numpy as np
import pytest
from optimizers import snapshot

from fused_adamw import AdamW


@pytest.mark.parametrize("order", [np.array("F"), np.array(["F"]), np.array(["C", "F"]), "A", b"C"])
def test_an_order_that_is_no_text_changes_nothing(order):
    """np.load returns text in an array, which equals a text and is none."""
    source = AdamW(np.ones((2, 3), np.float32, order="F"), state_dtype="bfloat16")
    source.step(np.ones((2, 3), np.float32))
    state = source.state_dict()
    state["state"]["params"]["order"] = order
    opt = AdamW(np.ones((2, 3), np.float32), lr=0.5, state_dtype="bfloat16")
    before = snapshot(opt)
    with pytest.raises(ValueError, match=r"^the order of .* must be 'C' or 'F'; got "):
        opt.load_state_dict(state)
    assert snapshot(opt) == before


@pytest.mark.filterwarnings("ignore:.* was converted:UserWarning")
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "8bit"])
def test_a_matrix_is_loaded_like_any_array(state_dtype):
    source, opt, other = (
        AdamW(np.ones((2, 3), np.float32), state_dtype=x) for x in (None, state_dtype, state_dtype)
    )
    source.step(np.arange(6, dtype=np.float32).reshape(2, 3))
    state = source.state_dict()
    other.load_state_dict(state)
    entry = state["state"]["params"]
    entry |= {role: entry[role].view(np.matrix) for role in ("m", "v")}
    opt.load_state_dict(state)
    assert snapshot(opt) == snapshot(other)


def test_the_live_state_of_the_optimizer_can_be_loaded_into_other_places():
    opt = AdamW({"a": np.ones(3), "b": np.ones(3)})
    opt.step({"a": np.arange(3.0), "b": -np.ones(3)})
    before, state = opt.state_dict()["state"], opt.state_dict()
    for name, other in ("ab", "ba"):
        state["state"][name] |= {"m": opt.v[other], "v": opt.m[other][::-1]}
    opt.load_state_dict(state)
    after = opt.state_dict()["state"]
    for name, other in ("ab", "ba"):
        np.testing.assert_array_equal(after[name]["m"], before[other]["v"])
        np.testing.assert_array_equal(after[name]["v"], before[other]["m"][::-1])


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (lambda state: state.pop("seed"), r"missing \['seed'\]"),
        (lambda state: state.update(momentum=0), r"unexpected \['momentum'\]"),
        (
            lambda state: state.update(momentum=state.pop("seed")),
            r"missing \['seed'\], unexpected \['momentum'\]",
        ),
    ],
)
def test_keys_that_differ_are_listed(change, differences):
    opt = AdamW(np.ones(2))
    state = opt.state_dict()
    change(state)
    with pytest.raises(ValueError, match=f"keys of this optimizer; {differences}$"):
        opt.load_state_dict(state)


def test_a_state_dict_of_pytorch_is_recognized():
    with pytest.raises(ValueError, match=r"PyTorch are for fused_adamw\.torch\.AdamW$"):
        AdamW(np.ones(2)).load_state_dict({"state": {}, "param_groups": []})
