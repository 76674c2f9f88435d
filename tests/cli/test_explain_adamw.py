"""`fused-adamw explain adamw`: the figures of the worked example, and of other optimizers."""

from cli_records import assert_in_order


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
    for failing in ("one rate for all parameters", "noisy gradients cause oscillation"):
        assert failing in text
    assert "sensitive to the rate. This model does not show the third" in text
