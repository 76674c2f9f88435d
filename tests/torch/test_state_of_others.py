"""State dicts of other optimizers and programs."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import assert_equal_tensors  # noqa: E402

from fused_adamw.torch import AdamW, GroupPath  # noqa: E402


def saved_by(kind, params, **options):
    opt = kind(params, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    return opt.state_dict()


def snapshot(opt):
    state = [x.clone() for p in opt.param_groups[0]["params"] for x in opt.state[p].values()]
    return copy.deepcopy({k: x for k, x in opt.param_groups[0].items() if k != "params"}), state


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam])
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "8bit"}, {"state_dtype": "float32"}, {"ema_decay": 0.5}]
)
def test_checkpoints_of_adam_are_continued_by_adamw(kind, options):
    """As by PyTorch's class, whose weight decay is decoupled whatever was saved."""
    params, expected = ([torch.nn.Parameter(torch.ones(300)) for _ in range(2)] for _ in range(2))
    saved = saved_by(kind, params, lr=0.01, weight_decay=0.1)
    saved_by(kind, expected, lr=0.01, weight_decay=0.1)
    ours, theirs = AdamW(params, **options), torch.optim.AdamW(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # into 8 bits
        ours.load_state_dict(copy.deepcopy(saved))
    theirs.load_state_dict(copy.deepcopy(saved))
    assert ours.param_groups[0]["decoupled_weight_decay"] is True
    ours.step()
    theirs.step()
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4 if options else 1e-6, atol=0)


def test_what_programs_keep_beside_the_state():
    params = [torch.nn.Parameter(torch.ones(300)) for _ in range(2)]
    opt = AdamW(params, state_dtype="8bit")
    opt.state["epoch"] = {"loss": torch.ones(9)}
    opt.state[params[1]] = "not trained yet"
    params[0].grad = torch.ones(300)
    opt.step()
    own = {name: x for name, x in opt.state[params[0]].items() if name != "step"}
    assert opt.state_nbytes == sum(x.nbytes for x in own.values())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "8bit"}, {"state_dtype": "float32"}, {"ema_decay": 0.5}]
)
def test_counts_of_steps_in_other_dtypes(options, dtype):
    params = [torch.nn.Parameter(torch.ones(300)) for _ in range(2)]
    saved = saved_by(AdamW, params, **options)
    for entry in saved["state"].values():
        entry["step"] = entry["step"].to(dtype)
    opt = AdamW(params, **options)
    opt.load_state_dict(saved)
    opt.step()
    for p in params:
        assert opt.state[p]["step"].dtype == torch.float32
        assert opt.state[p]["step"] == 2
    assert opt.last_path == [GroupPath("kernels")]


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}])
@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, r"must have lr, .*; missing \['betas', 'eps'\]"),
        (torch.optim.RMSprop, {}, r"must have lr, .*; missing \['betas'\]"),
    ],
)
def test_checkpoints_of_others_are_refused_with_nothing_changed(kind, other, message, options):
    params = [torch.nn.Parameter(torch.ones(300)) for _ in range(2)]
    saved = saved_by(kind, params, lr=0.5, **other)
    opt = AdamW(params, **options)
    opt.step()
    before = snapshot(opt)
    with pytest.raises(ValueError, match=rf"^state_dict\['param_groups'\]\[0\] {message}$"):
        opt.load_state_dict(saved)
    saved["param_groups"][0] |= {"betas": (0.9, 0.999), "eps": 1e-8}
    for entry in saved["state"].values():
        entry.pop("step", None)
    with pytest.raises(ValueError, match=r"^state_dict\['state'\]\[0\] must have 'step'; got \["):
        opt.load_state_dict(saved)
    after = snapshot(opt)
    assert after[0] == before[0]
    assert_equal_tensors(after[1], before[1])
