"""What other code writes is noticed through changes of dtype, of groups, and in copies; and copies
that share an optimizer take turns."""

import copy
import pickle
import threading

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import SMALLEST, on_device, parameter, set_gradient, steps  # noqa: E402

from fused_adamw import offload  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16]
MAKE = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


def masters(opt, p):
    """In float32, from the parameter and, for bfloat16, the bits beyond it."""
    stored = opt.state[p]["master"]
    if p.dtype == torch.float16:
        return stored
    upper = p.detach().view(torch.int16).to(torch.int32) << 16
    return (upper + stored.view(p.shape).to(torch.int32)).view(torch.float32)


def assert_starts_from(opt, p, new, lr):
    """The next step moves every master weight by about lr from the parameter, no further."""
    with torch.no_grad():
        p.copy_(new)
    set_gradient(p, 5)
    opt.step()
    difference = masters(opt, p) - new.float()
    assert difference.abs().max() < 3 * lr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("through", MAKE)
def test_writes_after_copying(through, dtype):
    with offload.simulated():
        p = parameter(dtype)
        opt = offload.AdamW([p], lr=1e-4)
        steps(opt, p)
        opt, p = MAKE[through]((opt, p))
        opt.synchronize()
    assert_starts_from(opt, p, torch.full_like(p, 5.0), 1e-4)


@pytest.mark.parametrize("through", MAKE)
def test_master_weights_of_a_copy(through):
    """Without a write they go on from where they were."""
    with offload.simulated():
        p = parameter()
        opt = offload.AdamW([p], lr=1e-2)
        steps(opt, p)
        other, q = MAKE[through]((opt, p))
        other.synchronize()
    steps(opt, p, first=3)
    steps(other, q, first=3)
    assert torch.equal(p, q)
    assert torch.equal(opt.state[p]["master"], other.state[q]["master"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_in_another_dtype(dtype):
    p = parameter(dtype)
    opt = on_device([p], lr=1e-4)
    steps(opt, p)
    p.data = p.data.float() + 3
    steps(opt, p, first=2)
    p.data = p.data.to(dtype)
    assert_starts_from(opt, p, p.detach().clone(), 1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_place_among_the_groups(dtype):
    first, p = parameter(dtype), parameter(dtype, seed=1)
    opt = on_device([{"params": [first]}, {"params": [p]}], lr=1e-4)
    steps(opt, first, p)
    del opt.param_groups[0]
    assert_starts_from(opt, p, torch.full_like(p, 5.0), 1e-4)


def test_a_copy_that_shares_everything_steps_in_turn():
    def trained(shared):
        p = parameter()
        opt = on_device([p], lr=1e-2)
        other = opt
        for i in range(8):
            if shared and i == 2:
                other = copy.copy(opt)
            set_gradient(p, i)
            (other if i % 2 else opt).step()
        assert other.state is opt.state
        return p, opt.state[p]["master"]

    for x, y in zip(trained(False), trained(True), strict=True):
        assert torch.equal(x, y)


class SlowToOrder(offload.CpuLane):
    """Holds up one thread before it has noted that it waited for an update."""

    def __init__(self):
        super().__init__(0, 0.5)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def order(self, written):
        super().order(written)
        if threading.current_thread().name == "other" and not self.go_on.is_set():
            self.reached.set()
            self.go_on.wait(10)


def test_a_thread_that_synchronizes_while_the_next_step_begins():
    """What it has waited for is not taken for the next update, for which the forward then waits."""

    def made(lane):
        net = torch.nn.Linear(30, 30, bias=False)
        torch.nn.init.ones_(net.weight)
        with offload.simulated(lane, slots=2, slot_bytes=SMALLEST):
            return net, offload.AdamW(net.parameters(), lr=0.1, module=net)

    def step(net, opt):
        net(torch.ones(30)).sum().backward()
        opt.step()

    lane = SlowToOrder()
    net, opt = made(lane)
    step(net, opt)
    other = threading.Thread(target=opt.synchronize, name="other")
    other.start()
    assert lane.reached.wait(10)
    stepping = threading.Thread(target=step, args=(net, opt))
    stepping.start()
    stepping.join(0.2)  # it may have to wait for the other one
    lane.go_on.set()
    for thread in (other, stepping):
        thread.join(10)
    seen = net(torch.ones(30))

    net, opt = made(offload.CpuLane())
    for _ in range(2):
        step(net, opt)
    assert torch.equal(seen, net(torch.ones(30)))


@pytest.mark.parametrize("name", ["step", "refresh", "synchronize", "state_dict"])
def test_each_operation_waits(name):
    """For a block in which another thread has the optimizer."""
    p = parameter()
    opt = on_device([p], lr=1e-2)
    steps(opt, p)
    thread = threading.Thread(target=getattr(opt, name), daemon=True)
    with opt.exclusive():
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        getattr(opt, name)()  # the thread that has the block is not kept out
    thread.join(60)
    assert not thread.is_alive()
