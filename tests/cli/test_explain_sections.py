"""`fused-adamw explain`: the sections after adamw, and all of them."""

import pytest
from cli_records import assert_in_order


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


# ---- the passes


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
            "Where the model differs from the paper (Vaswani et al. 2017)",
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


# ---- large models


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


@pytest.mark.usefixtures("tiny_scale")
def test_computed_times_are_marked(explain):
    # A quarter of a millisecond for 3,456.
    assert "float32/float32 0.000 ≈ 12,631" in explain("scale")


# ---- all sections


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
