"""Names and dtypes of state follow from the rows of the core's table."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw._core import PreparedStep, StateFormat, gather_tensors  # noqa: E402
from fused_adamw._optim.options import NO_RATES  # noqa: E402
from fused_adamw._torch import state  # noqa: E402
from fused_adamw._torch.dispatch import EXCHANGE  # noqa: E402


@pytest.fixture
def four_bits(monkeypatch):
    """A format that there is not."""
    row = StateFormat("4bit", "uint8", "uint8", 4, 4, 128, "float32", "float32", True, False)
    monkeypatch.setitem(state.FORMATS, "4bit", row)


def test_pytorch_s_names_without_scales():
    for state_dtype in (None, "bfloat16"):
        names = state.state_names(state_dtype, ("v_max", "ema"))
        assert names == {
            "m": "exp_avg",
            "v": "exp_avg_sq",
            "v_max": "max_exp_avg_sq",
            "ema": "ema",
        }


def test_codes_and_scales():
    assert state.state_names("8bit", ()) == {
        "m": "exp_avg_code",
        "v": "exp_avg_sq_code",
        "m_scale": "exp_avg_scale",
        "v_scale": "exp_avg_sq_scale",
    }


def test_a_new_row_is_enough(four_bits):
    p = torch.nn.Parameter(torch.zeros(3, 43))  # 129 elements: two blocks, and half a byte left
    group = {"state_dtype": "4bit", "amsgrad": True, "ema_decay": None}
    found = {
        name: (x.dtype, tuple(x.shape)) for name, x in state.missing_state(p, {}, group).items()
    }
    packed = (torch.uint8, (65,))
    assert found == {
        "step": (torch.float32, ()),
        "exp_avg_code": packed,
        "exp_avg_sq_code": packed,
        "max_exp_avg_sq_code": packed,
        "exp_avg_scale": (torch.float32, (2,)),
        "exp_avg_sq_scale": (torch.float32, (2,)),
    }


def test_state_that_is_not_there_yet_raises_nothing():
    """What a signal handler raises while a traceback is made would be lost."""
    names = state.state_names(None, ("ema",))
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    hyper = (1e-3, (0.9, 0.999), 1e-8, 0.0, NO_RATES)
    how = {"maximize": False, "num_threads": 1}
    prepared = PreparedStep(EXCHANGE, names)
    for found in ({}, {p: {}}, {p: dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), p)}):
        assert gather_tensors([p], found, names) is None
        assert prepared.prepare([p], found, hyper, **how) is False
    complete = dict.fromkeys(("step", "exp_avg", "exp_avg_sq", "ema"), p)
    assert gather_tensors([p], {p: complete}, names)[3] == {"m": [p], "v": [p], "ema": [p]}
