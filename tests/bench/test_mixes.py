"""benches/bench_mixes.py: its options, bytes and tables; no times."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from fused_adamw.bench.mixes import (
    Workload,
    available_mixes,
    numpy_dtype,
    optimizer_of,
    state_arrays,
    tiled,
)
from fused_adamw.bench.streams import Stream, bind_streams

BENCHES = Path(__file__).parents[2] / "benches"
BLOCK = 256

if not BENCHES.exists():
    pytest.skip("this copy of the tests comes without the benches", allow_module_level=True)

# By hand: bytes of state, and of a parameter and a gradient, which have the same size.
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = {"float32": 4 + 4, "bfloat16": 2 + 2, "8bit": 1 + 1 + (4 + 4) / BLOCK}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHES))
    return importlib.import_module("bench_mixes")


@pytest.fixture
def training(bench):
    return importlib.import_module("mix_training")


def named(name):
    return next((mix, traffic) for mix, traffic in available_mixes().items() if mix.name == name)


def test_the_mixes_are_those_that_the_class_accepts():
    pytest.importorskip("ml_dtypes")
    names = [mix.name for mix in available_mixes()]
    assert names[0] == "float32/float32"
    assert len(names) == len(set(names))
    assert {"float32/8bit", "bfloat16/bfloat16", "float16+master/8bit"} <= set(names)
    assert not [name for name in names if "float64" in name or name.startswith("float32+")]


def test_bytes_of_all_mixes():
    for mix, traffic in available_mixes().items():
        moments, itemsize = MOMENTS[mix.format], ITEMSIZE[mix.param_dtype]
        master = traffic.state_bytes - moments
        assert master in ((2, 4) if mix.master_weights else (0,))
        assert traffic.bytes_moved == 3 * itemsize + 2 * (moments + master)
        assert traffic.bytes_kept == 2 * itemsize + moments + master
        optimizer = optimizer_of(mix, [np.zeros(1000, numpy_dtype(mix.param_dtype))])
        assert mix.traffic([(1000,)]).total_state == optimizer.state_nbytes


@pytest.mark.parametrize("size", [1, 255, 256, 1000])
def test_the_loop_keeps_all_values(size):
    for mix, traffic in available_mixes().items():
        workload = Workload(mix, traffic, [(size,)])
        workload.step(1)()
        arrays = [*workload.params, *workload.grads, *state_arrays(workload.optimizer)[0].values()]
        before = [array.tobytes() for array in arrays]
        workload.bound(2)()
        assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("size", [1, 31, 256, 700])
def test_the_loop_reads_and_writes_every_byte_once(size):
    blocks, half = -(-size // BLOCK), -(-size // 2)
    read = np.zeros(size, np.uint16)
    written = [np.zeros(size, dtype) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64)]
    parts = [np.zeros(blocks, np.uint32), np.zeros(half, np.uint8)]  # scales, 4 bits
    streams = [
        Stream(read, 2 * BLOCK, False),
        *(Stream(array, array.itemsize * BLOCK, True) for array in written),
        *(
            Stream(array, nbytes, True)
            for array, nbytes in zip(parts, (4, BLOCK // 2), strict=True)
        ),
    ]
    assert bind_streams(size, streams, 2, 0xA5)() == 0
    for array in (*written, *parts):
        assert array.tobytes() == b"\xa5" * array.nbytes
    assert not read.any()
    for place in {0, size // 2, size - 1}:
        read[:] = 0
        read[place] = 1
        assert bind_streams(size, streams, 2)() == 1


def test_random_numbers_are_repeated_over_the_whole_array():
    array = tiled((3, 50_000), np.float32, (-1.0, 1.0))
    assert array.shape == (3, 50_000)
    assert np.all(array != 0)
    assert np.all(np.abs(array) <= 1)


def test_options(bench):
    options = bench.parse_options([])
    assert [case.name for case in options.size] == ["2^14", "2^24", "2^26", "gpt2-small"]
    assert options.mixes == list(available_mixes())
    assert options.threads[0] == 1
    arguments = ["--size", "2^9", "--threads", "3", "--threads", "1", "--mix", "float32/8bit"]
    options = bench.parse_options(arguments)
    assert [case.num_parameters for case in options.size] == [512]
    assert options.threads == [1, 3]
    assert [mix.name for mix in options.mixes] == ["float32/8bit"]


@pytest.mark.parametrize(
    "arguments",
    ["--size 2^x", "--size pow20", "--threads 0", "--rounds 0", "--mix int4", "--skip bytes"],
)
def test_bad_options(bench, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        bench.parse_options(arguments.split())
    assert f"argument {arguments.split()[0]}" in capsys.readouterr().err


def test_groups_fit_into_memory(bench):
    mixes = available_mixes()
    baseline, *others = mixes
    found, too_large = bench.groups(mixes, baseline, 1000, lambda nbytes: nbytes <= 45_000)
    assert {mix for group in found for mix in group} | set(too_large) == set(mixes)
    for group in found:
        assert group[0] == baseline
        assert 1000 * sum(mixes[mix].bytes_kept for mix in group) <= 45_000
    assert bench.groups(mixes, baseline, 1000, lambda nbytes: True) == ([[baseline, *others]], [])
    assert bench.groups(mixes, baseline, 1000, lambda nbytes: False) == ([], others)


def test_ratios_are_within_rounds(bench):
    step, bound = bench.Timed("step", "a", 1), bench.Timed("bound", "a", 1)
    blocks = {
        step: {0: 2e-6, 1: 8e-6, 2: 4e-6},
        bound: {0: 1e-6, 1: 4e-6, 2: 3e-6},
        bench.Timed("step", "b", 1): {0: 6e-6, 1: 8e-6, 2: 8e-6},
    }
    found = bench.speeds(blocks, "a", 1000)
    assert found["a", 1] == (pytest.approx(4), 1, 0.5)
    assert found["b", 1] == (pytest.approx(8), 2, None)


def test_the_tables(bench):
    arguments = "--size 2^9 --size 2^16 --mix float32/8bit --threads 1 --threads 2 --rounds 2"
    options = bench.parse_options([*arguments.split(), "--skip", "loss"])
    text = "\n".join(bench.run(options))
    assert "### one array of 2^9: 512 parameters" in text
    header, _, row = text[text.index("### All mixes") :].split("\n")[2:5]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert "ns, 2^9, 1 thr." in header
    assert "ns, 2^16, 2 thr." in header
    assert cells[:3] == ["float32/8bit", "2.03", "16.06"]
    assert all(float(cell) > 0 for cell in cells[3:])


def test_the_loss_of_a_mix(training):
    """Parameters in 16 bits train, and the model has what the optimizer stores."""
    mix, _ = named("float16/float32")
    model = training.TinyTransformer(0, "float32")
    stored = training.StoredParameters(model, mix, 1e-3)
    _, grads = model.loss_and_gradients(np.array(bench_tokens()[0]), np.array(bench_tokens()[1]))
    before = {name: p.copy() for name, p in model.parameters.items()}
    stored.step(grads)
    for name, parameter in model.parameters.items():
        assert np.array_equal(parameter, parameter.astype(np.float16))
        assert np.any(parameter != before[name])
        # the first step of Adam has the length of lr wherever there is a gradient
        assert np.max(np.abs(parameter - before[name])) < 3e-3
    assert training.final_loss(mix, 0, steps=20) < training.final_loss(mix, 0, steps=1)


def bench_tokens():
    from fused_adamw.tiny import TARGETS, TOKENS

    return TOKENS, TARGETS


def test_a_size_too_large_for_memory_is_named(bench, monkeypatch):
    monkeypatch.setattr(bench, "groups", lambda mixes, *_: ([], [*mixes][1:]))
    options = bench.parse_options(["--size", "2^40", "--mix", "float32/8bit", "--skip", "loss"])
    lines = bench.run(options)
    assert "float32/float32 in 2^40: needs more memory than there is" in lines
    assert "float32/8bit in 2^40: needs more memory than there is" in lines
