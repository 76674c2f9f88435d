"""Real copies, where there is a device; else the same with the CPU as one."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Beside, Net, Recorder, on_device  # noqa: E402

from fused_adamw import offload  # noqa: E402

HAS_DEVICE = torch.accelerator.is_available()
DEVICES = ["simulated", *(["real"] if HAS_DEVICE else [])]


def optimizer(device, params, **options):
    if device == "simulated":
        return on_device(params, **options)
    return offload.AdamW(params, **options)


def net_on(device):
    net = Net()
    return net if device == "simulated" else net.to(torch.accelerator.current_accelerator())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("mode", ["plain", "overlapped", "clipped", "clipped overlapped module"])
def test_the_bits_of_the_class_for_numpy(mode, state_dtype, device):
    net = net_on(device)
    params = list(net.parameters())
    options = {"max_grad_norm": 0.05 if "clipped" in mode else None}
    other = Beside(params, lr=1e-2, state_dtype=state_dtype, own=options)
    recorder = Recorder(params)
    options |= {"module": net if "module" in mode else None, "state_dtype": state_dtype}
    opt = optimizer(device, params, lr=1e-2, **options)
    for step in range(4):
        loss = net.loss(step)
        if "overlapped" in mode:
            with opt.overlapped():
                loss.backward()
        else:
            loss.backward()
        opt.step()
        norm = other.step(recorder.take())
        assert opt.grad_norm == norm
        opt.zero_grad()
    other.assert_equal(opt)


@pytest.mark.skipif(not HAS_DEVICE, reason="needs an accelerator")
def test_memory_of_the_device():
    """Loading and steps allocate little there."""
    device = torch.accelerator.current_accelerator()
    p = torch.nn.Parameter(torch.zeros(1 << 26, dtype=torch.bfloat16, device=device))
    p.grad = torch.ones_like(p)
    opt = offload.AdamW([p], lr=1e-2)
    opt.step()
    torch.accelerator.synchronize()
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    opt.load_state_dict(opt.state_dict())
    opt.step()
    torch.accelerator.synchronize()
    assert torch.accelerator.max_memory_allocated() - before <= 64 << 20
