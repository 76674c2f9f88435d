"""State whose elements lie in another order in memory than those of the parameter it is for."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch.distributed.tensor import Shard, distribute_tensor  # noqa: E402
from torch_ranks import needs_gloo  # noqa: E402

from fused_adamw._torch.dtensors import local_of, placed_like  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

KINDS = [
    (torch.float32, {}),
    (torch.float32, {"state_dtype": "float32"}),
    (torch.float32, {"ema_decay": 0.9}),
    (torch.float32, {"state_dtype": "bfloat16"}),
    (torch.float32, {"amsgrad": True}),
    (torch.bfloat16, {"state_dtype": "float32", "master_weights": True}),
]


def values(dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 5, 3, generator=generator).to(dtype)


def row_major(x):
    return x


def by_channels(x):
    return x.to(memory_format=torch.channels_last)


def divided(x, mesh):
    """A DTensor whose shard is not in row-major order."""
    return distribute_tensor(x.transpose(0, 3).contiguous(), mesh, [Shard(0)]).transpose(0, 3)


def trained(x, dtype, options):
    p = torch.nn.Parameter(x)
    opt = AdamW([p], lr=1e-2, **options)
    p.grad = x.detach().cos()
    opt.step()
    return p, opt


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def gathered(opt):
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0] = {name: whole(x).contiguous() for name, x in saved["state"][0].items()}
    return saved


def assert_continues(p, opt, expected):
    q, source = expected
    p.grad = p.detach().cos()
    q.grad = q.detach().cos()
    opt.step()
    source.step()
    assert opt.last_path[0].path == "kernels"
    assert torch.equal(whole(p.detach()), q.detach())
    for name, x in source.state[q].items():
        assert torch.equal(whole(opt.state[p][name]), x), name


@pytest.mark.parametrize(("dtype", "options"), KINDS, ids=str)
@pytest.mark.parametrize("orders", [(row_major, by_channels), (by_channels, row_major)])
def test_into_a_parameter_of_another_order(dtype, options, orders):
    options = options | {"seed": None} if "state_dtype" in options else options
    source, target = (order(values(dtype)) for order in orders)
    q, saved = trained(source, dtype, options)
    p, opt = trained(target, dtype, options)
    opt.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert_continues(p, opt, (q, saved))


@needs_gloo
@pytest.mark.parametrize(("dtype", "options"), KINDS, ids=str)
@pytest.mark.parametrize("from_divided", [False, True])
def test_into_a_shard_of_another_order(mesh, dtype, options, from_divided):
    options = options | {"seed": None} if "state_dtype" in options else options
    q, saved = trained(values(dtype), dtype, options)
    p, opt = trained(divided(values(dtype), mesh), dtype, options)
    assert not local_of(p).is_contiguous()
    opt.load_state_dict(gathered(opt if from_divided else saved))
    assert_continues(p, opt, (q, saved))


@needs_gloo
@pytest.mark.parametrize("source", [row_major, by_channels, divided])
@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_blocks_into_a_shard_of_another_order(mesh, source, state_dtype):
    """Blocks are of neighbors in memory. The moments come where their parameters are."""
    arguments = (mesh,) if source is divided else ()
    x = values(torch.float32)
    _, saved = trained(source(x, *arguments), torch.float32, {"state_dtype": "8bit"})
    state = gathered(saved) if source is divided else copy.deepcopy(saved.state_dict())
    _, opt = trained(divided(x, mesh), torch.float32, {"state_dtype": state_dtype})
    opt.load_state_dict(state)
    q, exact = trained(x, torch.float32, {"state_dtype": "float32"})
    plain, found = trained(x, torch.float32, {"state_dtype": "float32"})
    found.load_state_dict(gathered(opt))
    for name in ("exp_avg", "exp_avg_sq"):
        expected, value = exact.state[q][name], found.state[plain][name]
        assert (value - expected).norm() < 0.06 * expected.norm()


@needs_gloo
def test_a_step_of_pytorch_counts_as_a_change_of_the_dtensor(mesh):
    """And it is said why PyTorch took it."""
    p, opt = trained(divided(values(torch.float32), mesh), torch.float32, {})
    state = opt.state[p]
    state["exp_avg"] = placed_like(p, local_of(state["exp_avg"]).contiguous())
    loss, before = (p * p).sum(), p._version
    with pytest.warns(UserWarning, match="with exp_avg in a memory layout of its own"):
        opt.step()
    assert opt.last_path[0].path == "PyTorch"
    assert "with exp_avg in a memory layout of its own" in opt.last_path[0].reason
    assert p._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
