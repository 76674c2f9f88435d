"""`examples/why_not_sgd.py` finds the figures that docs/why-not-sgd.md quotes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def printed():
    finished = subprocess.run(
        [sys.executable, "-X", "utf8", ROOT / "examples" / "why_not_sgd.py"],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


@pytest.fixture(scope="module")
def page():
    path = ROOT / "docs" / "why-not-sgd.md"
    if not path.exists():
        pytest.skip("not in the source distribution")
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_figures(printed):
    assert "The gradients are 9,083 times apart (b_2 against W_K)" in printed
    changes = re.findall(r"^   (\w+) +([\d.]+) +\S+ +(\d+)$", printed, re.M)
    assert ("SGD", "0.0198", "299") in changes
    assert ("AdamW", "0.1000", "22") in changes
    decades = dict(re.findall(r"(\w+) works from .*: ([\d.]+) decades", printed))
    assert all(float(decades[name]) >= 2 for name in ("AdamW", "SGD"))
    assert re.search(r"AdamW  lr 0.01 +(\S+) -> \1$", printed, re.M)
    assert re.search(r"SGD    lr 0.316 .* -> diverges$", printed, re.M)


@pytest.mark.slow
def test_the_page_quotes_what_is_printed(printed, page):
    """But for losses after 500 steps, whose last digits depend on the machine's linear algebra."""
    assert page.count("    ") > 20
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    quoted = {line.strip() for line in page.splitlines()}
    losses = re.compile(r"^([\d.e-]+ +\S+ +\S+|\w+ +lr \S+ .* -> .*)$")
    headings = re.compile(r"^\d\. ")
    missing = [
        x for x in lines if x not in quoted and not losses.match(x) and not headings.match(x)
    ]
    assert missing == []
