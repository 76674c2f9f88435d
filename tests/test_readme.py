"""The code in the README, the documentation and the docstrings works as it stands."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
from readme import BLOCKS

from fused_adamw import AdamW, _core, optimizer

DOCS = Path(__file__).parents[1] / "docs"  # not part of the source distribution


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.splitlines()[0])
def test_the_examples_run(code, tmp_path, monkeypatch, capsys):
    if "torch" in code:
        pytest.importorskip("torch", minversion="2.10")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed
    assert promised_output(code) in printed


def promised_output(code):
    """The numbers in the comment on the last line, which is a print; "" without one."""
    comment = re.search(r"  # ([\d. ]*\d)\b[^\n]*\n\Z", code)
    return comment[1] if comment else ""


def test_the_regression_of_the_readme_finds_the_minimum():
    """The first example ends where the normal equations do: after 1,000 steps of at most lr = 0.01
    each, on a problem whose solution is within 0.3 of the start, only the weight decay of 0.01
    keeps it off, by about decay / curvature of each coefficient: less than 0.02."""
    names = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    solution, *_ = np.linalg.lstsq(names["X"], names["y"], rcond=None)
    np.testing.assert_allclose(names["w"], solution, atol=0.02)


@pytest.mark.skipif(not DOCS.exists(), reason="no docs beside these tests")
@pytest.mark.parametrize("shape", [(3,), (1000,), (37, 53)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_decoder_in_the_documentation(shape, order):
    """docs/state-formats.md is enough to read 8-bit state: its decoder gives the bits of the
    package, on gradients over 29 orders of magnitude."""
    text = (DOCS / "state-formats.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"^```python\n(.*?)^```", text, re.S | re.M)[1], names)
    rng = np.random.default_rng(0)
    w = np.array(rng.standard_normal(shape), np.float32, order=order)
    opt = AdamW(w, state_dtype="8bit")
    for _ in range(5):
        magnitudes = 10.0 ** rng.integers(-20, 9, shape)
        opt.step((rng.standard_normal(shape) * magnitudes).astype(np.float32))
    stored = opt.state_dict()["state"]["params"]
    m, v = names["decode_8bit"](*(stored[role] for role in ("m", "v", "m_scale", "v_scale")))
    np.testing.assert_array_equal(m.reshape(shape, order=stored["order"]), opt.m, strict=True)
    np.testing.assert_array_equal(v.reshape(shape, order=stored["order"]), opt.v, strict=True)


@pytest.mark.parametrize("module", [_core, optimizer], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
