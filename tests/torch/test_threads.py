"""Threads that share an optimizer: each operation sees whole steps."""

import copy
import io
import pickle
import sys
import threading

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw.torch import AdamW  # noqa: E402

OPTIONS = [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}, {"fused": False}]


@pytest.fixture(autouse=True)
def short_turns():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def made(**options):
    """A group for each of several parameters, which are what the number of steps is."""
    params = [torch.nn.Parameter(torch.zeros(5)) for _ in range(8)]
    for p in params:
        p.grad = torch.ones(5)
    groups = [{"params": [p]} for p in params]
    return AdamW(groups, lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, **options)


def while_stepping(opt, action, times=30):
    """Call ``action`` while another thread steps; what that raises is raised."""
    ended, errors = threading.Event(), []

    def train():
        try:
            while not ended.is_set():
                opt.step()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(times):
            action()
    finally:
        ended.set()
        thread.join()
    assert errors == []


def steps_of(opt):
    """The counts of all parameters, and the steps that their values show."""
    params = [group["params"][0] for group in opt.param_groups]
    counts = {int(opt.state[p]["step"]) for p in params}
    return counts | {round(-p[0].item()) for p in params}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_deepcopy_is_of_whole_steps(options):
    opt = made(**options)
    opt.step()

    def check():
        assert len(steps_of(copy.deepcopy(opt))) == 1

    while_stepping(opt, check)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_written_in_an_exclusive_block_is_of_whole_steps(options):
    opt = made(**options)
    opt.step()

    def check():
        with opt.exclusive():
            state, pickled = io.BytesIO(), pickle.dumps(opt)
            torch.save(opt.state_dict(), state)
        assert len(steps_of(pickle.loads(pickled))) == 1
        state.seek(0)
        saved = torch.load(state, weights_only=True)["state"].values()
        assert len({int(entry["step"]) for entry in saved}) == 1

    while_stepping(opt, check, times=15)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loading_waits_for_a_step(options):
    """And a step for loading: afterwards all parameters have made the same number of steps."""
    opt = made(**options)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    while_stepping(opt, lambda: opt.load_state_dict(saved))
    counts = {int(entry["step"]) for entry in opt.state_dict()["state"].values()}
    assert len(counts) == 1


def test_two_threads_step():
    opt = made()
    while_stepping(opt, opt.step, times=200)
    assert len(steps_of(opt)) == 1


def test_each_operation_waits():
    opt = made()
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    operations = {
        "step": opt.step,
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "deepcopy": lambda: copy.deepcopy(opt),
        "add_param_group": lambda: opt.add_param_group({"params": [torch.nn.Parameter()]}),
        "step of a copy": copy.copy(opt).step,
    }
    for name, operation in operations.items():
        thread = threading.Thread(target=operation, daemon=True)
        with opt.exclusive():
            thread.start()
            thread.join(0.05)
            assert thread.is_alive(), name
            opt.step()  # the thread that has the block is not kept out
        thread.join(60)
        assert not thread.is_alive(), name


def test_a_copy_shares_everything():
    """As PyTorch's does: counts with moments, and state that comes later."""
    opt, expected = made(), made()
    other = copy.copy(opt)
    for _ in range(2):
        opt.step()
        other.step()
        expected.step()
        expected.step()
        assert steps_of(opt) == steps_of(other) == steps_of(expected)
    assert other.state is opt.state
    assert other.param_groups is opt.param_groups


@pytest.mark.parametrize("through", [pickle.dumps, copy.deepcopy])
def test_a_copy_has_a_lock_of_its_own(through):
    opt = made()
    opt.step()
    copied = through(opt)
    other = pickle.loads(copied) if isinstance(copied, bytes) else copied
    for group in other.param_groups:
        group["params"][0].grad = torch.ones(5)
    thread = threading.Thread(target=other.step, daemon=True)
    with opt.exclusive():
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert steps_of(other) == {2}
