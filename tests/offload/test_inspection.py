"""What ran, counts of steps that are no tensors, and state of PyTorch's class, on a device."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import on_device  # noqa: E402

from fused_adamw import offload  # noqa: E402
from fused_adamw.torch import GroupPath  # noqa: E402


def parameter(dtype=torch.float32):
    p = torch.nn.Parameter(torch.ones(300, dtype=dtype))
    p.grad = torch.full_like(p, 0.5)
    return p


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_what_is_offloaded_is_stepped_by_the_kernels(max_grad_norm):
    p, without = parameter(), parameter()
    without.grad = None
    opt = on_device([{"params": [p]}, {"params": [without]}], max_grad_norm=max_grad_norm)
    assert opt.last_path == []
    opt.step()
    assert opt.last_path == [GroupPath("kernels"), GroupPath("none")]
    assert opt.state_nbytes == 8 * 300
    p.grad, without.grad = None, torch.ones_like(without)
    opt.step()
    assert opt.last_path == [GroupPath("none"), GroupPath("kernels")]


@pytest.mark.parametrize("shape", [(300,), (0,)])
def test_a_default_device_is_not_that_of_the_state(shape):
    p = torch.nn.Parameter(torch.ones(shape))
    torch.set_default_device("meta")
    try:
        opt = on_device([p], lr=0.5, weight_decay=0.0)
        p.grad = torch.ones_like(p)
        opt.step()
    finally:
        torch.set_default_device(None)
    assert torch.equal(p, torch.full(shape, 0.5))
    assert {x.device.type for x in opt.state[p].values()} == {"cpu"}


@pytest.mark.parametrize("count", [3, 3.0, None])
def test_a_count_of_steps_that_is_a_number(count):
    p = parameter()
    opt = on_device([p])
    opt.step()
    opt.state[p]["step"] = count
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="`state_steps` argument must contain a list of single"):
        opt.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
def test_state_of_pytorch_s_class(state_dtype, ema_decay):
    p = parameter(torch.bfloat16)
    theirs = torch.optim.AdamW([p])
    theirs.step()
    saved = copy.deepcopy(theirs.state_dict())
    opt = on_device([p], state_dtype=state_dtype, ema_decay=ema_decay)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match="convert=True"):
        opt.load_state_dict(saved, convert=False)
    assert opt.state_dict() == before
    with pytest.warns(UserWarning, match="state_dict was converted") as caught:
        opt.load_state_dict(saved)
    assert [x.filename for x in caught] == [__file__]
    assert opt.param_groups[0]["state_dtype"] == state_dtype
    assert opt.param_groups[0]["master_weights"] is True
    opt.step()
    assert opt.state[p]["step"] == 2
    out = opt.state_dict(format="torch")
    assert out["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    theirs.load_state_dict(out)
    theirs.step()
    assert theirs.state[p]["step"] == 3


MIB = 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "slot"),
    [
        (4, MIB // 8),  # 16,384 elements of 8 bytes
        (MIB // 8 + 4, MIB // 4),
        (MIB, MIB),
        (MIB + 4, 2 * MIB),
        (8 * MIB, 8 * MIB),
        (40 * MIB, 8 * MIB),
    ],
)
def test_pinned_memory_is_that_of_the_model_or_128_mebibytes(nbytes, slot):
    """Two rings of 8 slots, each a power of two."""
    params = [torch.nn.Parameter(torch.zeros(nbytes // 4))]
    with offload.simulated():
        opt = offload.AdamW(params)
    assert opt.pinned_nbytes == 2 * 8 * slot
    assert offload.AdamW(params).pinned_nbytes == 0  # of parameters on the CPU
