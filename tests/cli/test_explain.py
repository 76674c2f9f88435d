"""`fused-adamw explain`: the figures of the worked example in its own form, JSON, options."""

import pytest
from cli_process import loads
from rich.cells import cell_len

from fused_adamw.explain import scale
from fused_adamw.explain.adamw import Hyperparameters, explain_adamw
from fused_adamw.explain.rates import explain_rates

BY_DEFAULT = ["adamw", "rates", "parameters", "forward", "backward"]


@pytest.fixture
def explain(run, monkeypatch):
    """Runs the command; returns the lines that it prints on 80 columns, without blanks between
    their words and without empty ones."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments):
        status, out, err = run("explain", *arguments)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert max(map(cell_len, lines)) <= 80
        assert not any("…" in line.replace(" …]", "") for line in lines)  # nothing is cut off
        return [" ".join(line.split()) for line in lines if line.strip()]

    return command


@pytest.fixture
def explain_json(run):
    def command(*arguments):
        status, out, err = run("explain", "--json", *arguments)
        assert (status, err) == (0, "")
        return loads(out)

    return command


@pytest.fixture
def quick_scale(monkeypatch):
    """No step is timed: each takes a quarter of a millisecond. No large model fits in memory."""
    monkeypatch.setattr(scale, "SAMPLE_PARAMETERS", 2**10)
    monkeypatch.setattr(scale, "time_block", lambda step: 0.25e-3)
    monkeypatch.setattr(scale, "_fits", lambda: lambda nbytes: nbytes < 1e6)


def assert_in_order(expected, lines):
    """The lines are among those printed, in this order."""
    remaining = iter(lines)
    for line in expected:
        assert line in remaining, f"{line!r} is missing, or out of order"


# ---------------------------------------------------------------------------- the worked example


def test_the_worked_example(explain):
    assert_in_order(
        [
            "Suppose the gradient of the loss at the parameter E_token[<BOS>][0] is",
            "-0.352893.",
            "parameter θ₀ = 0.024634",
            "gradient g = -0.352893",
            "first moment m₀ = 0.000000",
            "second moment v₀ = 0.000000",
            "step t = 1",
            "learning rate α = 0.001",
            "decay rates β₁ = 0.9, β₂ = 0.999",
            "epsilon ε = 1e-08",
            "weight decay λ = 0.01",
            "m₁ = β₁ × m₀ + (1 - β₁) × g",
            "= 0.9 × 0.0 + 0.1 × -0.352893 = -0.035289",
            "v₁ = β₂ × v₀ + (1 - β₂) × g²",
            "= 0.999 × 0.0 + 0.001 × (-0.352893)²",
            "= 0.999 × 0.0 + 0.001 × 0.124533 = 0.000124533",
            "m̂₁ = m₁ / (1 - β₁¹) = -0.035289 / 0.1 = -0.352893",
            "v̂₁ = v₁ / (1 - β₂¹) = 0.000124533 / 0.001 = 0.124533",
            "Both moments began at zero. At t = 1, m̂ is the gradient itself.",
            "θ × (1 - α × λ) = 0.024634 × 0.99999 = 0.024633754",
            "shrinkage: 0.000000246",
            "effective rate = α / (√v̂₁ + ε) = 0.001 / (0.352893 + 1e-08) = 0.002834",
            "This is 2.83× the base learning rate!",
            "= 0.001 × -0.352893 / 0.352893 = -0.001000",
            "θ₁ = 0.024633754 - (-0.001000) = 0.025634",
            "before 0.024634",
            "after 0.025634",
            "change +0.001000",
        ],
        explain("adamw"),
    )


def test_the_steps_after_it(explain):
    lines = explain("adamw", "--steps", 3)
    assert_in_order(
        [
            "t g m v m̂ v̂ rate / α θ",
            "1 -0.352893 -0.035289 0.000125 -0.352893 0.124533 2.83 0.025634",
            "2 -0.352893 -0.067050 0.000249 -0.352893 0.124533 2.83 0.026633",
            "3 -0.352893 -0.095634 0.000373 -0.352893 0.124533 2.83 0.027633",
            "t m̂ = m × 1 / (1 - β₁ᵗ) v̂ = v × 1 / (1 - β₂ᵗ)",
            "1 10.000000 1000.000000",
            "2 5.263158 500.250125",
            "3 3.690037 333.666889",
            "10 1.535340 100.450825",
            "100 1.000027 10.503335",
            "1,000 1.000000 1.581516",
        ],
        lines,
    )
    assert "3.16 times as large." in " ".join(lines)


def test_the_models_own_gradient(explain):
    assert_in_order(
        [
            "In the model, the gradient at E_token[<BOS>][0] is -0.002427 (see the section",
            "effective rate = 0.412000",
            "This is 412.00× the base learning rate!",
            "θ₁ = 0.024633973 - (-0.001000) = 0.025634",
        ],
        explain("adamw"),
    )


def test_other_optimizers(explain):
    lines = explain("adamw", "--steps", 1)
    assert_in_order(
        [
            "θ after step 1 due to λ",
            "AdamW 0.025633754 -0.000000246",
            "Adam with L2 0.025634000 -1.98e-14",
            "SGD 0.024986893 0.000000000",
            "SGD: θ₁ = θ₀ - α × g = 0.024634 - 0.001 × -0.352893 = 0.024987",
            "g + λ × θ₀ = -0.352893 + 0.01 × 0.024634 = -0.352647",
        ],
        lines,
    )
    text = " ".join(lines)
    for failing in ("One rate for all parameters", "noisy gradients cause oscillation"):
        assert failing in text
    assert "sensitive to the rate" in text


# ---------------------------------------------------------------------------- rates and parameters


def test_rates(explain):
    lines = explain("rates")
    assert_in_order(
        [
            "|gradient| v̂ (≈ g²) effective rate multiplier",
            "0.001 0.000001 0.999990 999.99 ×",
            "0.010 0.000100 0.100000 100.00 ×",
            "0.100 0.010000 0.010000 10.00 ×",
            "0.500 0.250000 0.002000 2.00 ×",
            "1.000 1.000000 0.001000 1.00 ×",
            "5.000 25.000000 0.000200 0.20 ×",
            "Step 1: loss 1.804945 after it",
            "least median largest left out",
            "W_lm 2.08 × 13.12 × 2,266 ×",
            "Step 10: loss 1.630541 after it",
            "Step 100: loss 0.349435 after it",
        ],
        lines,
    )
    assert sum(line.startswith("Step 500: loss ") for line in lines) == 1
    assert sum(line.startswith("gamma ") for line in lines) == 4


def test_parameters(explain):
    assert_in_order(
        [
            "Token embeddings 6 × 16 = 96 E_token",
            "Position embeddings 5 × 16 = 80 E_pos",
            "W_Q (2 heads) 2 × 16 × 8 = 256 W_Q",
            "W_K (2 heads) 2 × 16 × 8 = 256 W_K",
            "W_V (2 heads) 2 × 16 × 8 = 256 W_V",
            "W_O 16 × 16 = 256 W_O",
            "FFN W_1 64 × 16 = 1,024 W_1",
            "FFN b_1 64 b_1",
            "FFN W_2 16 × 64 = 1,024 W_2",
            "FFN b_2 16 b_2",
            "Layer norm γ 16 gamma",
            "Layer norm β 16 beta",
            "LM head W_lm 6 × 16 = 96 W_lm",
            "total 3,456",
            "AdamW state (m and v): 2 × 3,456 = 6,912 values",
            "float32 float32 8 27,648",
            "bfloat16 float32 yes 10 34,560",
            "bfloat16 bfloat16 yes 6 20,736",
            "bfloat16 8bit yes 4.03 13,976",
        ],
        explain("parameters"),
    )


# ---------------------------------------------------------------------------- the passes


def test_forward(explain):
    lines = explain("forward")
    assert_in_order(
        [
            "1. Tokenization and embedding lookup",
            "token <BOS> I like transformers <EOS>",
            "its index 1 3 4 5 2",
            "to predict I like transformers <EOS>",
            "X[0] = 0.0953 + 0.1366 = 0.2319",
            "2. Q/K/V projections",
            "3. Scaled dot-product attention with causal masking",
            "like 0.3320 0.3348 0.3332",
            "0.3320 × 0.0800 + 0.3348 × 0.0565 + 0.3332 × -0.0624 = 0.0247",
            "4. Multi-head concatenation and output projection",
            "5. Feed-forward with GELU",
            "6. Layer normalization with residual",
            "7. Output projection and softmax",
            "after PAD BOS EOS I like transformers",
            "<BOS> 0.3362 -0.1025 -0.0514 -0.0053 0.2907 0.0848",
            "I 0.3332 -0.1114 -0.0743 -0.0182 0.2730 0.0714",
            "like 0.3179 -0.1641 -0.0885 -0.0041 0.3290 0.0326",
            "transformers 0.3252 -0.1279 -0.0646 -0.0031 0.3202 0.0518",
            "<EOS> 0.3209 -0.1388 -0.0673 0.0066 0.3317 0.0356",
            "8. Cross-entropy",
            "<BOS> I 0.1491 1.9033",
            "I like 0.1994 1.6123",
            "like transformers 0.1576 1.8479",
            "transformers <EOS> 0.1414 1.9560",
            "loss = (1.9033 + 1.6123 + 1.8479 + 1.9560) / 4 = 1.8299",
            "perplexity = exp(loss) = 6.2331",
            "chance: ln 6 = 1.7918",
            "Where the model is simpler than the paper (Vaswani et al. 2017)",
            "- No residual around attention: the paper normalizes X + attention(X), here H",
            "- One layer norm, after the feed-forward layer; the paper has another one after",
        ],
        lines,
    )


def test_backward(explain):
    assert_in_order(
        [
            "1. Gradient of the loss with respect to the logits",
            "(0.1491 − 1) / 4 = -0.2127",
            "2. Backpropagation through every layer",
            "3. Gradients of all parameters",
            "One of them, which AdamW takes: E_token[<BOS>][0]",
            "through Q 0.0000000000",
            "through K -0.0000365533",
            "through V -0.0023906229",
            "sum -0.0024271762",
            "h finite difference minus the gradient",
            "0.01 -0.0024271757 5.2e-10",
        ],
        explain("backward"),
    )


@pytest.mark.usefixtures("quick_scale")
def test_scale(explain):
    lines = explain("scale")
    assert_in_order(
        [
            "GPT-2 Small 124 million 124,439,808",
            "GPT-2 Large 774 million 774,030,080",
            "LLaMA 2 70B 70 billion 68,976,648,192",
            "GPT-3 175B 175 billion 174,604,259,328",
            "GPT-2 Small GPT-2 Large LLaMA 2 70B GPT-3 175B",
            "float32/float32 1.00 6.19 552 1,397",
            "bfloat16+master/bfloat16 0.75 4.64 414 1,048",
            "GPT-2 Small GPT-2 Large LLaMA 2 70B GPT-3 175B",
            # A quarter of a millisecond for 1,024.
            "float32/float32 ≈ 30 ≈ 189 ≈ 16,840 ≈ 42,628",
        ],
        lines,
    )


@pytest.fixture
def tiny_scale(quick_scale, monkeypatch):
    """Two models, of which the first fits in memory."""
    models = (scale.Model("Tiny", "3,456", [(3456,)]), scale.MODELS[-1])
    monkeypatch.setattr(scale, "MODELS", models)


@pytest.mark.usefixtures("tiny_scale")
def test_computed_times_are_marked(explain):
    # A quarter of a millisecond for 3,456.
    assert "float32/float32 0.000 ≈ 12,631" in explain("scale")


# ---------------------------------------------------------------------------- all sections


def test_without_a_section(explain):
    lines = explain()
    titles = {
        "adamw": "One AdamW update, number by number",
        "rates": "The smaller the gradient, the larger its effective learning rate",
        "parameters": "The parameters of the tiny transformer",
        "forward": "The forward pass: from tokens to the loss",
        "backward": "The backward pass: from the loss to the gradients",
    }
    assert_in_order(titles.values(), lines)
    last = " ".join(lines[-4:])
    assert "one of adamw, rates, parameters, forward, backward." in last
    assert "one more, scale, which times steps" in last
    for section, title in titles.items():
        others = {other for other in titles.values() if other != title}
        assert others.isdisjoint(explain(section))


# ---------------------------------------------------------------------------- JSON


def test_json_has_the_sections(explain_json):
    found = explain_json()
    assert list(found) == BY_DEFAULT
    for section in BY_DEFAULT:
        assert explain_json(section) == {section: found[section]}


def test_json_has_all_digits(explain_json):
    found = explain_json()
    first = found["adamw"]["updates"][0]
    assert (first["theta_before"], first["gradient"]) == (0.024634, -0.352893)
    assert f"{first['theta']:.12f}" == "0.025633753632"
    assert found["adamw"]["kernel"]["theta"] == pytest.approx(first["theta"], rel=1e-15)
    assert found["adamw"]["model_updates"][0]["theta_before"] == 0.024634219521120198
    rates = {(row["step"], row["tensor"]): row for row in found["rates"]["by_tensor"]}
    assert rates.keys() == {
        (step, row["name"]) for step in (1, 10, 100, 500) for row in found["parameters"]["tensors"]
    }
    forward = found["forward"]
    assert forward["loss"] == pytest.approx(1.8298677505438041, rel=0, abs=2e-15)
    shapes = {name: len(forward[name]) for name in ("X", "Q", "logits", "targets")}
    assert shapes == {"X": 5, "Q": 2, "logits": 5, "targets": 4}
    assert forward["scores"][0][0][1:] == [None] * 4  # -infinity
    assert found["backward"]["gradient"] == found["adamw"]["model_updates"][0]["gradient"]
    assert found["parameters"]["total"] == 3456


@pytest.mark.usefixtures("tiny_scale")
def test_json_of_scale(explain_json):
    found = explain_json("scale")["scale"]
    assert {cost["model"] for cost in found["costs"] if cost["measured"]} == {"Tiny"}
    assert len(found["costs"]) == len(found["models"]) * len(found["bandwidths"])


# ---------------------------------------------------------------------------- own numbers

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


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "backwards",
            "SECTION must be one of adamw, rates, parameters, forward, backward, scale; "
            "got backwards",
        ),
        ("--theta nan", "--theta must be finite; got nan"),
        ("adamw --gradient inf", "--gradient must be finite; got inf"),
        ("adamw --gradient 1 --gradient nan", "--gradient must be finite; got nan"),
        ("--steps 0", "--steps must be between 1 and 10,000; got 0"),
        (
            "adamw --steps 1 --gradient 1 --gradient 2",
            "--gradient must be given at most --steps (1) times; got 2",
        ),
        ("adamw --steps 10001", "--steps must be between 1 and 10,000; got 10,001"),
        ("--lr -1", "lr must be a finite number, 0 or more; got -1.0"),
        ("rates --lr nan", "lr must be a finite number, 0 or more; got nan"),
        ("--betas 1 0.9", "betas[0] must be at least 0 and less than 1; got 1.0"),
        ("--eps 0", "eps must be more than 0; got 0.0"),
        ("rates --eps -1", "eps must be more than 0; got -1.0"),
        ("--weight-decay -1", "weight_decay must be a finite number, 0 or more; got -1.0"),
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
