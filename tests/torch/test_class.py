"""``fused_adamw.torch.AdamW`` is a ``torch.optim.AdamW`` to the code around it."""

import importlib.util
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_optimizers import Pair, assert_steps, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402


def test_it_is_one():
    opt = AdamW([parameter()])
    assert isinstance(opt, torch.optim.AdamW)
    theirs = inspect.signature(torch.optim.AdamW([parameter()]).step)
    assert list(inspect.signature(opt.step).parameters) == list(theirs.parameters)


def described(kind):
    parameters = inspect.signature(kind).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def test_signature():
    """A new PyTorch may add an argument, which then has to be added to torch.py."""
    ours, theirs = described(AdamW), described(torch.optim.AdamW)
    missing = {name for name, *_ in theirs} - {name for name, *_ in ours}
    assert not missing, f"PyTorch {torch.__version__} has new arguments: {sorted(missing)}"
    assert ours[: len(theirs)] == theirs
    own = [("state_dtype", None), ("master_weights", False), ("seed", 0), ("ema_decay", None)]
    assert [(name, default) for name, _, default in ours[len(theirs) :]] == own
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in ours[len(theirs) :])


def test_an_unknown_argument():
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        AdamW([parameter()], learning_rate=0.1)


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "amsgrad": True, "fused": True}], ids=str)
def test_repr_and_groups(options):
    ours, theirs = (kind([parameter()], **options) for kind in (AdamW, torch.optim.AdamW))
    assert repr(ours) == repr(theirs)
    assert ours.defaults == theirs.defaults
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])


@pytest.fixture
def common_optimizers():
    pytest.importorskip("expecttest", reason="PyTorch's own test inputs need expecttest")
    from torch.testing._internal import common_optimizers

    return common_optimizers


@pytest.mark.slow
def test_inputs_of_the_tests_of_torch(common_optimizers):
    rng = np.random.default_rng(5)
    params = [rng.standard_normal(shape) for shape in ((4, 3), (5,), ())]
    inputs = common_optimizers.optim_inputs_func_adamw(device="cpu")
    assert inputs
    for case in inputs:
        pair = Pair(params, [{}], **case.kwargs)
        for t in range(1, 21):
            signs = [rng.choice([-1, 1], p.shape) for p in params]
            grads = [np.asarray(rng.uniform(0.5, 1.5, s.shape) * s) for s in signs]
            pair.step(grads)
            largest = max(p.abs().max().item() for p in pair.params()[0])
            pair.assert_near(np.float64, t, largest)


@pytest.mark.slow
def test_error_inputs_of_the_tests_of_torch(common_optimizers):
    inputs = common_optimizers.optim_error_inputs_func_adamw("cpu", torch.float32)
    assert len(inputs) >= 12
    for case in inputs:
        given = case.optimizer_error_input
        params = given.params if given.params is not None else [parameter()]
        warns = issubclass(case.error_type, Warning)
        expected = pytest.warns if warns else pytest.raises
        with expected(case.error_type, match=case.error_regex):
            AdamW(params, **given.kwargs)


def test_a_pytorch_without_the_exchange_api(monkeypatch):
    """As builds from before the release of 2.10 may be."""
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    spec = importlib.util.find_spec("fused_adamw._torch.dispatch")
    with pytest.raises(ImportError, match=r"must have DLPack's exchange API; got 2\..* \("):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_derived_class(fused):
    class Halved(AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad *= 0.5
            return super().step(closure)

    p = parameter()
    opt = Halved([p], fused=fused)
    assert_steps(opt, grads={p: p.grad * 0.5})
    assert repr(opt).startswith("Halved (")


def test_add_param_group(fused):
    opt = AdamW([parameter()], lr=0.1, fused=fused)
    assert_steps(opt)
    opt.add_param_group({"params": [parameter((5,))], "lr": 0.5, "betas": (0.5, 0.6)})
    assert_steps(opt)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": opt.param_groups[0]["params"]})


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    opt = AdamW(model.named_parameters())
    model(torch.ones(3)).sum().backward()
    assert_steps(opt)
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none, fused):
    """A gradient that is None leaves its parameter alone; one that is zero does not."""
    p = parameter()
    opt = AdamW([p], fused=fused)
    assert_steps(opt)
    opt.zero_grad(set_to_none)
    assert_steps(opt)
    assert opt.state[p]["step"] == (1 if set_to_none else 2)


def test_clipped_gradients(fused):
    params = [parameter(), parameter((5,))]
    opt = AdamW(params, fused=fused)
    for _ in range(3):
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        assert torch.nn.utils.get_total_norm([p.grad for p in params]) < 0.51
        assert_steps(opt)
