"""Signal handlers that raise in ``step`` and ``load_state_dict``."""

import copy
import io
import signal

import pytest
from alarms import assert_unlocked, attack

torch = pytest.importorskip("torch", minversion="2.10")

from torch_ranks import only_rank  # noqa: E402

from fused_adamw._torch import local_shards  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

pytestmark = pytest.mark.slow

OPTIONS = [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}, {"amsgrad": True, "fused": True}]


class Special(torch.nn.Parameter):
    """Of a class of its own, which no kernel supports."""


def made(groups=20, **options):
    """A group for each layer, one of which the kernels do not support."""
    random = torch.Generator().manual_seed(0)

    def parameter(k):
        kind = torch.nn.Parameter if k or "state_dtype" in options else Special
        p = kind(torch.randn(30, generator=random))
        p.grad = torch.randn(30, generator=random)
        return p

    first = 1 if "ema_decay" in options else 0
    layers = [{"params": [parameter(k)]} for k in range(first, groups)]
    return AdamW(layers, lr=0.1, **options)


def contents(opt):
    def of(x):
        return x.detach().view(torch.uint8).numpy().tobytes() if x.ndim else x.item()

    state = opt.state_dict()["state"]
    params = [of(p) for group in opt.param_groups for p in group["params"]]
    return (
        params,
        {i: {name: of(x) for name, x in entry.items()} for i, entry in state.items()},
        [group["lr"] for group in opt.param_groups],
    )


def step_number(opt):
    state = opt.state_dict()["state"]
    return int(state[0]["step"]) if state else 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("groups", [2, 20])
def test_an_interrupted_step_steps_all_groups_or_none(options, groups):
    opt, reference = made(groups, **options), made(groups, **options)

    def check(_):
        while step_number(reference) < step_number(opt):
            reference.step()
        assert contents(opt) == contents(reference)
        assert_unlocked(opt)

    attack([opt.step], check, 200)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_interrupted_first_step_can_be_repeated(options):
    reference = made(**options)
    reference.step()
    expected = contents(reference)

    def first_step():
        made(**options).step()

    unfinished = []

    def interrupted():
        opt = made(**options)
        unfinished[:] = [opt]
        opt.step()

    def check(_):
        (opt,) = unfinished
        state = opt.state_dict()["state"]
        if not state or int(state[max(state)]["step"]) == 0:
            opt.step()
        assert contents(opt) == expected

    first_step()
    attack([interrupted], check, 100)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_interrupted_load_state_dict_loads_all_or_nothing(options):
    opt, states, loaded = made(**options), [], []
    for _ in range(2):
        opt.step()
        for group in opt.param_groups:
            group["lr"] *= 0.5
        states.append(copy.deepcopy(opt.state_dict()))
    for state in states:
        opt.load_state_dict(state)
        loaded.append(contents(opt)[1:])

    def check(_):
        assert contents(opt)[1:] in loaded
        assert_unlocked(opt)

    attack([lambda s=s: opt.load_state_dict(s) for s in states], check, 200)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded_again = made(**options)
    loaded_again.load_state_dict(torch.load(file))
    assert contents(loaded_again)[1:] == contents(opt)[1:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_versions_of_dtensors_are_incremented_before_a_handler_raises(tmp_path, monkeypatch):
    """In all groups: autograd would not notice that the others have changed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    increment = local_shards.increment_version

    def increment_after_signal(params):
        signal.raise_signal(signal.SIGINT)
        increment(params)

    with only_rank(tmp_path):
        mesh = init_device_mesh("cpu", (1,))
        params = [
            torch.nn.Parameter(distribute_tensor(torch.ones(8), mesh, [Shard(0)])) for _ in range(2)
        ]
        opt = AdamW([{"params": [p]} for p in params])
        for p in params:
            p.grad = distribute_tensor(torch.ones(8), mesh, [Shard(0)])
        opt.step()
        before = [p._version for p in params]
        monkeypatch.setattr(local_shards, "increment_version", increment_after_signal)
        with pytest.raises(KeyboardInterrupt):
            opt.step()
    assert [p._version for p in params] == [version + 1 for version in before]
    assert all(opt.state[p]["step"] == 2 for p in params)
