"""DTensors on the only rank of a mesh."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from sharded_training import draw, parameter_on  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch_ranks import needs_gloo  # noqa: E402

import fused_adamw  # noqa: E402
from fused_adamw._torch.dispatch import EXCHANGE, PreparedStep, step_all  # noqa: E402
from fused_adamw._torch.dtensors import local_of  # noqa: E402
from fused_adamw._torch.local_shards import increment_version  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402


def trained(mesh, *shapes, **options):
    params = [parameter_on(mesh, shape) for shape in shapes or [(3, 100)]]
    opt = AdamW(params, lr=1e-2, **options)
    for p in params:
        p.grad = distribute_tensor(draw(p.shape, 2), mesh, [Shard(0)])
    opt.step()
    return params, opt


# ---------------------------------------------------------------------------- steps


@needs_gloo
@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}])
def test_a_step_counts_as_a_change_of_the_parameter(mesh, options):
    (p,), opt = trained(mesh, **options)
    before = p._version
    opt.step()
    assert p._version > before


@needs_gloo
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": False}], ids=str)
def test_pytorch_s_own_update_takes_what_the_kernels_do_not(mesh, options):
    (p,), _ = trained(mesh, **options)
    q = parameter_on(mesh)
    q.grad = p.grad
    torch.optim.AdamW([q], lr=1e-2, **options).step()
    assert torch.equal(p.to_local(), q.to_local())


def plain_parameter(p, opt):
    """Of a plain parameter whose state is of a DTensor."""
    opt.param_groups[0]["params"][0] = q = torch.nn.Parameter(p.detach().to_local())
    q.grad = torch.ones_like(q)
    opt.state[q] = opt.state.pop(p)


def other_placement(p, opt):
    state = opt.state[p]
    state["exp_avg"] = state["exp_avg"].redistribute(placements=[Replicate()])


def plain_moment(p, opt):
    opt.state[p]["exp_avg_sq"] = opt.state[p]["exp_avg_sq"].to_local()


def plain_gradient(p, opt):
    p.grad = p.grad.to_local()


def gradient_of_a_dtensor(p, opt):
    """Of a plain parameter without state."""
    opt.param_groups[0]["params"][0] = q = torch.nn.Parameter(p.detach().to_local())
    q.grad = p.grad


CHANGES = [
    *(plain_parameter, other_placement, plain_moment),
    *(plain_gradient, gradient_of_a_dtensor),
]


@needs_gloo
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_are_not_divided_in_one_way_are_refused(mesh, change):
    (p,), opt = trained(mesh, state_dtype="bfloat16")
    before = p.detach().clone()
    change(p, opt)
    with pytest.raises(TypeError, match=r"requires dense .*unsupported: parameters \[?0"):
        opt.step()
    assert torch.equal(p.to_local(), before.to_local())


# ---------------------------------------------------------------------------- random numbers


def prepared(p, state, offsets=None):
    step = PreparedStep(EXCHANGE, {"m": "m", "v": "v"}, state_format="bfloat16", seed=0)
    p.grad = state["grad"]
    hyper = (1e-2, (0.9, 0.999), 1e-8, 0.0, (None,) * 2)
    step.offsets = offsets
    assert step.prepare([p], {p: state}, hyper, maximize=False, num_threads=1)
    return step


def new_state(size):
    state = {"grad": draw((size,), 2), "step": torch.zeros(())}
    return state | {name: torch.zeros(size, dtype=torch.bfloat16) for name in "mv"}


def test_parts_have_the_random_numbers_of_the_whole():
    p, state = draw((700,), 1), new_state(700)
    parts = [slice(0, 300), slice(300, 700)]
    others = [
        (p[part].clone(), {k: x[part].clone() if x.ndim else x.clone() for k, x in state.items()})
        for part in parts
    ]
    step_all([prepared(p, state)], [increment_version])
    for part, (other, its_state) in zip(parts, others, strict=True):
        step_all([prepared(other, its_state, offsets=[part.start])], [increment_version])
        for name in "mv":
            assert torch.equal(state[name][part], its_state[name])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 0], "offsets must have 1 entries; got 2"),
        ([-1], "offsets must be at least 0; got -1"),
    ],
)
def test_wrong_offsets(offsets, message):
    with pytest.raises(ValueError, match=message):
        prepared(draw((8,), 1), new_state(8), offsets=offsets)


# ---------------------------------------------------------------------------- state dicts


def scale_shapes(state):
    return [tuple(x.shape) for name, x in state.items() if name.endswith("_shard_scale")]


@needs_gloo
def test_scales_are_placed_like_the_parameter(mesh):
    _, opt = trained(mesh, (3, 512), (3, 100), (300,), state_dtype="8bit")
    states = opt.state_dict()["state"]
    assert [scale_shapes(states[i]) for i in range(3)] == [
        [(3, 2)] * 2,
        [(3, 25)] * 2,
        [(300, 1)] * 2,
    ]


@needs_gloo
def test_an_earlier_state_dict_keeps_moments_with_their_scales(mesh):
    """A tensor that is copied beside one that later steps change would make no sense."""
    _, opt = trained(mesh, (300,), state_dtype="8bit")
    earlier = opt.state_dict()["state"][0]
    copies = {name: x.clone() for name, x in earlier.items() if name != "step"}
    opt.step()
    for name, x in copies.items():
        assert torch.equal(earlier[name].to_local(), x.to_local())


@needs_gloo
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
def test_other_memory_orders(mesh, state_dtype):
    p = torch.nn.Parameter(DTensor.from_local(draw((30, 20), 1).t(), mesh, [Replicate()]))
    assert p.stride() == p.to_local().stride() == (1, 20)
    opt = AdamW([p], state_dtype=state_dtype)
    p.grad = p.detach().clone()
    opt.step()
    before = {name: x.clone() for name, x in opt.state[p].items()}
    opt.load_state_dict(opt.state_dict())
    for name, x in opt.state[p].items():
        assert x.stride() == before[name].stride()
        assert torch.equal(local_of(x), local_of(before[name]))


@needs_gloo
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
def test_a_parameter_of_the_shape_of_its_count_of_steps(mesh, state_dtype):
    p = parameter_on(mesh, (), Replicate())
    opt = AdamW([p], state_dtype=state_dtype)
    p.grad = parameter_on(mesh, (), Replicate()).detach()
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert type(opt.state[p]["step"]) is torch.Tensor
    opt.step()
    assert opt.state[p]["step"] == 2


@needs_gloo
@pytest.mark.parametrize("shape", [(3, 100), (0, 100)])
def test_scales_of_another_parameter_are_refused(mesh, shape):
    (p,), opt = trained(mesh, shape, state_dtype="8bit")
    _, other = trained(mesh, (2, 100), state_dtype="8bit")
    before = opt.state[p]["exp_avg_shard_scale"].clone()
    saved = opt.state_dict()
    wrong = other.state_dict()["state"][0]["exp_avg_shard_scale"]
    saved["state"][0] = {**saved["state"][0], "exp_avg_shard_scale": wrong}
    expected = r"exp_avg_shard_scale must have a scale for each block .*; got DTensor of shape .*, "
    with pytest.raises(ValueError, match=expected + r"placed \(Shard\(dim=0\),\)$"):
        opt.load_state_dict(saved)
    saved["state"][0]["exp_avg_shard_scale"] = [1.0]
    with pytest.raises(ValueError, match=r"exp_avg_shard_scale must have .*; got list$"):
        opt.load_state_dict(saved)
    assert torch.equal(opt.state[p]["exp_avg_shard_scale"], before)


@needs_gloo
def test_scales_that_do_not_divide_the_elements_equally_are_refused(mesh):
    _, opt = trained(mesh, (300,), state_dtype="8bit")
    saved = opt.state_dict()
    saved["state"][0] = {**saved["state"][0], "exp_avg_shard_scale": torch.ones(149)}
    with pytest.raises(ValueError, match=r"exp_avg_shard_scale must have .*; got Tensor of shape"):
        opt.load_state_dict(saved)


@needs_gloo
def test_divided_scales_of_a_plain_parameter_are_refused(mesh):
    _, opt = trained(mesh, state_dtype="8bit")
    saved = opt.state_dict()
    p = torch.nn.Parameter(draw((3, 100), 1))
    other = AdamW([p], state_dtype="8bit")
    with pytest.raises(ValueError, match=r"_shard_scale must have .*; got DTensor of shape"):
        other.load_state_dict(saved)
    assert not other.state[p]


@needs_gloo
def test_moments_placed_otherwise_are_placed_like_the_parameter_when_loaded(mesh):
    (p,), opt = trained(mesh)
    saved = opt.state_dict()
    moved = saved["state"][0]["exp_avg"].redistribute(placements=[Replicate()])
    saved["state"][0] = {**saved["state"][0], "exp_avg": moved}
    opt.load_state_dict(saved)
    assert opt.state[p]["exp_avg"].placements == p.placements


@needs_gloo
def test_the_reason_names_what_differs_in_scales(mesh):
    (p,), opt = trained(mesh, state_dtype="8bit")
    opt.state[p]["exp_avg_shard_scale"] = opt.state[p]["exp_avg_shard_scale"].double()
    with pytest.raises(TypeError, match=r"with exp_avg_shard_scale of dtype torch\.float64"):
        opt.step()


@needs_gloo
def test_moments_without_the_parameter_s_placement_are_refused(mesh):
    _, opt = trained(mesh, state_dtype="8bit")
    saved = opt.state_dict()
    state = saved["state"][0]
    saved["state"][0] = {**state, "exp_avg_code": state["exp_avg_code"].to_local()[:1]}
    with pytest.raises(ValueError, match="exp_avg_code must be placed like its parameter; got"):
        opt.load_state_dict(saved)


# ---------------------------------------------------------------------------- documentation


@needs_gloo
def test_the_example_of_the_documentation(mesh):
    text = (Path(__file__).parents[2] / "docs/distributed-tensors.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    model.forward = lambda x: model.layers[1](model.layers[0](x))
    names = {"model": model, "mesh": mesh, "inputs": torch.ones(3, 4), "torch": torch}
    exec(example, names | {"fully_shard": fully_shard, "fused_adamw": fused_adamw})
    (weight, *_) = model.parameters()
    assert isinstance(weight, DTensor)
