"""Fixtures of the tests of the tiny transformer."""

import pytest

from fused_adamw.tiny import read_text


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 100, encoding="utf-8")
    return read_text(path, context=8)
