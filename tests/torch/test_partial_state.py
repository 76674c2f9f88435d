"""State dicts that hold the state of some of the parameters."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.10")
state_dicts = pytest.importorskip("torch.distributed.checkpoint.state_dict")

from torch_ranks import needs_gloo, only_rank  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

KINDS = [
    (torch.float32, {}),
    (torch.float32, {"ema_decay": 0.9}),
    (torch.float32, {"state_dtype": "8bit"}),
    (torch.float16, {"master_weights": True, "eps": 1e-3}),
    (torch.bfloat16, {"master_weights": True, "state_dtype": "8bit"}),
]
SOME = state_dicts.StateDictOptions(full_state_dict=True, strict=False)
pytestmark = needs_gloo


def made(dtype, options):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(5, 3), "b": torch.nn.Linear(3, 8)})
    model.to(dtype)
    return model, AdamW(model.parameters(), lr=1e-2, **options)


def step(model, opt, layers=("a", "b")):
    for layer in layers:
        for p in model[layer].parameters():
            p.grad = p.detach().cos()
    opt.step()
    opt.zero_grad()


@pytest.mark.parametrize(("dtype", "options"), KINDS, ids=str)
def test_a_parameter_without_saved_state_starts_anew(tmp_path, dtype, options):
    """It has none where it was not used before. PyTorch makes state for all, with the weights of
    that moment, which may be loaded later."""
    model, opt = made(dtype, options)
    step(model, opt, "a")
    with only_rank(tmp_path):
        saved = copy.deepcopy(state_dicts.get_optimizer_state_dict(model, opt, options=SOME))
        resumed, other = made(dtype, options)
        with torch.no_grad():
            for p in resumed.parameters():
                p.fill_(5.0)
        state_dicts.set_optimizer_state_dict(resumed, other, saved, options=SOME)
        resumed.load_state_dict(model.state_dict())
        step(model, opt)
        step(resumed, other)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
        for name, x in opt.state[p].items():
            assert torch.equal(other.state[q][name], x), name


@pytest.mark.parametrize(("dtype", "options"), KINDS, ids=str)
def test_state_of_a_training_run_stays_where_nothing_was_saved(tmp_path, dtype, options):
    model, opt = made(dtype, options)
    step(model, opt, "a")
    with only_rank(tmp_path):
        saved = copy.deepcopy(state_dicts.get_optimizer_state_dict(model, opt, options=SOME))
        resumed, other = made(dtype, options)
        step(resumed, other)
        before = copy.deepcopy([other.state[p] for p in resumed["b"].parameters()])
        state_dicts.set_optimizer_state_dict(resumed, other, saved, options=SOME)
    for p, entry in zip(resumed["b"].parameters(), before, strict=True):
        assert other.state[p].keys() == entry.keys()
        for name, x in entry.items():
            assert torch.equal(other.state[p][name], x), name
