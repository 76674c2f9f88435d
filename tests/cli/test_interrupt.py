"""Ctrl-C during `fused-adamw train`."""

import os

import pytest
from cli_process import interrupted, loads


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_summary():
    status, out, err = interrupted("--compare")
    assert (status, err) == (130, "")
    assert "Interrupted: AdamW, lr 0.001 after " in out
    assert "1.829868" in out
    assert "SGD" not in out  # it had not begun


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_record():
    status, out, err = interrupted("--json")
    record = loads(out)
    assert (status, err) == (130, "")
    assert record["interrupted"] is True
    assert 3 <= record["steps"] < 2_000_000
    assert record["final_loss"] < record["initial_loss"]
