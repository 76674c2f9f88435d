"""`fused-adamw explain`: numbers of the user's own, and options that are refused."""

import pytest
from cli_records import assert_in_order

from fused_adamw.explain.adamw import Hyperparameters, explain_adamw
from fused_adamw.explain.rates import explain_rates

OWN = ("--lr", 0.02, "--betas", 0.8, 0.97, "--eps", 1e-3, "--weight-decay", 0.1)


def test_own_numbers(explain_json):
    h = Hyperparameters(0.02, (0.8, 0.97), 1e-3, 0.1)
    gradients = ("--gradient", 0.3, "--gradient", -0.25)
    found = explain_json("adamw", "--theta", 1.5, *gradients, *OWN, "--steps", 4)["adamw"]
    expected = explain_adamw(1.5, (0.3, -0.25), h, steps=4)
    assert [row["theta"] for row in found["updates"]] == [u.theta for u in expected.updates]
    assert found["hyperparameters"]["betas"] == [0.8, 0.97]
    assert len(found["model_updates"]) == 4
    rates = explain_json("rates", *OWN)["rates"]
    assert rates["by_gradient"][0]["multiplier"] == explain_rates(h).by_gradient[0].multiplier


def test_own_numbers_are_substituted(explain):
    lines = explain("adamw", "--theta", 1.5, "--gradient", 0.3, *OWN, "--steps", 1)
    assert_in_order(
        [
            "parameter θ₀ = 1.500000",
            "decay rates β₁ = 0.8, β₂ = 0.97",
            "= 0.8 × 0.0 + 0.2 × 0.300000 = 0.060000",
            "= 0.97 × 0.0 + 0.03 × 0.090000 = 0.002700000",
            "θ × (1 - α × λ) = 1.500000 × 0.998 = 1.497000000",
            "effective rate = α / (√v̂₁ + ε) = 0.02 / (0.300000 + 0.001) = 0.066445",
            "This is 3.32× the base learning rate!",
            "θ₁ = 1.497000000 - 0.019934 = 1.477066",
        ],
        lines,
    )
    assert "Suppose" not in " ".join(lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gradient", 0),
        ("--gradient", 1e200),
        ("--gradient", 1e-200, "--theta", 1e-9, "--lr", 1e-7),
        ("--gradient", 5, "--lr", 300, "--steps", 50),
        ("--betas", 0, 0, "--weight-decay", 0, "--lr", 0),
        ("--gradient", -1e150, "--theta", -1e300, "--lr", 1e100, "--steps", 1000),
    ],
)
def test_extreme_numbers(explain, explain_json, arguments):
    for section in ("adamw", "rates"):
        used = arguments if section == "adamw" else [x for x in arguments if x == "--lr"]
        used = (*used, 300) if len(used) == 1 else used
        assert explain(section, *used)
        assert explain_json(section, *used)


def test_many_steps_are_not_all_shown(explain, explain_json):
    lines = explain("adamw", "--steps", 300)
    found = explain_json("adamw", "--steps", 300)["adamw"]["updates"]
    assert len(found) == 300
    start, end = (
        next(i for i, line in enumerate(lines) if line.startswith(header))
        for header in ("t g m", "t m̂")
    )
    shown = [int(line.split()[0]) for line in lines[start + 2 : end]]
    assert shown == [1, 2, 3, 4, 5, 10, 20, 50, 100, 200, 300]


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "backwards",
            "SECTION must be one of adamw, rates, parameters, forward, backward, scale; "
            "got 'backwards'",
        ),
        ("--theta nan", "--theta must be finite; got nan"),
        ("--theta x", "--theta must be a number; got 'x'"),
        ("--betas 0.9 x", "--betas must be a number; got 'x'"),
        ("--steps 1.5", "--steps must be an integer; got '1.5'"),
        ("adamw --gradient inf", "--gradient must be finite; got inf"),
        ("adamw --gradient 1 --gradient nan", "--gradient must be finite; got nan"),
        ("--steps 0", "--steps must be between 1 and 10,000; got 0"),
        (
            "adamw --steps 1 --gradient 1 --gradient 2",
            "--gradient must be given at most --steps (1) times; got 2",
        ),
        ("adamw --steps 10001", "--steps must be between 1 and 10,000; got 10,001"),
        ("--lr -1", "--lr must be a finite number, 0 or more; got -1.0"),
        ("rates --lr nan", "--lr must be a finite number, 0 or more; got nan"),
        ("--betas 1 0.9", "--betas[0] must be at least 0 and less than 1; got 1.0"),
        ("--eps 0", "--eps must be above 0; got 0.0"),
        ("rates --eps -1", "--eps must be above 0; got -1.0"),
        ("--weight-decay -1", "--weight-decay must be a finite number, 0 or more; got -1.0"),
        ("rates --theta 1", "--theta must be used with the section adamw; got rates"),
        ("rates --steps 1", "--steps must be used with the section adamw; got rates"),
        ("forward --lr 1", "--lr must be used with the section adamw or rates; got forward"),
        (
            "scale --weight-decay 1",
            "--weight-decay must be used with the section adamw or rates; got scale",
        ),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["text", "json"])
def test_bad_options(run, arguments, message, mode):
    status, out, err = run("explain", *arguments.split(), *mode)
    assert (status, out, err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("arguments", ["--gradient many", "--betas 0.9", "--lr", "--unknown 1"])
def test_options_that_are_no_numbers(run, arguments):
    status, out, err = run("explain", *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert arguments.split()[0] in err
