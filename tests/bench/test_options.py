"""Options of the benches: what makes no sense is refused before anything is measured."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cpuinfo")
pytest.importorskip("ml_dtypes")

ROOT = Path(__file__).parents[2]
BENCHES = ROOT / "benches"

if not BENCHES.exists():
    pytest.skip("this copy of the tests comes without the benches", allow_module_level=True)

pytestmark = pytest.mark.slow

REFUSED = {
    "bench_isas --rounds 0": "must be at least 1; got 0",
    "bench_mixes --rounds x": "invalid int value: 'x'",
    "bench_mixes --threads 1025": "must be from 1 to 1024; got 1025",
    "bench_mixes --table missing/TABLE.md": "missing/TABLE.md: ",
    "bench_offload --layers 0": "must be at least 1; got 0",
    "bench_offload --width 96": "must be a multiple of 64; got 96",
    "bench_offload --context 1": "must be at least 2; got 1",
    "bench_offload --bandwidth 0": "must be a number above 0; got 0",
    "bench_offload --memory nan": "must be a number above 0; got nan",
    "bench_offload --table .": ".: ",
    "bench_page_offsets --size 70": "must be from 1 to 40; got 70",
    "bench_page_offsets --threads 0": "must be from 1 to 1024; got 0",
    "bench_page_offsets --rounds 0": "must be at least 1; got 0",
    "bench_sharded --elements 0": "must be at least 1; got 0",
    "bench_sharded --bucket-bytes 131071": "must be at least 131072; got 131071",
    "bench_sharded --rounds -1": "must be at least 1; got -1",
    "bench_threads --rounds 3": "unrecognized arguments: --rounds 3",
    "scaling extra": "unrecognized arguments: extra",
}


def started(folder, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.mark.parametrize("line", REFUSED)
def test_bad_options_are_one_message(tmp_path, line):
    script, *options = line.split()
    if script == "bench_sharded":
        pytest.importorskip("mpi4py")
    if script == "bench_offload":
        pytest.importorskip("torch", minversion="2.10")
    done = started(tmp_path, BENCHES / f"{script}.py", *options)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    assert REFUSED[line] in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [("--rounds=0", "must be at least 1; got 0"), ("--table=missing/TABLE.md", "missing/TABLE.md")],
)
def test_bad_options_of_the_benches_under_pytest(tmp_path, options, message):
    pytest.importorskip("pytest_benchmark")
    done = started(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", BENCHES, options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_can_be_written_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    from option_types import output_file

    old = tmp_path / "TABLE.md"
    old.write_text("of an earlier run")
    assert output_file(str(old)) == old
    assert old.read_text() == "of an earlier run"
    assert output_file(str(tmp_path / "new.md")) == tmp_path / "new.md"
    assert list(tmp_path.iterdir()) == [old]


def test_an_example_without_options_refuses_them(tmp_path):
    done = started(tmp_path, ROOT / "examples" / "why_not_sgd.py", "--steps", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: unrecognized arguments: --steps 3\n")
