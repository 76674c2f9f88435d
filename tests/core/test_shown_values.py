"""How messages show values: numbers of more digits than Python writes are refused in the words of
every other value, and models in the place of a number do not fill the screen."""

import importlib
import re

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw, schedules
from fused_adamw._core import as_integer, shown
from fused_adamw._distributed.partition import check_bucket_bytes
from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.tiny import TinyTransformer

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


@pytest.mark.parametrize("module", ["torch", "offload"])
@pytest.mark.parametrize("option", ["lr", "betas", "eps", "weight_decay"])
def test_numbers_of_pytorch(module, option):
    """In the words of a step, as PyTorch accepts some of them at construction."""
    torch = pytest.importorskip("torch")
    kind = importlib.import_module(f"fused_adamw.{module}").AdamW
    for value in (HUGE, -HUGE):
        p = torch.zeros(3, requires_grad=True)
        given, name = ([0.9, value], "betas[1]") if option == "betas" else (value, option)
        beyond = f"{name} must be within the range of float64; got a number beyond it"
        with pytest.raises(ValueError, match=rf"^{re.escape(beyond)}$"):
            kind([p], **{option: given})
        opt = kind([p])
        opt.param_groups[0][option] = given
        p.grad = torch.ones(3)
        with pytest.raises(ValueError, match=rf"^{re.escape(beyond)}$"):
            opt.step()


def test_formats_and_counts_of_pytorch():
    torch = pytest.importorskip("torch")
    from fused_adamw.torch import AdamW as TorchAdamW

    opt = TorchAdamW([torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match=r"^format must be .*; got a value of type int$"):
        opt.state_dict(format=HUGE)
    saved = opt.state_dict()
    saved["state"][0] = {"step": [HUGE]}
    with pytest.raises(TypeError, match=r" must be a number or a tensor; got a value of type list"):
        opt.load_state_dict(saved)


def test_simulated_devices():
    pytest.importorskip("torch")
    from fused_adamw.offload import CpuLane, simulated

    for value in (-HUGE, [HUGE]):
        refused = pytest.raises((TypeError, ValueError), match=r"^slots .*; got a value of type")
        with refused, simulated(slots=value):
            pass
    with pytest.raises(ValueError, match=r"^delay must be .*; got a value of type int$"):
        CpuLane(delay=-HUGE)
    with pytest.raises(ValueError, match=r"^bandwidth must be .*; got a value of type int$"):
        CpuLane(bandwidth=-HUGE)


def test_groups_and_their_keys():
    opt = AdamW([np.zeros(3)])
    saved = opt.state_dict()
    with pytest.raises(
        TypeError, match=r"param_groups'\] must be a list; got a value of type int$"
    ):
        opt.load_state_dict({**saved, "param_groups": HUGE})
    with pytest.raises(ValueError, match="; got a value of type int"):
        AdamW([{"params": [np.zeros(3)], HUGE: 1}])
    opt.param_groups = HUGE
    with pytest.raises(TypeError, match=r"^param_groups must be .*; got a value of type int$"):
        opt.step([np.zeros(3)])


def test_other_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"^allocate must be .*; got a value of type int$"):
        AdamW([np.zeros(3)], allocate=HUGE)
    for value in (-HUGE, [HUGE]):
        with pytest.raises((TypeError, ValueError), match=r"^bucket_bytes must .*; got a value of"):
            check_bucket_bytes(value)
    opt = AdamW([np.zeros(3)])
    with pytest.raises(TypeError, match=r"^arrays must have strings as keys; got a value of type"):
        save_checkpoint(tmp_path / "x", opt, arrays={HUGE: np.zeros(3)})
    for extra in ({"a": HUGE}, {HUGE: 1}):
        with pytest.raises(ValueError, match=r"^extra must be serializable as JSON"):
            save_checkpoint(tmp_path / "x", opt, extra=extra)
    assert not list(tmp_path.iterdir())


def test_models():
    with pytest.raises(TypeError, match=r"^dtype must be .*; got a value of type int$"):
        TinyTransformer(dtype=HUGE)
    with pytest.raises(ValueError, match=r"^d_model must be .* \(a value of type int\); got 16$"):
        TinyTransformer(d_model=16, n_heads=HUGE)


def test_schedules():
    with pytest.raises(ValueError, match=r"^lr must be a finite number, 0 or more; got a value of"):
        schedules.Constant(HUGE, 10)
    with pytest.raises(ValueError, match=r"^steps must be 1 or more; got a value of"):
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


# ---- models in the place of a number: each of these texts would have 100,000 characters or more


MODEL = [np.ones((30, 30)) for _ in range(20)]
NAMED = {str(i): {"w": array} for i, array in enumerate(MODEL)}


@pytest.mark.parametrize(
    "value", [MODEL, NAMED, tuple(MODEL), MODEL[0]], ids=["list", "dict", "tuple", "array"]
)
@pytest.mark.parametrize(
    "option",
    [
        *("lr", "betas", "eps", "weight_decay", "amsgrad", "max_grad_norm", "ema_decay"),
        *("state_dtype", "num_threads", "seed", "allocate"),
    ],
)
def test_a_model_in_the_place_of_an_option(option, value):
    kind = type(value).__name__
    with pytest.raises((TypeError, ValueError), match=rf"; got a value of type {kind}$"):
        AdamW([np.ones(3)], **{option: value})


def test_a_model_in_the_place_of_other_arguments():
    zeros = [np.zeros((30, 30)) for _ in MODEL]
    opt = AdamW(zeros)
    saved = opt.state_dict()
    with pytest.raises(TypeError, match=r"^t must be an integer; got a value of type list$"):
        fused_adamw(zeros, MODEL, zeros, zeros, MODEL)  # t was left out
    with pytest.raises(TypeError, match=r"^grad_scale must .*; got a value of type list$"):
        opt.step(MODEL, MODEL)
    with pytest.raises(TypeError, match=r"^convert must be a bool; got a value of type dict$"):
        opt.load_state_dict(saved, NAMED)
    entry = saved["state"]["3"] | {"order": MODEL[0]}
    with pytest.raises(ValueError, match=r"^the order of .*; got a value of type ndarray$"):
        opt.load_state_dict({**saved, "state": saved["state"] | {"3": entry}})
    opt.param_groups = {"params": zeros}
    with pytest.raises(TypeError, match=r"^param_groups must .*; got a value of type dict$"):
        opt.step(MODEL)


def test_an_optimizer_is_shown_without_its_arrays():
    class Unprintable(np.ndarray):
        def __repr__(self):
            raise AssertionError("the text of a parameter is not needed")

    opt = AdamW([{"params": [np.ones(3).view(Unprintable)]}, {"params": MODEL, "lr": 0.5}])
    assert "group 1: lr=0.5, betas=(0.9, 0.999)" in repr(opt)
    opt.max_grad_norm = MODEL[0]  # a step refuses it
    opt.param_groups[0]["lr"] = MODEL
    text = repr(opt)
    assert "max_grad_norm=a value of type ndarray" in text
    assert "group 0: lr=a value of type list" in text
    opt.param_groups = MODEL
    assert len(repr(opt)) < 1000


def test_values_of_the_usual_size():
    for value in ((0.9, 0.999), np.arange(50), [[1.0, None], {"a": (2, 3)}], {1}, "x" * 900):
        assert shown(value) == repr(value)
    assert shown(np.arange(51)) == f"{UNSHOWN} ndarray"
    assert shown("x" * 2000) == "'" + "x" * 999 + "..."
    inner = []
    inner.append(inner)
    assert shown(inner) == f"{UNSHOWN} list"
