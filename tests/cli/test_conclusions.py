"""The sentences of `explain` after its numbers say what the numbers say."""

import pytest

ADAPTIVE = "every parameter moves by about α"
NOTHING_LEFT = "has changed in the same proportion: almost nothing is left of the decay"


@pytest.fixture
def words(run):
    """Runs `explain` with these arguments; returns its output with single blanks."""

    def command(arguments):
        status, out, err = run("explain", *arguments.split())
        assert (status, err) == (0, "")
        return " ".join(out.split())

    return command


@pytest.mark.parametrize("arguments", ["", "--lr 0", "--gradient 1e200", "--eps 1e-300"])
def test_what_adaptive_means(words, arguments):
    assert ADAPTIVE in words(f"adamw {arguments}")


@pytest.mark.parametrize(("eps", "size"), [("0.001", "0.708215"), ("0.5", "0.004831")])
def test_an_eps_beside_which_the_gradient_is_small(words, eps, size):
    text = words(f"adamw --eps {eps}")
    assert ADAPTIVE not in text
    assert f"is not: the update is {size} α." in text


def test_rates_with_a_large_eps(words):
    assert ADAPTIVE in words("rates")
    text = words("rates --eps 0.5")
    assert ADAPTIVE not in text
    assert "from 0.001996 α for the smallest of these gradients to 0.909091 α for the" in text


@pytest.mark.parametrize("arguments", ["", "--gradient 1e200", "--theta -5", "--steps 1"])
def test_adam_with_l2_leaves_almost_nothing_of_the_decay(words, arguments):
    assert NOTHING_LEFT in words(f"adamw {arguments}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--gradient 0", "is 4,059 times that of AdamW, since the gradient is 0,"),
        (
            "--gradient -0.0001 --theta 3",
            "is 66.66 times that of AdamW, since the decay is larger than the gradient and has the",
        ),
        ("--eps 0.5", "is 0.69 times that of AdamW, since ε = 0.5 is not small next to"),
        ("--eps 1e9", "divides this by √v̂ + ε, and ε = 1e+09 is large: almost nothing is left"),
        ("--gradient 1e-10", "since ε = 1e-08 is not small next to the gradient"),
        ("--theta 0", "There is no decay to compare at this step"),
        ("--weight-decay 0", "There is no decay to compare at this step"),
        ("--lr 0", "There is no decay to compare at this step"),
    ],
)
def test_what_adam_with_l2_makes_of_the_decay(words, arguments, sentence):
    text = words(f"adamw {arguments}")
    assert sentence in text
    assert "in the same proportion" not in text
