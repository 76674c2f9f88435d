"""`fused-adamw bench`: all contenders do the same step, take turns, and are truly reported."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from arrays import command_line

pytest.importorskip("typer")

from fused_adamw import runtime_info
from fused_adamw.bench import environment as machine
from fused_adamw.bench import harness as contest
from fused_adamw.bench import implementations as peers
from fused_adamw.bench import runner as race
from fused_adamw.bench.harness import Contest
from fused_adamw.bench.statistics import figures
from fused_adamw.bench.suppress_output import silence
from fused_adamw.bench.workloads import CASES, Case, gpt2, held
from fused_adamw.cli import app as cli
from fused_adamw.reference import adamw_update_list

SHAPES = [(3, 5), (64,), (1,)]
STEPS = 5
RECORD_KEYS = {
    *("version", "dtype", "rounds", "ours", "machine", "versions", "cases"),
    *("missing", "left_out", "interrupted"),
}
MACHINE_KEYS = {
    *("processor", "cores", "threads", "isa", "available_isas"),
    *("system", "python", "compiler", "other_work"),
}
CASE_KEYS = {"name", "title", "parameters", "tensors", "contenders"}
CONTENDER_KEYS = {
    *("name", "rounds", "seconds", "seconds_quartiles", "ns_per_parameter"),
    *("gb_per_s", "share_of_limit", "times_ours"),
}
TINY = ("--case", "tiny-transformer", "--rounds", 2, "--peer", "numpy")


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    for name in ("WARM_UP_SECONDS", "BLOCK_SECONDS", "SAMPLE_SECONDS"):
        monkeypatch.setattr(contest, name, 1e-5)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Runs the command in an empty folder; returns its status, standard output and error, with
    what C code and other processes print."""
    return partial(command_line(cli.main, monkeypatch, capfd, tmp_path), "bench")


@pytest.fixture
def missing(monkeypatch):
    """Makes a module impossible to import, and has its contenders loaded anew."""

    def arrange(module):
        monkeypatch.setitem(sys.modules, module, None)
        peers.loaded.cache_clear()

    yield arrange
    peers.loaded.cache_clear()
    peers.MISSING.clear()


# --------------------------------------------------------------------------- the contest


def test_the_contenders_take_turns():
    contest_ = Contest("x", "x", dict.fromkeys("abc"), tuple, 1)
    blocks = [(turn, name) for _, turn, name in contest_.blocks(3)]
    assert [turn for turn, _ in blocks] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "".join(name for _, name in blocks) == "abcbcacab"


def test_one_contest_has_its_arrays_at_a_time():
    made = []
    contests = [
        Contest(name, name, {"a": lambda x: lambda: x}, lambda: (made.append(0) or 1,), 1)
        for name in "xy"
    ]
    for contest_, alive in ((0, 1), (0, 1), (1, 2)):
        contests[contest_].step("a")
        assert len(made) == alive
    assert contests[0].arguments is None
    contests[1].forget()
    assert contests[1].step("a")() == 1
    contests[1].forget()


def test_figures_compare_within_rounds():
    contest_ = Contest("x", "x", {"ours": 0, "peer": 0, "limit": 0, "absent": 0}, tuple, 100, 2800)
    blocks = {
        "ours": {0: 1e-6, 1: 3e-6, 2: 2e-6},
        "peer": {0: 4e-6, 1: 6e-6, 2: 2e-6},
        "limit": {0: 1e-6, 1: 1e-6, 2: 1e-6},
    }
    ours, peer, limit = figures(contest_, blocks, "ours")
    assert ours.times_ours == (1, (1, 1))
    assert peer.times_ours == (2, (1.5, 3))  # of 4, 2 and 1
    assert peer.seconds.median == 4e-6
    assert peer.seconds.quartiles == pytest.approx((3e-6, 5e-6))
    assert peer.ns_per_parameter == pytest.approx(40)
    assert peer.gb_per_s == pytest.approx(0.7)
    assert peer.share_of_limit == pytest.approx(0.25)
    assert (limit.share_of_limit, limit.rounds) == (1, 3)


