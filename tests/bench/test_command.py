"""`fused-adamw bench`: what it prints, records and draws, and what it does with bad input."""

import errno
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from fused_adamw.bench import environment, harness, report, runner
from fused_adamw.bench.implementations import IMPLEMENTATIONS, Loader
from fused_adamw.bench.report import Role
from fused_adamw.bench.statistics import Quartiles, Statistics
from fused_adamw.bench.workloads import CASES, Case

RECORD_KEYS = {
    *("version", "dtype", "rounds", "baseline", "environment", "versions", "cases"),
    *("unavailable", "skipped", "interrupted"),
}
ENVIRONMENT_KEYS = {
    *("processor", "cores", "threads", "isa", "available_isas"),
    *("system", "python", "compiler", "background_load"),
}
CASE_KEYS = {"name", "title", "parameters", "tensors", "implementations"}
IMPLEMENTATION_KEYS = {
    *("name", "rounds", "seconds", "ns_per_parameter"),
    *("gb_per_s", "share_of_bound", "relative_time"),
}
TINY = ("--case", "tiny-transformer", "--rounds", 2, "--implementation", "numpy")

# --------------------------------------------------------------------------- output


def test_the_record(run, loads):
    status, out, err = run(*TINY, "--json", "--implementation", "pure-python")
    assert (status, err) == (0, "")
    record = loads(out)
    assert set(record) == RECORD_KEYS
    assert set(record["environment"]) == ENVIRONMENT_KEYS
    assert 0 <= record["environment"]["background_load"] <= 1
    assert (record["dtype"], record["rounds"], record["baseline"]) == ("float32", 2, "AdamW")
    assert (record["unavailable"], record["interrupted"]) == ({}, False)
    assert record["versions"] == {"numpy": np.__version__}
    (case,) = record["cases"]
    assert set(case) == CASE_KEYS
    assert (case["name"], case["parameters"], case["tensors"]) == ("tiny-transformer", 3456, 13)
    assert [i["name"] for i in case["implementations"]] == ["AdamW", "pure-python", "numpy"]
    for implementation in case["implementations"]:
        assert set(implementation) == IMPLEMENTATION_KEYS
        assert implementation["rounds"] == 2
        seconds = implementation["seconds"]["median"]
        low, high = implementation["seconds"]["quartiles"]
        assert 0 < low <= seconds <= high
        assert implementation["ns_per_parameter"] == pytest.approx(seconds / 3456 * 1e9)
        assert implementation["gb_per_s"] == pytest.approx(28 * 3456 / seconds / 1e9)
        assert implementation["share_of_bound"] is None
    assert case["implementations"][0]["relative_time"] == {"median": 1, "quartiles": [1, 1]}
    assert record["skipped"] == [
        {
            "implementation": "bandwidth-bound",
            "case": "tiny-transformer",
            "reason": "meaningless where the call takes the time, not memory",
        }
    ]


def test_the_tables(run):
    status, out, err = run(*TINY, "--case", "1000x64", "--dtype", "float64")
    assert (status, err) == (0, "")
    for title in ("13 tensors of the tiny transformer, float64: 3,456 parameters", "1,000 tensors"):
        assert title in out
    rows = [line.split()[0] for line in out.splitlines() if "µs" in line or " ms " in line]
    assert rows == ["AdamW", "numpy"] * 2
    assert f"numpy {np.__version__}" in out
    assert "bandwidth-bound in tiny-transformer, 1000x64: meaningless" in out


def test_in_80_columns_rows_are_lines():
    """As in a file, and in most terminals."""
    from rich.console import Console

    from fused_adamw.cli.bench_report import render

    numbers = (1234.567, 123.4, 1.02, Quartiles(99.9, (98.7, 99.9)))
    names = list(IMPLEMENTATIONS)
    statistics = [Statistics(name, 5, Quartiles(1.23e-7, (0, 0)), *numbers) for name in names]
    rows = [report.format_row(row, "AdamW") for row in statistics]
    table = report.Table("a case", report.COLUMNS, rows, "AdamW")
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(table))
    lines = captured.get().splitlines()
    words = [line.split() for line in lines]
    found = [line for line in words if line and line[0] in names]
    assert found == [" ".join(row).split() for row in rows]


