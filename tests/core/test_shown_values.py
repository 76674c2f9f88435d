"""Numbers of more digits than Python writes: they are refused in the words of every other value."""

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw, schedules
from fused_adamw._core import as_integer, shown

HUGE = 10**5000
UNSHOWN = "a value of type"


@pytest.mark.parametrize(
    "value", [HUGE, (HUGE, 0.9), [HUGE], {"a": HUGE}], ids=["int", "tuple", "list", "dict"]
)
@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("lr", "lr must be "),
        ("betas", "betas"),
        ("eps", "eps must be "),
        ("weight_decay", "weight_decay must be "),
        ("amsgrad", "amsgrad must be a bool"),
        ("maximize", "maximize must be a bool"),
        ("skip_nonfinite", "skip_nonfinite must be a bool"),
        ("master_weights", "master_weights must be a bool"),
        ("max_grad_norm", "max_grad_norm must be "),
        ("ema_decay", "ema_decay must be "),
        ("state_dtype", "state_dtype must be None, "),
        ("num_threads", "num_threads must be "),
        ("seed", "seed must be "),
    ],
)
def test_options(option, what, value):
    with pytest.raises((TypeError, ValueError)) as refused:
        AdamW([np.zeros(3)], **{option: value})
    assert str(refused.value).startswith(what)


@pytest.mark.parametrize("option", ["lr", "betas", "eps", "weight_decay", "num_threads"])
def test_the_function(option):
    arrays = [np.ones(3) for _ in range(4)]
    with pytest.raises(TypeError, match=rf"^{option} must be .*; got a value of type list"):
        fused_adamw(*arrays, 1, **{option: [HUGE]})
    for array in arrays:
        assert np.array_equal(array, np.ones(3))


@pytest.mark.parametrize("option", ["foreach", "capturable", "differentiable"])
def test_options_of_pytorch(option):
    torch = pytest.importorskip("torch")
    from fused_adamw.torch import AdamW as TorchAdamW

    p = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=rf"^{option} must be .*; got a value of type int$"):
        TorchAdamW([p], state_dtype="8bit", **{option: HUGE})


def test_schedules():
    with pytest.raises(ValueError, match=r"^lr must be a finite number >= 0; got a value of"):
        schedules.Constant(HUGE, 10)
    with pytest.raises(ValueError, match=r"^steps must be an integer >= 1; got a value of"):
        schedules.Constant(0.1, -HUGE)


def test_integers_with_a_minimum():
    with pytest.raises(ValueError, match=r"^steps must be 1 or more; got a value of type int$"):
        as_integer("steps", -HUGE, minimum=1)


def test_others_are_shown_as_python_writes_them():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no text")

    assert shown("a") == "'a'"
    assert shown([1, None]) == "[1, None]"
    assert shown(Broken()) == f"{UNSHOWN} Broken"