def test_the_sizes_of_gpt2():
    assert (CASES["gpt2-small"].parameters, len(gpt2(12, 768))) == (124_439_808, 148)
    assert (CASES["gpt2-large"].parameters, len(gpt2(36, 1280))) == (774_030_080, 436)
    assert CASES["tiny-transformer"].parameters == 3456


# --------------------------------------------------------------------------- what is told


def loads(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_record(run):
    status, out, err = run(*TINY, "--json", "--peer", "pure-python")
    assert (status, err) == (0, "")
    record = loads(out)
    assert set(record) == RECORD_KEYS
    assert set(record["machine"]) == MACHINE_KEYS
    assert (record["dtype"], record["rounds"], record["ours"]) == ("float32", 2, "AdamW")
    assert (record["missing"], record["interrupted"]) == ({}, False)
    assert record["versions"] == {"numpy": np.__version__}
    (case,) = record["cases"]
    assert set(case) == CASE_KEYS
    assert (case["name"], case["parameters"], case["tensors"]) == ("tiny-transformer", 3456, 13)
    assert [c["name"] for c in case["contenders"]] == ["AdamW", "pure-python", "numpy"]
    for contender in case["contenders"]:
        assert set(contender) == CONTENDER_KEYS
        assert contender["rounds"] == 2
        assert contender["ns_per_parameter"] == pytest.approx(contender["seconds"] / 3456 * 1e9)
        assert contender["gb_per_s"] == pytest.approx(28 * 3456 / contender["seconds"] / 1e9)
        assert contender["share_of_limit"] is None
    assert case["contenders"][0]["times_ours"] == {"median": 1, "quartiles": [1, 1]}
    assert record["left_out"] == [
        {
            "contender": "limit",
            "case": "tiny-transformer",
            "reason": "means nothing where the call, not memory, takes the time",
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
    assert "limit in tiny-transformer, 1000x64: means nothing" in out


def test_a_missing_peer_is_named(run, missing):
    missing("numba")
    status, out, err = run(*TINY, "--json", "--peer", "numba")
    assert (status, err) == (0, "")
    record = loads(out)
    assert list(record["missing"]) == ["numba"]
    assert record["missing"]["numba"].startswith("pip install numba (")
    assert "numba" not in record["versions"]
    assert "numba: pip install numba" in run(*TINY, "--peer", "numba")[1]


def test_without_a_compiler_the_limit_alone_is_missing(run, missing, monkeypatch):
    missing("numba")
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setitem(CASES, "2^16", Case("2^16", "one array of 2^16", [(2**16,)]))
    record = loads(run("--case", "2^16", "--rounds", 1, "--peer", "numpy", "--json")[1])
    assert list(record["missing"]) == ["limit"]
    assert record["missing"]["limit"].startswith("install a C compiler with OpenMP (")
    assert record["machine"]["compiler"] is None
    assert [c["name"] for c in record["cases"][0]["contenders"]] == ["AdamW", "numpy"]


def test_a_peer_that_fails_stops_no_other(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(race, "loaded", lambda contender: fail)
    record = loads(run(*TINY, "--json")[1])
    assert record["missing"] == {"numpy": "failed in tiny-transformer: no luck"}
    assert [c["name"] for c in record["cases"][0]["contenders"]] == ["AdamW"]


def test_what_memory_does_not_allow_is_left_out(run, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 2 * 2**20)
    monkeypatch.setattr(machine, "physical_memory", lambda: 2 * 2**20)
    record = loads(run(*TINY, "--case", "gpt2-large", "--json")[1])
    assert [case["name"] for case in record["cases"]] == ["tiny-transformer"]
    assert record["left_out"][-1]["contender"] is None
    assert record["left_out"][-1]["case"] == "gpt2-large"
    assert "needs 12.4 GB" in record["left_out"][-1]["reason"]
    assert "gpt2-large: needs 12.4 GB" in run(*TINY, "--case", "gpt2-large")[1]
    status, out, err = run("--case", "gpt2-large")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: case gpt2-large needs 12.4 GB")


def test_a_copy_is_not_made_where_memory_ends(monkeypatch):
    optax = next(c for c in peers.CONTENDERS if c.name == "optax")
    case = CASES["2^20"]  # four arrays of it are 16 MiB
    for memory, fits in ((64, True), (40, False)):
        monkeypatch.setattr(machine, "available_memory", lambda m=memory: m * 2**20)
        monkeypatch.setattr(machine, "physical_memory", lambda m=memory: m * 2**20)
        assert race.too_large(case, "float32") is None
        assert (race.unsuitable(optax, case, "float32") is None) == fits


# --------------------------------------------------------------------------- the chart


def test_the_chart(run):
    for name, start in (("one.png", b"\x89PNG\r\n\x1a\n"), ("two.svg", b"<?xml")):
        status, _, err = run(*TINY, "--plot", name)
        assert (status, err) == (0, "")
        assert Path(name).read_bytes().startswith(start)


def test_what_the_chart_shows(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(cli.report, "save_chart", lambda path, *chart: drawn.extend(chart))
    run(*TINY, "--case", "1000x64", "--plot", "chart.png")
    lines, title, caption = drawn
    assert [line.label for line in lines] == ["AdamW", "numpy"]
    assert [line.role.name for line in lines] == ["OURS", "PEER"]
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
        (
            "--case pow20",
            "there is no case 'pow20'; expected one of tiny-transformer",
        ),
        ("--peer mlx", "there is no peer 'mlx'; expected one of fused_adamw, fused_adamw.torch"),
        ("--rounds 0", "--rounds"),
        ("--dtype float16", "--dtype"),
        ("--plot missing/plot.png", "there is no folder"),
        ("--plot plot.doc", "suffix '.doc'"),
        ("--plot plot.png --case 1000x64", "--plot has no effect without a --case of tiny"),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
def test_bad_input_is_one_line_before_the_race(run, monkeypatch, arguments, message, mode):
    monkeypatch.setattr(cli.race, "run", None)
    status, out, err = run(*mode, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("blocks", [0, 3])
def test_ctrl_c_shows_what_was_measured(run, monkeypatch, blocks):
    timed = []

    def time_block(step):
        if len(timed) == blocks:
            signal.raise_signal(signal.SIGINT)
        timed.append(contest.time_block(step))
        return timed[-1]

    monkeypatch.setattr(race, "time_block", time_block)
    status, out, _ = run(*TINY, "--json", "--plot", "chart.png")
    record = loads(out)
    assert (status, record["interrupted"]) == (130, True)
    found = [(c["name"], c["rounds"]) for case in record["cases"] for c in case["contenders"]]
    assert found == ([("AdamW", 1), ("numpy", 2)] if blocks else [])
    assert Path("chart.png").exists() == bool(blocks)
    timed.clear()
    status, out, _ = run(*TINY)
    assert status == 130
    assert "Interrupted" in out


# --------------------------------------------------------------------------- the contenders
# Last, since the collection of garbage takes long once all libraries are there.


def reference(params, grads, m, v):
    """The parameters after all steps, in float64, by the definition in pure Python."""
    lists = [[a.ravel().tolist() for a in role] for role in (params, grads, m, v)]
    for t in range(1, STEPS + 1):
        for i, tensor in enumerate(zip(*lists, strict=True)):
            lists[0][i], lists[2][i], lists[3][i] = adamw_update_list(*tensor, t)
    return np.concatenate(lists[0])


RETURN_PARAMETERS = ("optax", "pure-python", *(p for p in race.PEERS if "all-bfloat16" in p))
LOW_PRECISION = [c.name for c in peers.CONTENDERS if c.bytes_moved]


def parameters_after(step, params, name):
    for _ in range(STEPS):
        returned = step()
    ends = returned if name in RETURN_PARAMETERS else params
    return np.concatenate([np.ravel(np.asarray(end)).astype(params[0].dtype) for end in ends])


def prepared(name, dtype):
    if name == race.BASE:
        return race.our_class
    contender = next(c for c in peers.CONTENDERS if c.name == name)
    if dtype not in contender.dtypes:
        pytest.skip(f"{name} has no {dtype}")
    if peers.loaded(contender) is None:
        pytest.skip(f"{name}: {peers.MISSING[name]}")
    return race.on_held_moments(peers.loaded(contender))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name", [race.BASE, *(p for p in race.PEERS if p not in (peers.LIMIT, *LOW_PRECISION))]
)
def test_all_do_the_same_step(name, dtype):
    prepare = prepared(name, dtype)
    params, grads, optimizer = held(SHAPES, dtype)
    expected = reference(params, grads, optimizer.m, optimizer.v)
    found = parameters_after(prepare(params, grads, optimizer), params, name)
    # Parameters up to 1 are rounded at most three times a step, by half of eps or less. What the
    # rounded betas change is smaller: 1e-5 of an update of 1e-3.
    tolerance = STEPS * 3 * np.finfo(dtype).eps / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_low_precision_does_the_same_step_from_zeros(name):
    prepare = prepared(name, "float32")
    params, grads, optimizer = held([(64, 64), (8192,)], "float32")
    for p in params:
        p *= 0.1
    zeros = [np.zeros_like(p) for p in params]
    expected = reference(params, grads, zeros, zeros)
    moments = [moment.copy() for moment in (*optimizer.m, *optimizer.v)]
    found = parameters_after(prepare(params, grads, optimizer), params, name)
    # All go a way of lr in each step. In 8 bits the state costs some percent of it for the smallest
    # gradients of a block, where ours is off by 0.5 % in the mean. Parameters in bfloat16, up to
    # 0.1, are rounded by less than 0.00025 each time, or twice that where up or down is drawn.
    share = 0.05 if "all-bfloat16" in name else 0.01
    assert np.abs(found - expected).mean() < share * STEPS * peers.LR
    for moment, was in zip((*optimizer.m, *optimizer.v), moments, strict=True):
        np.testing.assert_array_equal(moment, was)


def test_low_precision_counts_its_own_bytes_and_room(run, monkeypatch):
    case = Case("2^16", "one array of 2^16", [(2**16,)])
    monkeypatch.setitem(CASES, "2^16", case)
    asked = [x for name in (peers.OURS_8BIT, peers.OURS_BFLOAT16) for x in ("--peer", name)]
    record = loads(run("--case", "2^16", "--rounds", 1, "--json", *asked)[1])
    found = {c["name"]: c for c in record["cases"][0]["contenders"]}
    for name, moved in ((race.BASE, 28), (peers.OURS_8BIT, 16 + 1 / 16), (peers.OURS_BFLOAT16, 20)):
        gb = moved * case.parameters / found[name]["seconds"] / 1e9
        assert found[name]["gb_per_s"] == pytest.approx(gb)
        assert found[name]["share_of_limit"] is None or name == race.BASE
    ours = next(c for c in peers.CONTENDERS if c.name == peers.OURS_BFLOAT16)
    monkeypatch.setattr(race, "memory_allows", lambda nbytes: nbytes <= 6 * 4 * 2**16)
    assert race.unsuitable(ours, case, "float32", kept=1) is None
    assert race.unsuitable(ours, case, "float32", kept=1.5).startswith("needs 0.0 GB")


def test_a_small_tensor_is_no_race_in_8_bits(run):
    record = loads(run(*TINY, "--json", "--peer", "bitsandbytes-8bit")[1])
    reasons = {left["contender"]: left["reason"] for left in record["left_out"]}
    assert "4,096" in reasons["bitsandbytes-8bit"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_limit_leaves_the_arrays_as_they_are(dtype):
    prepare = prepared(peers.LIMIT, dtype)
    params, grads, optimizer = held(SHAPES, dtype)
    arrays = (*params, *grads, *optimizer.m, *optimizer.v)
    before = [array.copy() for array in arrays]
    prepare(params, grads, optimizer)()
    for array, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_our_variants_are_ours():
    names = [contender.name for contender in peers.our_variants()]
    isas = [isa for isa in runtime_info()["available_isas"] if isa != runtime_info()["isa"]]
    assert names[-len(isas) :] == [f"fused_adamw-{isa}" for isa in isas] or not isas


@pytest.mark.skipif(os.name == "nt", reason="Windows has no echo program")
def test_silence_hides_what_children_print(capfd):
    with silence():
        print("python")
        os.system("echo child; echo error >&2")
    os.system("echo after")
    assert capfd.readouterr() == ("after\n", "")
