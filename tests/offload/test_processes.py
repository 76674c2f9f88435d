"""FSDP2 and DistributedDataParallel, with two processes."""

import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

PROGRAM = Path(__file__).parent / "programs" / "fsdp.py"
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("mode", ["plain", "overlapped", "clipped", "ddp"])
def test_two_processes(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=":")
    command = [sys.executable, str(PROGRAM)]
    started = [
        Popen([*command, str(rank), "2", str(tmp_path / "meet"), mode], stdout=PIPE, stderr=STDOUT)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0].decode() for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
