"""Files of other models, and of optimizers with other options, change nothing."""

import json
import re

import numpy as np
import pytest
from checkpoints import (
    draw,
    gradients,
    groups,
    mapping,
    metadata_of,
    nothing_changes,
    rewrite,
    trained,
)

from fused_adamw import AdamW
from fused_adamw.checkpoint import MismatchedCheckpointError, load_checkpoint, save_checkpoint
from fused_adamw.schedules import CosineDecay

OTHERS = {
    "a tensor less": (lambda: {"W_Q": draw((3, 4)), "b": draw(5)}, "unexpected .*params/scale"),
    "a tensor more": (lambda: mapping() | {"bias": draw(2)}, "params/bias"),
    "another name": (lambda: {"W_K": draw((3, 4)), "b": draw(5), "scale": draw(())}, "W_Q"),
    "another shape": (lambda: mapping() | {"b": draw(6)}, r"params/b .*\(6,\).*\(5,\)"),
    "of the same size": (lambda: mapping() | {"W_Q": draw((4, 3))}, "params/W_Q"),
    "0-d or not": (lambda: mapping() | {"scale": draw(1)}, "params/scale"),
    "another dtype": (lambda: mapping(np.float64), "float64.*float32"),
    "a group": (lambda: [{"params": mapping()}], "missing"),
    "a sequence": (lambda: list(mapping().values()), "missing"),
}


@pytest.mark.parametrize(("make", "match"), OTHERS.values(), ids=OTHERS.keys())
def test_another_model(path, make, match):
    save_checkpoint(path, trained(mapping()))
    optimizer = trained(make(), 1)
    with nothing_changes(optimizer, MismatchedCheckpointError, match):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("role", ["params", "m", "v"])
@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((3, 1), np.float32)])
def test_one_tensor_of_another_kind(path, small, role, other):
    rewrite(path, {f"{role}/w": other})
    with nothing_changes(small[0], MismatchedCheckpointError, f"{role}.* (float64|shape)"):
        load_checkpoint(path, small[0])


def test_many_names_make_a_short_message(path):
    save_checkpoint(path, AdamW([draw(1) for _ in range(1000)]))
    optimizer = AdamW({"w": draw(1)})
    with nothing_changes(optimizer, MismatchedCheckpointError) as caught:
        load_checkpoint(path, optimizer)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_amsgrad_or_not(path):
    for saved in False, True:
        save_checkpoint(path, trained(mapping(), amsgrad=saved))
        optimizer = trained(mapping(), amsgrad=not saved)
        with nothing_changes(optimizer, MismatchedCheckpointError, f"amsgrad={saved}"):
            load_checkpoint(path, optimizer)


@pytest.mark.parametrize("name", ["lr", "eps"])
def test_schedule_or_number(path, name):
    a_schedule = CosineDecay(0.1, 9), rf"a schedule of {name} \(CosineDecay\(.*\)\)"
    a_number = 0.1, rf"a constant {name} \(0.1\)"
    for (saved, its_kind), (own, own_kind) in (a_schedule, a_number), (a_number, a_schedule):
        save_checkpoint(path, trained(mapping(), **{name: saved}))
        optimizer = trained(mapping(), **{name: own})
        match = f"group 0: the checkpoint has {its_kind}, this optimizer has {own_kind}$"
        with nothing_changes(optimizer, MismatchedCheckpointError, match):
            load_checkpoint(path, optimizer)


def test_the_schedule_of_one_group(path):
    save_checkpoint(path, trained(groups(), lr=CosineDecay(0.1, 9)))
    optimizer = trained(groups(), lr=0.1)
    with nothing_changes(optimizer, MismatchedCheckpointError, "group 1: .* a schedule"):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("empty", [0, 2])
def test_other_groups(path, empty):
    save_checkpoint(path, AdamW([{"params": {"w": draw(3)}}, {"params": []}]))
    optimizer = AdamW([{"params": {"w": draw(3)}}, *({"params": []} for _ in range(empty))])
    match = f"must have length {1 + empty}; got 2"
    with nothing_changes(optimizer, MismatchedCheckpointError, match):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("t", -1),
        ("t", "3"),
        ("steps", {"w": 2}),
        ("steps", {"w": 2, "b": -1}),
        ("max_grad_norm", -1.0),
        ("param_groups", [{"lr": -1.0, "betas": [0.9, 0.99], "eps": 0, "weight_decay": 0}]),
        ("param_groups", [{"lr": 0.1}]),
        ("unknown", 1),
    ],
)
def test_a_well_formed_file_of_bad_values(path, small, key, value):
    optimizer, _ = small
    saved = json.loads(metadata_of(path)["optimizer"])
    rewrite(path, optimizer=json.dumps(saved | {key: value}))
    with nothing_changes(optimizer, MismatchedCheckpointError):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize(
    ("start", "name", "value", "error", "message"),
    [
        (None, "ema_decay", 0.999, ValueError, "must be None, as at construction; got 0.999"),
        (0.9, "ema_decay", None, ValueError, "must be a number, as at construction; got None"),
        (0.9, "ema_decay", False, TypeError, "must be a number or None; got False"),
        (None, "max_grad_norm", -1, ValueError, "must be a finite number above 0; got -1"),
        (None, "max_grad_norm", "1", TypeError, r"must be a real number; got '1' \(str\)"),
    ],
)
def test_what_no_step_accepts_does_not_replace_a_file(path, start, name, value, error, message):
    optimizer = trained(mapping(), ema_decay=start)
    save_checkpoint(path, optimizer)
    before = path.read_bytes()
    setattr(optimizer, name, value)
    for call in (
        lambda: optimizer.step(gradients(mapping(), 9)),
        lambda: save_checkpoint(path, optimizer),
    ):
        with nothing_changes(optimizer, error, f"^{name} {message}"):
            call()
    assert path.read_bytes() == before


def test_parameters_that_became_read_only(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    optimizer.step(gradients(mapping(), 9))
    optimizer.param_groups[0]["params"]["scale"].flags.writeable = False
    with nothing_changes(optimizer, ValueError, r"params\['scale'\] must be writable"):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("call", [save_checkpoint, load_checkpoint])
@pytest.mark.parametrize("of_torch", [False, True])
def test_other_optimizers_are_refused(path, call, of_torch):
    """Without importing torch: the name of the module of a base class decides."""
    base = type("Optimizer", (), {"__module__": "torch.optim.optimizer" if of_torch else "other"})
    optimizer = type("SGD", (base,), {"comm": None})()
    must = r"^optimizer must be a fused_adamw\.AdamW or a ShardedAdamW; got "
    with pytest.raises(TypeError, match=rf"{must}{re.escape(__name__)}\.SGD") as caught:
        call(path, optimizer)
    hint = "; for PyTorch use torch.save(optimizer.state_dict(), path)"
    assert str(caught.value).endswith(hint) == of_torch
    assert not path.exists()


@pytest.mark.slow
def test_the_class_for_pytorch_is_refused(path):
    torch = pytest.importorskip("torch")
    from fused_adamw.torch import AdamW as TorchAdamW

    with pytest.raises(TypeError, match=r"got fused_adamw\.torch\.AdamW; for PyTorch use"):
        save_checkpoint(path, TorchAdamW([torch.ones(3, requires_grad=True)]))
