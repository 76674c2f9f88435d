"""benches/bench_offload.py: its rows and bytes; no times."""

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", minversion="2.10")
pytest.importorskip("cpuinfo")

BENCHES = Path(__file__).parents[2] / "benches"

if not BENCHES.exists():
    pytest.skip("this copy of the tests comes without the benches", allow_module_level=True)

SMALL = "--layers 1 --width 64 --vocabulary 50 --context 8 --tokens 16 --rounds 2 --only ours"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    found = importlib.import_module("bench_offload")
    monkeypatch.setattr(found, "bandwidth_beside_copies", list)
    return found


def test_the_table(bench, tmp_path, capsys):
    training = importlib.import_module("offloaded_training")
    table = tmp_path / "table.md"
    bench.main([*SMALL.split(), "--table", str(table)])
    rows = [line.split("|")[1:-1] for line in table.read_text().splitlines() if "|" in line]
    columns = [x.strip() for x in rows[0]]
    found = {row[0].strip(): dict(zip(columns, map(str.strip, row), strict=True)) for row in rows}
    assert len(found) == 2 + 1 + len(bench.MIXES) * len(training.MODES)
    if bench.DEVICE is not None:
        return
    assert "No accelerator" in capsys.readouterr().out
    for mix, nbytes in bench.MIXES.items():
        for mode in training.MODES:
            row = found[f"ours, {mix}, {mode}"]
            assert float(row["host B a parameter"]) == pytest.approx(nbytes, abs=0.1)
            # A gradient and a parameter in, a parameter out; with the norm the gradient twice.
            assert float(row["B copied a parameter"]) == (8.0 if "clipped" in mode else 6.0)
