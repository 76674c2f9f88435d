"""Short blocks, a runner of the command, and a loader of implementations."""

import json
from functools import partial

import pytest
from arrays import command_line

pytest.importorskip("psutil")
pytest.importorskip("cpuinfo")

from fused_adamw.bench import environment, harness
from fused_adamw.bench.implementations import Loader


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    for name in ("WARM_UP_SECONDS", "BLOCK_SECONDS", "SAMPLE_SECONDS"):
        monkeypatch.setattr(harness, name, 1e-5)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Runs `fused-adamw bench` in an empty folder; returns its status, standard output and error,
    including what C code and other processes print."""
    pytest.importorskip("typer")
    from fused_adamw.cli import main

    monkeypatch.setattr(environment, "processor_name", lambda: "a processor")  # takes 0.3 s
    return partial(command_line(main, monkeypatch, capfd, tmp_path), "bench")


@pytest.fixture(scope="module")
def loader():
    with Loader() as loader:
        yield loader


@pytest.fixture
def loads():
    """Parses JSON, without the constants NaN and Infinity, which JSON does not have."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return partial(json.loads, parse_constant=refuse)
