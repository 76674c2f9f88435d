"""Updates that begin during backward."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import Beside, Net, Recorder, on_device  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402


def train_overlapped(net, opt, other, recorder, steps=3, parts=1):
    for step in range(steps):
        for part in range(parts - 1):
            net.loss(100 * step + part).backward()
        with opt.overlapped():
            net.loss(100 * step + 99).backward()
        opt.step()
        other.step(recorder.take())
        opt.zero_grad()
    other.assert_equal(opt)


def trained_net(*, parts=1, lane_seed=0, slots=2, **options):
    net = Net()
    params = list(net.parameters())
    other, recorder = Beside(params, lr=1e-2, **options), Recorder(params)
    opt = on_device(params, lr=1e-2, lane_seed=lane_seed, slots=slots, **options)
    train_overlapped(net, opt, other, recorder, parts=parts)
    return net, opt


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("state_dtype", "master_weights"), [("float32", True), ("8bit", True), ("8bit", False)]
)
def test_the_bits_of_the_class_for_numpy(state_dtype, master_weights, parts):
    trained_net(state_dtype=state_dtype, master_weights=master_weights, parts=parts)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**30), slots=st.sampled_from([1, 2, 8]))
def test_any_delays(seed, slots):
    trained_net(lane_seed=seed, slots=slots)


SIZES = [(), (7,), (300, 130), (70_001,), (0,), (40_000,)]


@settings(max_examples=20)
@given(
    order=st.permutations(range(len(SIZES))),
    seed=st.integers(0, 2**30),
    slots=st.sampled_from([1, 2, 4]),
    state_dtype=st.sampled_from(["float32", "8bit"]),
    max_grad_norm=st.sampled_from([None, 1.0]),
)
def test_any_order_of_gradients(order, seed, slots, state_dtype, max_grad_norm):
    numbers = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(s).bfloat16()) for s in SIZES]
    options = {"lr": 1e-2, "state_dtype": state_dtype}
    other = Beside(params, own={"max_grad_norm": max_grad_norm}, **options)
    opt = on_device(params, lane_seed=seed, slots=slots, max_grad_norm=max_grad_norm, **options)
    for _ in range(2):
        grads = [torch.randn(s, generator=numbers).bfloat16() for s in SIZES]
        with opt.overlapped():
            for i in order:
                (params[i] * grads[i]).sum().backward()
        norm = other.step()
        opt.step()
        assert opt.grad_norm == norm
        opt.zero_grad()
    other.assert_equal(opt)


def test_an_update_begins_before_the_end_of_backward():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    begun = []

    def note(p):
        begun.append(int(opt.state[net.outer.weight].get("step", 0)))

    net.embedding.weight.register_post_accumulate_grad_hook(note)
    with opt.overlapped():
        net.loss(0).backward()
    assert begun == [1]
    opt.step()
    assert {int(entry["step"]) for entry in opt.state.values()} == {1}


def test_what_backward_did_not_reach_is_updated_by_the_step():
    net = Net()
    params = list(net.parameters())
    other, opt = Beside(params, lr=1e-2), on_device(params, lr=1e-2)
    recorder = Recorder(params)
    net.unused.grad = torch.full_like(net.unused, 0.5)
    with opt.overlapped():
        net.loss(0).backward()
    opt.step()
    grads = recorder.take()
    grads[[p is net.unused for p in params].index(True)] = net.unused.grad
    other.step(grads)
    other.assert_equal(opt)


class Checkpointed(Net):
    reentrant, uses = False, 2

    def forward(self, tokens):
        x = self.embedding(tokens)
        for _ in range(self.uses):
            x = x + checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(x)

    def block(self, x):
        return self.outer(torch.relu(self.inner(self.norm(x))))


@pytest.mark.parametrize(("reentrant", "uses"), [(False, 2), (True, 1)])
def test_checkpoints_that_give_one_gradient(reentrant, uses):
    net = Checkpointed()
    net.reentrant, net.uses = reentrant, uses
    params = list(net.parameters())
    other, recorder = Beside(params, lr=1e-2), Recorder(params)
    opt = on_device(params, lr=1e-2)
    train_overlapped(net, opt, other, recorder, steps=2)


def test_a_second_gradient_is_refused():
    net = Checkpointed()
    net.reentrant = True
    opt = on_device(net.parameters(), lr=1e-2)
    with (
        pytest.raises(RuntimeError, match=r"parameter \d+ must have one gradient") as raised,
        opt.overlapped(),
    ):
        net.loss(0).backward()
    assert any("have begun this step" in note for note in raised.value.__notes__)


class StopError(Exception):
    pass


def test_an_exception_in_backward():
    """The next step updates the parameters that have not been."""
    net = Net()
    params = list(net.parameters())
    other, recorder = Beside(params, lr=1e-2), Recorder(params)
    opt = on_device(params, lr=1e-2)

    def stop(_):
        raise StopError

    handle = net.norm.weight.register_post_accumulate_grad_hook(stop)
    with pytest.raises(StopError) as raised, opt.overlapped():
        net.loss(0).backward()
    handle.remove()
    assert "load_state_dict() discards it" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"overlapped\(\) must be entered between steps"):
        opt.overlapped()
    first = recorder.take()
    opt.zero_grad()
    net.loss(1).backward()
    rest = recorder.take()
    for p, grad in zip(params, first, strict=True):
        if grad is not None and p is not net.norm.weight:
            p.grad = None
    opt.step()
    both = [g if g is not None and p is not net.norm.weight else h
            for p, g, h in zip(params, first, rest, strict=True)]  # fmt: skip
    other.step(both)
    other.assert_equal(opt)
    opt.zero_grad()
    train_overlapped(net, opt, other, recorder, steps=1)


def test_loading_discards_a_step_that_has_begun():
    net, opt = trained_net()
    saved, weights = opt.state_dict(), {k: x.clone() for k, x in net.state_dict().items()}
    saved = {**saved, "state": {k: {n: x.clone() for n, x in e.items()}
                                for k, e in saved["state"].items()}}  # fmt: skip
    with opt.overlapped():
        net.loss(1).backward()
    opt.load_state_dict(saved)
    net.load_state_dict(weights)
    assert {int(entry["step"]) for entry in opt.state_dict()["state"].values()} == {3}
    opt.zero_grad()
    with opt.overlapped():
        net.loss(1).backward()
    opt.step()


def test_the_hooks_end_with_the_block():
    net = Net()
    opt = on_device(net.parameters(), lr=1e-2)
    with opt.overlapped():
        pass
    net.loss(0).backward()
    assert not opt.state
    opt.step()
    assert len(opt.state) > 5


def test_a_gradient_that_lies_before_all_parameters():
    memory = torch.zeros(20)
    p = torch.nn.Parameter(memory[10:])
    p.grad = memory[:10]
    opt = on_device([p], lr=1e-2)
    with opt.overlapped():
        (3 * p).sum().backward()
    opt.step()
    assert (memory[:10] == 3).all()
    assert (p < 0).all()
