"""What benches/bench_threads.py changes in the sources is there."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

if not (ROOT / "benches").exists() or not (ROOT / "csrc").exists():
    pytest.skip("this copy of the tests comes without the benches", allow_module_level=True)


def test_each_constant_is_defined_once(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benches"))
    import bench_threads

    monkeypatch.delitem(sys.modules, "bench_threads")
    found = bench_threads.read_constants(ROOT / "csrc")
    assert found.keys() == bench_threads.SMALL.keys()
    assert all(value > bench_threads.SMALL[name] for name, (_, value) in found.items())
