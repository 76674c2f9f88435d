"""float32 gradients of parameters of 16 bits, which PyTorch 2.11 allows: used as they are, where
PyTorch's own class raises. The bits are the twin's."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.11")

from torch_ranks import needs_gloo, only_rank  # noqa: E402
from torch_state import DTYPES, as_array, draw, parameters  # noqa: E402
from twin_state import TensorTwin, raw  # noqa: E402

from fused_adamw import offload  # noqa: E402
from fused_adamw.torch import AdamW, GroupPath  # noqa: E402

NARROW = ["float16", "bfloat16"]
OPTIONS = [
    {},
    {"amsgrad": True},
    {"ema_decay": 0.5},
    {"state_dtype": "float32", "master_weights": True},
    {"state_dtype": "float32"},
    {"state_dtype": "bfloat16", "seed": 3},
    {"state_dtype": "8bit"},
    {"state_dtype": "8bit", "master_weights": True},
]
HYPER = {"lr": 1e-2, "eps": 1e-4}


def wide_parameters(dtype):
    params = parameters(DTYPES[dtype])
    for p in params:
        p.grad_dtype = torch.float32
    return params


def set_wide(params, seed):
    for p, g in zip(params, draw(seed), strict=True):
        p.grad = 0.1 * g
        assert p.grad.dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", NARROW)
def test_the_bits_of_the_twin(isa, dtype, options):
    params = wide_parameters(dtype)
    opt = AdamW(params, **HYPER, **options)
    stored = {} if "state_dtype" in options else {"state_dtype": dtype, "seed": None}
    twins = [TensorTwin(as_array(p), i, **(stored | options)) for i, p in enumerate(params)]
    for step in range(1, 4):
        set_wide(params, step)
        opt.step()
        for p, twin in zip(params, twins, strict=True):
            twin.step(as_array(p.grad), **HYPER)
    assert opt.last_path == [GroupPath("kernels")]
    for p, twin in zip(params, twins, strict=True):
        assert raw(as_array(p)).tobytes() == twin.params.tobytes()


def test_both_kinds_of_gradients_in_one_group():
    params = parameters(torch.bfloat16)
    others = parameters(torch.bfloat16)
    params[0].grad_dtype = torch.float32
    for p, q, g in zip(params, others, draw(5, torch.bfloat16), strict=True):
        p.grad, q.grad = (g.float() if p is params[0] else g), g
    for these in (params, others):
        AdamW(these, **HYPER).step()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_the_next_step_may_have_other_gradients():
    """Also where a step is taken as the last one."""
    (p,), (q,) = ([x] for x in (parameters(torch.bfloat16)[1], parameters(torch.bfloat16)[1]))
    p.grad_dtype = None
    opts = [AdamW([x], **HYPER) for x in (p, q)]
    for step, dtype in enumerate([torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]):
        q.grad = draw(step, torch.bfloat16)[1]
        p.grad = q.grad.to(dtype)
        for opt in opts:
            opt.step()
        assert torch.equal(p, q)


def test_a_gradient_that_shares_memory_is_found_up_to_its_end():
    memory = torch.zeros(600)
    p = torch.nn.Parameter(memory[300:].view(torch.bfloat16)[:300])
    p.grad_dtype = torch.float32
    p.grad = memory[50:350]
    before = p.detach().clone()
    with pytest.raises(TypeError, match=r"unsupported: parameters \[?0"):
        AdamW([p], state_dtype="8bit").step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_gradients_are_refused(dtype):
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    p.grad_dtype = dtype
    p.grad = torch.ones(8, dtype=dtype)
    with pytest.raises(TypeError, match=r"requires dense .* with gradients and state that match"):
        AdamW([p], state_dtype="8bit").step()
    opt, reason = AdamW([p]), f"with gradient of dtype {dtype} (1)"
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match=re.escape(reason)):
        opt.step()
    assert opt.last_path == [GroupPath("PyTorch", reason)]


def test_off_loading_refuses_them():
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    p.grad = torch.ones(8)
    with offload.simulated():
        opt = offload.AdamW([p])
    with pytest.raises(TypeError, match=r"the gradient of parameter 0 must .*float32"):
        opt.step()


@needs_gloo
def test_shards(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    with only_rank(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        q = torch.nn.Parameter(draw(1, torch.bfloat16)[0])
        p = torch.nn.Parameter(distribute_tensor(q.detach().clone(), mesh, [Shard(0)]))
        for x in (p, q):
            x.grad_dtype = torch.float32
        q.grad = draw(2)[0]
        p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        for x in (p, q):
            opt = AdamW([x], state_dtype="8bit", **HYPER)
            opt.step()
            assert opt.last_path == [GroupPath("kernels")]
        np.testing.assert_array_equal(as_array(p.to_local()), as_array(q))


def test_the_reason_of_a_fallback_is_not_a_gradient_that_is_supported():
    p = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    p.grad = torch.ones(4, 3)
    opt = AdamW([p])
    opt.step()
    opt.state[p]["exp_avg"] = torch.zeros(3, 4, dtype=torch.bfloat16).t()
    with (
        pytest.warns(UserWarning, match="with exp_avg in a memory layout of its own"),
        pytest.raises(RuntimeError, match="expected dtype"),  # from PyTorch's update
    ):
        opt.step()
