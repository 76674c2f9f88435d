"""Learning rate schedulers and weight averaging of PyTorch."""

import copy
import math
import warnings

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch.optim import lr_scheduler, swa_utils  # noqa: E402
from torch_optimizers import assert_steps, parameter  # noqa: E402

from fused_adamw.torch import AdamW  # noqa: E402

SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=12),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 3, cycle_momentum=True),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.5)],
        [3],
    ),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.5, anneal_epochs=3),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "Tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, tensor_lr, fused):
    """Every step is taken with the numbers of the moment, which are those that PyTorch's own
    optimizer gets; and no scheduler warns of steps that it has not seen."""
    lr = torch.tensor(0.05) if tensor_lr else 0.05
    ours = AdamW([parameter()], lr=lr, fused=fused)
    theirs = torch.optim.AdamW([parameter()], lr=copy.deepcopy(lr))
    metrics = (1,) if name == "ReduceLROnPlateau" else ()
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours_scheduled, theirs_scheduled = SCHEDULERS[name](ours), SCHEDULERS[name](theirs)
        for _ in range(8):
            assert_steps(ours)
            theirs.step()
            ours_scheduled.step(*metrics)
            theirs_scheduled.step(*metrics)
            group, other = ours.param_groups[0], theirs.param_groups[0]
            assert (group["lr"], group["betas"]) == (other["lr"], other["betas"])
            seen.add((float(group["lr"]), group["betas"]))
    assert len(seen) > 1
    if name in ("OneCycleLR", "CyclicLR"):
        assert len({betas for _, betas in seen}) > 1


# Those that end at 0, after n steps from a rate.
TO_ZERO = {
    "LinearLR": lambda opt, n: lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=n),
    "LinearLR of 1": lambda opt, n: lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=n),
    "CosineAnnealingLR": lambda opt, n: lr_scheduler.CosineAnnealingLR(opt, n),
    "PolynomialLR": lambda opt, n: lr_scheduler.PolynomialLR(opt, n, power=2.0),
    "CosineAnnealingWarmRestarts": lambda opt, n: lr_scheduler.CosineAnnealingWarmRestarts(opt, n),
    "CyclicLR": lambda opt, n: lr_scheduler.CyclicLR(opt, 0.0, 0.1, n, cycle_momentum=False),
    "OneCycleLR": lambda opt, n: lr_scheduler.OneCycleLR(
        opt, 0.1, total_steps=n + 4, final_div_factor=math.inf
    ),
    "LambdaLR": lambda opt, n: lr_scheduler.LambdaLR(opt, lambda epoch: 1 - epoch * (1 / n)),
    "ChainedScheduler": lambda opt, n: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=n), lr_scheduler.StepLR(opt, 3)]
    ),
    "SWALR": lambda opt, n: swa_utils.SWALR(opt, 0.0, n, "linear"),
}


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "Tensor"])
@pytest.mark.parametrize("name", TO_ZERO)
def test_a_rate_that_ends_at_zero_up_to_rounding(name, tensor_lr):
    """Which PyTorch steps with, even where that is below 0: with the bits of the twin."""
    least = 0.0
    for n in range(1, 151) if name == "LinearLR" else (1, 2, 3, 10, 49, 150):
        opt = AdamW([parameter()], lr=torch.tensor(1e-3) if tensor_lr else 1e-3)
        scheduler = TO_ZERO[name](opt, n)
        opt.step()
        for _ in range(n + 1 if name != "LambdaLR" else n):
            scheduler.step()
            least = min(least, float(opt.param_groups[0]["lr"]))
            if abs(opt.param_groups[0]["lr"]) < 1e-6:
                assert_steps(opt)
    assert least > -1e-15
    assert least < 0 or name not in ("LinearLR", "ChainedScheduler")


@pytest.mark.parametrize(
    "options", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}, {"ema_decay": 0.9}], ids=str
)
def test_a_rate_that_ends_at_zero_with_options_of_the_kernels(options):
    p = parameter()
    opt = AdamW([p], **options)
    scheduler = lr_scheduler.LinearLR(opt, end_factor=0.0, total_iters=10)
    for _ in range(12):
        before = p.detach().clone()
        opt.step()
        scheduler.step()
    assert -1e-18 < opt.param_groups[0]["lr"] < 0
    assert torch.equal(p, before)
    assert opt.state[p]["step"] == 12


def test_a_rate_that_is_below_zero():
    opt = AdamW([parameter()])
    opt.param_groups[0]["lr"] = -1.01e-12
    with pytest.raises(ValueError, match=r"^lr must be a finite number, 0 or more; got -1.01e-12$"):
        opt.step()


def test_a_scheduler_that_steps_first_warns():
    """Detection works: it is not only silent."""
    opt = AdamW([parameter()])
    scheduler = lr_scheduler.StepLR(opt, 1)
    with pytest.warns(UserWarning, match=r"lr_scheduler.step\(\)` before `optimizer.step\(\)"):
        scheduler.step()


def test_averaged_model():
    model = torch.nn.Linear(3, 2)
    averaged = swa_utils.AveragedModel(model)
    opt = AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    assert_steps(opt)
    averaged.update_parameters(model)
    kept = [p.detach().clone() for p in averaged.parameters()]
    assert all(map(torch.equal, kept, model.parameters()))
    assert_steps(opt)
    assert all(map(torch.equal, kept, averaged.parameters()))


@pytest.mark.parametrize("size", [0, 2])
def test_a_tensor_that_is_no_number(size):
    p = parameter()
    opt = AdamW([p], lr=torch.tensor(0.1))
    before = p.detach().clone()
    opt.param_groups[0]["lr"] = torch.full((size,), 0.1)
    message = rf"^lr must be one number; got a tensor of shape \({size},\)$"
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert p.equal(before)
    assert not opt.state.get(p)
