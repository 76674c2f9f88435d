"""``max_grad_norm``, also overlapped with backward, and with the next forward (``module``)."""

import time
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Beside, Net, Recorder, on_device, parameter, steps  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from fused_adamw import offload  # noqa: E402
from fused_adamw._offload.lanes import Way  # noqa: E402

CLIP = 0.05  # below the norm of Net's gradients


def train(net, opt, other, recorder, *, overlapped, steps=4):
    """The norms of the steps."""
    norms = []
    for step in range(steps):
        loss = net.loss(step)
        if overlapped:
            with opt.overlapped():
                loss.backward()
        else:
            loss.backward()
        opt.step()
        norms.append((opt.grad_norm, other.step(recorder.take())))
        opt.zero_grad()
    other.assert_equal(opt)
    return norms


@pytest.mark.parametrize("with_module", [False, True])
@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, CLIP, 1e9])
@pytest.mark.parametrize("slots", [1, 4])
def test_the_bits_of_the_class_for_numpy(slots, max_grad_norm, overlapped, with_module):
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": max_grad_norm})
    recorder = Recorder(params)
    module = net if with_module else None
    opt = on_device(
        params, lr=1e-2, slots=slots, delay=2e-4, max_grad_norm=max_grad_norm, module=module
    )
    norms = train(net, opt, other, recorder, overlapped=overlapped)
    if max_grad_norm is not None:
        assert all(own == expected for own, expected in norms)
        assert norms[0][0] > CLIP


@pytest.mark.parametrize("max_grad_norm", [None, CLIP])
def test_what_goes_to_the_host_during_backward(max_grad_norm):
    """Gradients, and parameters with them where the updates begin too."""
    params = [torch.nn.Parameter(torch.ones(n)) for n in (5, 70_000)]
    lane = offload.CpuLane()
    with offload.simulated(lane):
        opt = offload.AdamW(params, max_grad_norm=max_grad_norm)
    with opt.overlapped():
        sum(p.sum() for p in params).backward()
    pump = opt._engine()._pump()
    while pump.is_busy():
        time.sleep(1e-3)
    nbytes = sum(p.nbytes for p in params)
    assert lane.num_bytes[Way.TO_HOST] == (2 * nbytes if max_grad_norm is None else nbytes)
    opt.step()
    opt.synchronize()
    assert lane.num_bytes[Way.TO_DEVICE] == nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_norm_of_gradients_that_come_in_several_pieces(dtype):
    numbers = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (5, 150_001, 40_000)]
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    opt = on_device(params, lr=1e-2, max_grad_norm=CLIP)
    for _ in range(2):
        for p in params:
            p.grad = torch.randn(p.shape, generator=numbers).to(dtype)
        norm = other.step()
        opt.step()
        assert opt.grad_norm == norm
    other.assert_equal(opt)


@pytest.mark.parametrize("overlapped", [False, True])
def test_parameters_on_the_host_are_clipped_with_the_others(overlapped):
    """Some parameters are on the CPU, where there is no lane."""
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    recorder = Recorder(params)
    opt = on_device(params, lr=1e-2, max_grad_norm=CLIP)
    lanes, simulated = opt._engine().lanes, opt._engine().lanes.simulated
    lanes.of = lambda p: None if p is net.inner.weight else simulated
    train(net, opt, other, recorder, overlapped=overlapped)


def test_without_a_device_the_class_clips_too():
    from fused_adamw import offload

    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    recorder = Recorder(params)
    train(net, offload.AdamW(params, lr=1e-2, max_grad_norm=CLIP), other, recorder, overlapped=True)


def test_a_gradient_that_changes_after_the_block_is_summed_again():
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    opt = on_device(params, lr=1e-2, max_grad_norm=CLIP)
    with opt.overlapped():
        net.loss(0).backward()
        net.loss(1).backward()
    net.norm.weight.grad.mul_(3)
    assert other.step() is not None
    opt.step()
    other.assert_equal(opt)


def test_a_norm_of_infinity_has_the_bits_of_the_class_for_numpy():
    net = Net()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    opt = on_device(params, lr=1e-2, max_grad_norm=CLIP)
    net.loss(0).backward()
    net.scale.grad.fill_(float("inf"))
    other.step()
    opt.step()
    assert opt.grad_norm == float("inf")
    other.assert_equal(opt)


class Reader(Net):
    """Reads a weight of a module without its forward, as ``torch.nn.MultiheadAttention`` does."""

    def forward(self, tokens):
        return super().forward(tokens) + self.extra.weight.sum()

    def __init__(self):
        super().__init__()
        self.extra = torch.nn.Linear(3, 3, dtype=torch.bfloat16)


def test_weights_that_are_read_without_the_forward_of_their_module():
    net = Reader()
    params = list(net.parameters())
    other = Beside(params, lr=1e-2, own={"max_grad_norm": CLIP})
    recorder = Recorder(params)
    opt = on_device(params, lr=1e-2, delay=1e-3, max_grad_norm=CLIP, module=net)
    train(net, opt, other, recorder, overlapped=True)
    net.loss(4).backward()
    opt.step()
    net.norm(torch.zeros(1, 24, dtype=torch.bfloat16))
    assert net.extra.weight in opt._engine().pending  # the whole model waits for it
    net.loss(5)
    assert net.extra.weight not in opt._engine().pending


def test_bad_arguments():
    net = Net()
    for bad, error in ((0.0, ValueError), (-1.0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="max_grad_norm must be"):
            on_device(net.parameters(), max_grad_norm=bad)
    with pytest.raises(TypeError, match="module must be None or"):
        on_device(net.parameters(), module="net")
    averaged = DistributedDataParallel.__new__(DistributedDataParallel)  # needs no processes
    torch.nn.Module.__init__(averaged)
    averaged.module, averaged.gradient_as_bucket_view = net, True
    with pytest.raises(ValueError, match="gradient_as_bucket_view of module must be False"):
        on_device(net.parameters(), module=averaged)
    averaged.gradient_as_bucket_view = False
    on_device(net.parameters(), module=averaged)


@pytest.mark.parametrize("unscales", [False, True])
def test_the_norm_is_of_gradients_that_grad_scaler_has_divided(unscales):
    """No version counts its division, before which the norm has begun. Or the optimizer divides."""
    results = []
    for overlapped in (False, True):
        net = Net(torch.float32)
        opt = on_device(net.parameters(), lr=1e-2, max_grad_norm=CLIP)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with opt.overlapped() if overlapped else nullcontext():
            scaler.scale(net.loss(0)).backward()
        if overlapped:
            time.sleep(0.2)  # most often, the gradients are on the host by then
        if unscales:
            scaler.unscale_(opt)
        scaler.step(opt)
        results.append((opt.grad_norm, [p.detach() for p in net.parameters()]))
    (norm, params), (other_norm, other_params) = results
    assert norm == other_norm
    assert all(map(torch.equal, params, other_params))


def test_a_number_that_is_refused_leaves_the_norm_of_the_last_step():
    p = parameter(shape=(4,))
    opt = on_device([p], lr=1e-2, max_grad_norm=1.0)
    steps(opt, p, count=1)
    before, opt.max_grad_norm = opt.grad_norm, -1.0
    p.grad = torch.full_like(p, 3.0)
    with pytest.raises(ValueError, match="max_grad_norm must be"):
        opt.step()
    assert opt.grad_norm == before