def test_an_unavailable_implementation_is_named(run, loads, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    status, out, err = run(*TINY, "--json", "--implementation", "numba")
    assert (status, err) == (0, "")
    record = loads(out)
    assert list(record["unavailable"]) == ["numba"]
    assert record["unavailable"]["numba"].startswith("pip install numba (")
    assert "numba" not in record["versions"]
    assert "numba: pip install numba" in run(*TINY, "--implementation", "numba")[1]


def test_without_a_compiler_only_the_bound_is_unavailable(run, loads, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setitem(CASES, "2^16", Case("2^16", "one array of 2^16", [(2**16,)]))
    arguments = ("--case", "2^16", "--rounds", 1, "--implementation", "numpy", "--json")
    record = loads(run(*arguments)[1])
    assert list(record["unavailable"]) == ["bandwidth-bound"]
    reason = record["unavailable"]["bandwidth-bound"]
    assert reason.startswith("install a C compiler with OpenMP (")
    assert record["environment"]["compiler"] is None
    names = [i["name"] for i in record["cases"][0]["implementations"]]
    assert names == ["AdamW", "numpy"]


def test_a_failing_implementation_does_not_stop_the_others(run, loads, monkeypatch):
    def fail(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(Loader, "load", lambda *_: fail)
    record = loads(run(*TINY, "--json")[1])
    assert record["unavailable"] == {"numpy": "failed in tiny-transformer: no luck"}
    assert [i["name"] for i in record["cases"][0]["implementations"]] == ["AdamW"]


def test_a_case_that_does_not_fit_into_memory_is_skipped(run, loads, monkeypatch):
    monkeypatch.setattr(environment, "available_memory", lambda: 2 * 2**20)
    monkeypatch.setattr(environment, "physical_memory", lambda: 2 * 2**20)
    record = loads(run(*TINY, "--case", "gpt2-large", "--json")[1])
    assert [case["name"] for case in record["cases"]] == ["tiny-transformer"]
    assert record["skipped"][-1]["implementation"] is None
    assert record["skipped"][-1]["case"] == "gpt2-large"
    assert "needs 12.4 GB" in record["skipped"][-1]["reason"]
    assert "gpt2-large: needs 12.4 GB" in run(*TINY, "--case", "gpt2-large")[1]
    status, out, err = run("--case", "gpt2-large")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: case gpt2-large needs 12.4 GB")


def test_copies_count_as_memory(monkeypatch):
    optax, case = IMPLEMENTATIONS["optax"], CASES["2^20"]  # four arrays of it are 16 MiB
    for memory, fits in ((64, True), (40, False)):
        monkeypatch.setattr(environment, "available_memory", lambda m=memory: m * 2**20)
        monkeypatch.setattr(environment, "physical_memory", lambda m=memory: m * 2**20)
        assert runner.too_large(case, "float32") is None
        assert (runner.reason_to_skip(optax, case, "float32") is None) == fits


@pytest.mark.slow
def test_low_precision_counts_its_own_bytes_and_memory(run, loads, monkeypatch):
    case = Case("2^16", "one array of 2^16", [(2**16,)])
    monkeypatch.setitem(CASES, "2^16", case)
    names = ("AdamW-8bit", "AdamW-bfloat16")
    options = [x for name in names for x in ("--implementation", name)]
    record = loads(run("--case", "2^16", "--rounds", 1, "--json", *options)[1])
    found = {i["name"]: i for i in record["cases"][0]["implementations"]}
    for name, moved in (("AdamW", 28), ("AdamW-8bit", 16 + 1 / 16), ("AdamW-bfloat16", 20)):
        gb = moved * case.num_parameters / found[name]["seconds"]["median"] / 1e9
        assert found[name]["gb_per_s"] == pytest.approx(gb)
        assert found[name]["share_of_bound"] is None or name == "AdamW"
    ours = IMPLEMENTATIONS["AdamW-bfloat16"]
    monkeypatch.setattr(runner, "fits_in_memory", lambda nbytes: nbytes <= 6 * 4 * 2**16)
    assert runner.reason_to_skip(ours, case, "float32", extra_arrays=1) is None
    reason = runner.reason_to_skip(ours, case, "float32", extra_arrays=1.5)
    assert reason.startswith("needs 0.0 GB")


def test_small_tensors_are_skipped_where_8_bits_are_not_used(run, loads):
    record = loads(run(*TINY, "--json", "--implementation", "bitsandbytes-8bit")[1])
    reasons = {item["implementation"]: item["reason"] for item in record["skipped"]}
    assert "4,096" in reasons["bitsandbytes-8bit"]


def test_a_case_that_no_chart_shows(run, loads):
    options = ("--case", "1000x64", "--implementation", "pure-python", "--rounds", 1)
    status, out, err = run(*options, "--json")
    assert (status, err, len(loads(out)["cases"])) == (0, "", 1)
    status, out, err = run(*options, "--plot", "chart.png")
    assert (status, out) == (2, "")
    assert err.startswith("error: --plot requires a --case of tiny-transformer, 2^16")


def test_a_narrow_terminal_shows_whose_time_it_is(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    status, out, _ = run("--case", "2^16", "--implementation", "numpy", "--rounds", 1)
    assert status == 0
    table = out.partition("one array of")[2].partition("of this package")[0]
    assert [name for name in ("AdamW", "numpy") if f"\n {name} " in table] == ["AdamW", "numpy"]
    assert "…" not in out


# --------------------------------------------------------------------------- the chart


@pytest.mark.slow
def test_the_chart(run):
    for name, start in (("one.png", b"\x89PNG\r\n\x1a\n"), ("two.svg", b"<?xml")):
        status, _, err = run(*TINY, "--plot", name)
        assert (status, err) == (0, "")
        assert Path(name).read_bytes().startswith(start)


def test_what_the_chart_shows():
    benchmark = runner.arranged(["tiny-transformer", "1000x64"], ["numpy"], "float32", 2)
    lines, title, caption = report.chart(runner.run(benchmark, lambda *_: None))
    assert [line.label for line in lines] == ["AdamW", "numpy"]
    assert [line.role for line in lines] == [Role.OURS, Role.OTHER]
    for line in lines:
        (point,) = line.points
        assert point.parameters == 3456
        assert 0 < point.low <= point.ns_per_parameter <= point.high
    assert "float32" in title
    assert f"numpy {np.__version__}" in caption


# --------------------------------------------------------------------------- bad input, Ctrl-C


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--case pow20", "error: --case must be one of tiny-transformer, 1000x64"),
        (
            "--implementation mlx",
            "error: --implementation must be one of fused_adamw, fused_adamw.torch",
        ),
        ("--rounds 0", "error: --rounds must be at least 1; got 0\n"),
        ("--dtype float16", "error: --dtype must be one of float32, float64; got 'float16'\n"),
        ("--plot missing/plot.png", "missing"),
        ("--plot plot.doc", "got plot.doc"),
        ("--plot plot.png --case 1000x64", "--plot requires a --case of tiny"),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
def test_bad_input_is_one_line_before_the_run(run, monkeypatch, arguments, message, mode):
    monkeypatch.setattr(runner, "run", None)
    status, out, err = run(*mode, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("blocks", [0, 3])
def test_ctrl_c_shows_what_was_measured(run, loads, monkeypatch, blocks):
    timed = []

    def time_block(step):
        if len(timed) == blocks:
            signal.raise_signal(signal.SIGINT)
        timed.append(harness.time_block(step))
        return timed[-1]

    monkeypatch.setattr(runner, "time_block", time_block)
    status, out, _ = run(*TINY, "--json", "--plot", "chart.png")
    record = loads(out)
    assert (status, record["interrupted"]) == (130, True)
    found = [(i["name"], i["rounds"]) for case in record["cases"] for i in case["implementations"]]
    assert found == ([("AdamW", 1), ("numpy", 2)] if blocks else [])
    assert Path("chart.png").exists() == bool(blocks)
    timed.clear()
    status, out, _ = run(*TINY)
    assert status == 130
    assert "Interrupted" in out


def test_a_folder_that_is_gone_after_the_run_is_no_bad_input(run, monkeypatch):
    original = runner.run

    def measure(*arguments):
        results = original(*arguments)
        Path("folder").rmdir()
        return results

    Path("folder").mkdir()
    monkeypatch.setattr(runner, "run", measure)
    status, out, err = run(*TINY, "--plot", "folder/chart.png")
    assert (status, err) == (1, f"error: folder/chart.png: {os.strerror(errno.ENOENT)}\n")
    assert "tiny transformer" in out
