"""What the README and the docstrings show works as it stands."""

import doctest

import numpy as np
import pytest
from readme import BLOCKS

from fused_adamw import _core, optimizer


# The one for several processes is run by test_sharded.py.
@pytest.mark.parametrize(
    "code", [b for b in BLOCKS if "sharded" not in b], ids=lambda code: code.splitlines()[0]
)
def test_the_examples_run(code, tmp_path, monkeypatch, capsys):
    if "checkpoint" in code:
        pytest.importorskip("safetensors")
    if "torch" in code:
        pytest.importorskip("torch", minversion="2.10")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed


def test_the_regression_of_the_readme_finds_the_minimum():
    """The first example ends where the normal equations do: after 1,000 steps of at most lr = 0.01
    each, on a problem whose solution is within 0.3 of the start, only the weight decay of 0.01
    keeps it off, by about decay / curvature of each coefficient: less than 0.02."""
    names = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    solution, *_ = np.linalg.lstsq(names["X"], names["y"], rcond=None)
    np.testing.assert_allclose(names["w"], solution, atol=0.02)


@pytest.mark.parametrize("module", [_core, optimizer], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
