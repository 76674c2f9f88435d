"""Conversion of state that goes through PyTorch's distributed checkpoints, and of DTensors."""

import copy
import warnings

import numpy as np
import pytest
from twin_state import decode_8bit, encode_8bit

torch = pytest.importorskip("torch", minversion="2.10")

import torch.distributed.checkpoint as dcp  # noqa: E402
from sharded_training import draw, parameter_on  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Shard, distribute_tensor  # noqa: E402
from torch_ranks import needs_gloo, run_ranks  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

NEAREST = {"m": None, "v": None}


def local(x):
    return x.to_local() if isinstance(x, DTensor) else x


def trained(kind, mesh=None, steps=2, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.Linear(24, 3))
    if mesh is not None:
        for layer in (*model, model):
            fully_shard(layer, mesh=mesh)
    opt = kind(model.parameters(), lr=1e-2, **options)
    for step in range(steps):
        model(draw((5, 40), step)).square().sum().backward()
        opt.step()
        opt.zero_grad()
    return model, opt


def of(saved, name):
    """Of the parameters, flat."""
    return [local(x[name]).numpy().ravel() for x in saved["state"].values()]


def assert_8bit_of(opt, saved, scale="_scale"):
    """The state of the optimizer is what was saved, to the nearest."""
    pairs = zip(of(saved, "exp_avg"), of(saved, "exp_avg_sq"), strict=True)
    for p, (m, v) in zip(opt.param_groups[0]["params"], pairs, strict=True):
        expected, state = encode_8bit(m, v, NEAREST), opt.state[p]
        assert type(state["exp_avg_code"]) is type(p.data)
        for role, name in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            codes = local(state[f"{name}_code"]).numpy().ravel()
            np.testing.assert_array_equal(codes, expected[role])
            scales = state[f"{name}{scale}"].numpy()
            np.testing.assert_array_equal(scales, expected[f"{role}_scale"].view(scales.dtype))


@pytest.mark.parametrize("full", [False, True])
def test_a_state_dict_of_pytorch_is_set(full):
    options = StateDictOptions(full_state_dict=full)
    theirs = trained(torch.optim.AdamW)
    saved = copy.deepcopy(get_optimizer_state_dict(*theirs, options=options))
    model, opt = trained(AdamW, state_dtype="8bit", steps=1)
    with pytest.warns(UserWarning, match="'float32' moments, this .*'8bit'") as caught:
        set_optimizer_state_dict(model, opt, saved, options=options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_8bit_of(opt, saved)
    model(draw((5, 40), 7)).square().sum().backward()
    opt.step()
    assert opt.state[next(model.parameters())]["step"] == 3


def test_state_of_8_bits_is_set_in_a_plain_optimizer():
    source, ours = trained(AdamW, state_dtype="8bit")
    saved = copy.deepcopy(get_optimizer_state_dict(source, ours))
    model, opt = trained(AdamW, steps=1)
    with pytest.warns(UserWarning, match="'8bit' moments, this .*'float32'"):
        set_optimizer_state_dict(model, opt, saved)
    for p, entry in zip(model.parameters(), saved["state"].values(), strict=True):
        assert set(opt.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
        arrays = {
            "m": entry["exp_avg_code"].numpy().ravel(),
            "v": entry["exp_avg_sq_code"].numpy().ravel(),
            "m_scale": entry["exp_avg_scale"].numpy(),
            "v_scale": entry["exp_avg_sq_scale"].numpy().view(np.uint32),
        }
        for name, values in zip(("exp_avg", "exp_avg_sq"), decode_8bit(arrays)[:2], strict=True):
            np.testing.assert_array_equal(opt.state[p][name].numpy().ravel(), values)


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
def test_a_file_of_pytorch_s_class_and_back(tmp_path):
    """As docs/state-formats.md shows."""
    source, theirs = trained(torch.optim.AdamW)
    dcp.save({"optimizer": get_optimizer_state_dict(source, theirs)}, checkpoint_id=tmp_path / "a")
    model, opt = trained(AdamW, state_dtype="8bit", steps=0)
    reader = torch.optim.AdamW(model.parameters())
    saved = {"optimizer": get_optimizer_state_dict(model, reader)}
    dcp.load(saved, checkpoint_id=tmp_path / "a")
    with pytest.warns(UserWarning, match="was converted"):
        set_optimizer_state_dict(model, opt, saved["optimizer"])
    assert_8bit_of(opt, theirs.state_dict())

    writer = torch.optim.AdamW(model.parameters())
    writer.load_state_dict(opt.state_dict(format="torch"))
    dcp.save({"optimizer": get_optimizer_state_dict(model, writer)}, checkpoint_id=tmp_path / "b")
    found = {"optimizer": get_optimizer_state_dict(source, theirs)}
    dcp.load(found, checkpoint_id=tmp_path / "b")
    for entry, kept in zip(
        found["optimizer"]["state"].values(), writer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(entry["exp_avg"], kept["exp_avg"])


# ---- DTensors


@needs_gloo
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtensors_are_converted(mesh, dtype):
    p = parameter_on(mesh, dtype=dtype)
    p.grad = distribute_tensor(draw((3, 100), 2).to(dtype), mesh, [Shard(0)])
    theirs = torch.optim.AdamW([p], lr=1e-2)
    theirs.step()
    saved = copy.deepcopy(theirs.state_dict())
    opt = AdamW([p], state_dtype="8bit")
    with pytest.warns(UserWarning, match="this optimizer stores '8bit'"):
        opt.load_state_dict(saved)
    wide = {"state": {0: {k: x.float() for k, x in saved["state"][0].items()}}}
    assert_8bit_of(opt, wide, scale="_shard_scale")
    opt.step()
    out = opt.state_dict(format="torch")
    assert out["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert out["state"][0]["exp_avg"].placements == p.placements
    theirs.load_state_dict(out)
    theirs.step()
    again = AdamW([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(copy.deepcopy(theirs.state_dict()))
    with pytest.warns(UserWarning, match="holds '8bit' moments"):
        again.load_state_dict(opt.state_dict())
    again.step()
    assert again.state[p]["step"] == 3


def on_two_ranks(mesh):
    _, theirs = trained(torch.optim.AdamW, mesh)
    saved = copy.deepcopy(theirs.state_dict())
    model, opt = trained(AdamW, mesh, steps=1, state_dtype="8bit")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(saved)
    assert len([x for x in caught if "was converted" in str(x.message)]) == 1
    assert_8bit_of(opt, saved, scale="_shard_scale")
    plain = AdamW(model.parameters())
    plain.load_state_dict(opt.state_dict())  # with one scale per cell
    out = opt.state_dict(format="torch")["state"]
    for a, b in zip(out.values(), plain.state_dict()["state"].values(), strict=True):
        assert torch.equal(local(a["exp_avg"]), local(b["exp_avg"]))
        assert torch.equal(local(a["exp_avg_sq"]), local(b["exp_avg_sq"]))
    return len(out)


@needs_gloo
@pytest.mark.slow
def test_fully_sharded_on_two_ranks(tmp_path):
    assert run_ranks(2, tmp_path, on_two_ranks) == [4, 4]
