"""Loading state that is in no format, or not of the size of its parameter."""

import pytest
from torch_state import assert_equal_tensors

torch = pytest.importorskip("torch", minversion="2.10")

import fused_adamw.offload  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

SIZE = 6
OTHER = 9


def stepped(size, make=AdamW, **options):
    p = torch.nn.Parameter(torch.ones(size))
    p.grad = torch.ones(size)
    opt = make([p], **options)
    opt.step()
    return p, opt


def saved_with(entry):
    """The state dict of an optimizer of another size, with other state."""
    saved = stepped(OTHER)[1].state_dict()
    saved["state"][0] = {"step": torch.tensor(3.0), **entry}
    return saved


def moments(dtype):
    return {name: torch.ones(OTHER, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}


def assert_refused(saved, options, match):
    p, opt = stepped(SIZE, **options)
    before = dict(opt.state[p])
    kept = [x.clone() for x in before.values()]
    with pytest.raises(ValueError, match=match):
        opt.load_state_dict(saved)
    assert opt.state[p] == before
    assert_equal_tensors(opt.state[p].values(), kept)


@pytest.mark.parametrize("state_dtype", [None, "float32", "bfloat16"])
def test_codes_of_another_size(state_dtype):
    saved = stepped(OTHER, state_dtype="8bit")[1].state_dict()
    match = r"\[0\] must be that of a float32 .* of shape \(6,\); got {'exp_avg_code': 'torch"
    assert_refused(saved, {"state_dtype": state_dtype}, match)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_moments_of_another_size_and_dtype(state_dtype):
    match = r"of shape \(6,\); got {'exp_avg': 'torch.float32 \(9,\)', 'exp_avg_sq': 'torch"
    assert_refused(saved_with(moments(torch.float32)), {"state_dtype": state_dtype}, match)


def test_what_is_no_tensor_is_not_described():
    entry = {"exp_avg": "text", "exp_avg_sq": torch.ones(SIZE)}
    match = r"got {'exp_avg_sq': 'torch.float32 \(6,\)'}$"
    assert_refused(saved_with(entry), {"state_dtype": "8bit"}, match)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_of_another_size_load_as_in_pytorch(dtype):
    """Whose class does not look at sizes: its step refuses them."""
    (p, ours), (q, theirs) = stepped(SIZE), stepped(SIZE, torch.optim.AdamW)
    for opt in (ours, theirs):
        opt.load_state_dict(saved_with(moments(dtype)))
    assert list(ours.state[p]) == list(theirs.state[q])
    assert_equal_tensors(ours.state[p].values(), theirs.state[q].values())


@pytest.mark.parametrize("state_dtype", [None, "float32", "8bit"])
def test_state_with_nothing_of_a_format(state_dtype):
    """Is loaded as it is, and refused by the step."""
    p, opt = stepped(SIZE, state_dtype=state_dtype)
    opt.load_state_dict(saved_with({"other": torch.arange(3.0)}))
    assert list(opt.state[p]) == ["step", "other"]
    assert_equal_tensors(opt.state[p].values(), [torch.tensor(3.0), torch.arange(3.0)])
    before = p.detach().clone()
    with pytest.raises(KeyError, match="exp_avg"):
        opt.step()
    assert torch.equal(p, before)


def test_codes_in_another_shape():
    """Are loaded as they are, and refused by the step."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    opt = AdamW([p], state_dtype="8bit")
    opt.step()
    saved = opt.state_dict()
    saved["state"][0] = {
        name: x.reshape(-1) if name.endswith("_code") else x
        for name, x in saved["state"][0].items()
    }
    opt.load_state_dict(saved)
    with pytest.raises(TypeError, match=r"with exp_avg_code of shape \(6,\)"):
        opt.step()


@pytest.mark.parametrize("make", [AdamW, fused_adamw.offload.AdamW])
@pytest.mark.parametrize("wrong", [None, [1], torch.ones(SIZE)], ids=["None", "list", "tensor"])
def test_what_is_no_dict(make, wrong):
    """PyTorch takes it over before it finds out."""
    p, opt = stepped(SIZE, make)
    kind = type(wrong).__name__
    for key, expected in (
        ("state", rf"^state_dict\['state'\]\[0\] must be a dict; got {kind}$"),
        ("param_groups", rf"^state_dict\['param_groups'\]\[0\] must be a dict; got {kind}$"),
    ):
        saved, before = opt.state_dict(), dict(opt.state[p])
        saved[key] = type(saved[key])(saved[key])
        saved[key][0] = wrong
        with pytest.raises(TypeError, match=expected):
            opt.load_state_dict(saved)
        assert opt.state[p] == before
