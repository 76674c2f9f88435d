"""The pages of docs/: tutorials and examples run and print the known figures, links are valid."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from notebooks import TUTORIALS, code_of, printed_by

from fused_adamw import AdamW
from fused_adamw.sharded import ShardedAdamW

DOCS = TUTORIALS.parent
ROOT = DOCS.parent
pytestmark = pytest.mark.skipif(not TUTORIALS.exists(), reason="no docs beside these tests")

NEEDS = {
    "3": ["matplotlib"],
    "4": ["matplotlib", "ml_dtypes"],
    "5": ["torch"],
    "6": ["torch"],
    "7": ["jax"],
}


@cache
def run(number):
    """What a tutorial prints."""
    needed = {module: pytest.importorskip(module) for module in NEEDS.get(number, [])}
    [notebook] = TUTORIALS.glob(f"{number}-*.md")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        if "torch" not in needed:
            return printed_by(notebook)
        threads = needed["torch"].get_num_threads()
        try:
            return printed_by(notebook)
        finally:
            needed["torch"].set_num_threads(threads)


# ---------------------------------------------------------------------------- tutorials

WORKED_EXAMPLE = """\
m₁ = β₁ × m₀ + (1 - β₁) × g = 0.9 × 0.0 + 0.1 × -0.352893 = -0.035289
0.999 × 0.0 + 0.001 × (-0.352893)²
= 0.999 × 0.0 + 0.001 × 0.124533 = 0.000124533
= -0.035289 / 0.1 = -0.352893
= 0.000124533 / 0.001 = 0.124533
θ × (1 - α × λ) = 0.024634 × 0.99999 = 0.024633754
shrinkage: 0.000000246
= 0.001 / (0.352893 + 1e-08) = 0.002834
This is 2.83× the base learning rate!
0.001 × -0.352893 / 0.352893 = -0.001000
= 0.024633754 - (-0.001000) = 0.025634
before 0.024634, after 0.025634, change +0.001000
gradient -0.0024271762, 412 × the base learning rate
θ₁ = 0.025634
0.001 0.000001 0.999990 999.99 ×
0.010 0.000100 0.100000 100.00 ×
0.100 0.010000 0.010000 10.00 ×
0.500 0.250000 0.002000 2.00 ×
1.000 1.000000 0.001000 1.00 ×
5.000 25.000000 0.000200 0.20 ×
1 10.000000 1000.000000
"""

TRANSFORMER = """\
Token embeddings 6 × 16 = 96
Position embeddings 5 × 16 = 80
W_Q (2 heads) 2 × 16 × 8 = 256
W_K (2 heads) 2 × 16 × 8 = 256
W_V (2 heads) 2 × 16 × 8 = 256
W_O 16 × 16 = 256
FFN W_1 64 × 16 = 1,024
FFN b_1 64 = 64
FFN W_2 16 × 64 = 1,024
FFN b_2 16 = 16
Layer norm γ 16 = 16
Layer norm β 16 = 16
LM head W_lm 6 × 16 = 96
total 3,456; AdamW state (m and v) 6,912 values
E_token[<BOS>][0] = 0.024634219521120198
<BOS> 0.3362 -0.1025 -0.0514 -0.0053 0.2907 0.0848
I 0.3332 -0.1114 -0.0743 -0.0182 0.2730 0.0714
like 0.3179 -0.1641 -0.0885 -0.0041 0.3290 0.0326
transformers 0.3252 -0.1279 -0.0646 -0.0031 0.3202 0.0518
<EOS> 0.3209 -0.1388 -0.0673 0.0066 0.3317 0.0356
P(target) 0.1491, 0.1994, 0.1576, 0.1414
losses by position 1.9033, 1.6123, 1.8479, 1.9560
chance: ln 6 = 1.7918
perplexity 6.2331
gradient of E_token[<BOS>][0]: -0.0024271762
"""


def without_columns(text):
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("number", "figures"), [("1", WORKED_EXAMPLE), ("2", TRANSFORMER)], ids=["adamw", "transformer"]
)
def test_the_published_figures(number, figures):
    printed = without_columns(run(number))
    missing = [
        figure for figure in figures.splitlines() if not any(figure in line for line in printed)
    ]
    assert not missing


def test_the_first_loss_to_all_digits():
    [loss] = re.findall(r"^loss (\d\.\d{16}),", run("2"), re.M)
    # Sums of matrix products are in the order of the machine's BLAS.
    assert float(loss) == pytest.approx(1.8298677505438041, rel=1e-14)


@pytest.mark.parametrize("number", ["3", "4", "5", "6", "7"])
def test_a_tutorial_runs(number):
    """Its assertions hold."""
    assert run(number)


def test_code_fits_the_width_of_a_page():
    lines = [
        f"{notebook.name}: {line}"
        for notebook in TUTORIALS.glob("*.md")
        for code in code_of(notebook)
        for line in code.splitlines()
        if len(line) > 88
    ]
    assert not lines


# ---------------------------------------------------------------------------- other pages


def python_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", ["index", "faq"])
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = python_of(DOCS / f"{page}.md")
    assert examples
    for code in examples:
        exec(compile(code, page, "exec"), {})


def test_the_formula_of_the_page_on_the_arithmetic(dtype):
    """What it prints in NumPy has the bits of the kernels."""
    [code] = python_of(DOCS / "arithmetic.md")
    names = {}
    exec(compile(code, "arithmetic.md", "exec"), names)
    rng = np.random.default_rng(0)
    w = rng.standard_normal(1000).astype(dtype)
    p, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    opt = AdamW(w, lr=0.01, weight_decay=0.1)
    for t in range(1, 20):
        g = rng.standard_normal(1000).astype(dtype)
        opt.step(g)
        p, m, v = names["adamw_in_numpy"](p, g, m, v, t, lr=0.01, weight_decay=0.1)
        np.testing.assert_array_equal(w, p, strict=True)
    opt.param_groups[0]["betas"] = (0.0, 0.9)
    opt.step(g)
    p, *_ = names["adamw_in_numpy"](p, g, m, v, 20, 0.01, (0.0, 0.9), weight_decay=0.1)
    np.testing.assert_array_equal(w, p, strict=True)


def test_epsilon_hat_is_that_of_scikit_learn():
    """The FAQ says which eps it has, and how to translate it."""
    module = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    theirs, ours = np.ones(4), np.ones(4)
    other = module.AdamOptimizer([theirs], learning_rate_init=0.01, epsilon=0.1)
    opt = AdamW(ours, lr=0.01, eps=lambda t: 0.1 / (1 - 0.999**t) ** 0.5, weight_decay=0.0)
    for t in range(1, 30):
        g = np.sin(np.arange(4) + t)
        other.update_params([theirs], [g])
        opt.step(g)
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)  # some roundings a step


LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def anchors_of(page):
    """As code hosts make them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    """On a code host; the build of the site checks them there."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    broken = []
    for link, anchor in LINK.findall(text):
        target = Path(page.parent, link) if link else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link + anchor)
    assert not broken


# ---------------------------------------------------------------------------- the reference


@pytest.mark.parametrize(("page", "optimizer"), [("numpy", AdamW), ("sharded", ShardedAdamW)])
def test_the_reference_has_every_public_member(page, optimizer):
    text = (DOCS / "api" / f"{page}.md").read_text(encoding="utf-8")
    listed = re.search(rf"autoclass:: {optimizer.__name__}\n +:members: (.*)", text)[1].split(", ")
    attributes = re.findall(r"^ +(\w+): ", optimizer.__doc__.partition("Attributes:")[2], re.M)
    public = {name for name in dir(optimizer) if not name.startswith("_")}
    assert set(listed) <= public <= {"t", *listed, *attributes}
