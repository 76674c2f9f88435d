"""FSDP2 and DistributedDataParallel, with two processes."""

import sys
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from offloading import on_device, parameter  # noqa: E402
from torch_ranks import only_rank  # noqa: E402

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


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_group_of_one_process_averages_nothing(tmp_path):
    p = parameter(torch.float32, shape=(30,))
    opt = on_device([p], lr=1e-2)
    with only_rank(tmp_path), opt.overlapped():
        (p * p).sum().backward()
    opt.step()
    assert opt.state[p]["step"] == 1
