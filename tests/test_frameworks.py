"""The examples with frameworks: losses as with PyTorch's class, clipped, in mixed precision, with
accumulated gradients; and checkpoints that are resumed, also in another format."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", minversion="2.10")

EXAMPLES = Path(__file__).parents[1] / "examples" / "frameworks"
PROGRAM = """
import importlib, json, sys, warnings
example = importlib.import_module(sys.argv[1])
found = []
for arguments in json.loads(sys.argv[2]):
    if "accelerate" in sys.modules:  # keeps the precision for the process
        sys.modules["accelerate"].state.AcceleratorState._reset_state(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = example.train(**arguments)
    found.append(result | {"warnings": [str(x.message) for x in caught]})
with open(sys.argv[3], "w") as file:
    json.dump(found, file)
"""


class Framework(NamedTuple):
    needs: tuple[str, ...]
    mixed: dict  # arguments for mixed precision
    accumulated: dict | None  # for gradients of two batches
    first: dict  # for a run that is to be resumed, and saves a checkpoint
    rest: dict  # for one that resumes it
    checkpoint: str = "{}"  # from the argument save


FRAMEWORKS = {
    "accelerate_loop": Framework(
        ("accelerate",),
        {"precision": "bf16"},
        {"accumulate": 2},
        {"epochs": 2},
        {"epochs": 1},
    ),
    "lightning_module": Framework(
        ("lightning",),
        {"precision": "bf16-mixed"},
        {"accumulate": 2},
        {"epochs": 2},
        {"epochs": 3},
    ),
    "hf_trainer": Framework(
        ("transformers", "accelerate"),
        {"precision": "bf16"},
        {"accumulate": 2},
        {},
        {},
        "{}/checkpoint-12",
    ),
    "deepspeed_zero": Framework(
        ("deepspeed",), {"precision": "bf16"}, None, {"steps": 16}, {"steps": 8}
    ),
}
STAGES = (0, 1, 3)  # of DeepSpeed; 2 is the default of the example
LOW = {"state_dtype": "8bit"}


def calls_of(framework, folder):
    """Arguments of ``train``, by name."""
    runs = {"torch": ("torch.optim", {}), "ours": ("fused_adamw", {}), "low": ("fused_adamw", LOW)}
    calls = {}
    for kind, (name, options) in runs.items():
        how = {"name": name, "options": options}
        calls[kind] = how
        calls[kind, "mixed"] = how | framework.mixed
        if framework.accumulated is not None:
            calls[kind, "accumulated"] = how | framework.accumulated
        else:
            calls |= {(kind, stage): how | {"stage": stage} for stage in STAGES}
        path = str(folder / kind)
        calls[kind, "first"] = how | framework.first | {"save": path}
        calls[kind, "rest"] = how | framework.rest | {"resume": framework.checkpoint.format(path)}
    theirs = framework.checkpoint.format(folder / "torch")
    calls["low", "converted"] = calls["low", "rest"] | {"resume": theirs}
    return calls


@pytest.fixture(scope="module", params=FRAMEWORKS)
def results(request, tmp_path_factory):
    """What each call of an example has found, in one process."""
    framework = FRAMEWORKS[request.param]
    missing = [name for name in framework.needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp(request.param)
    calls, output = calls_of(framework, folder), folder / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, request.param, json.dumps([*calls.values()]), output],
        cwd=folder,
        env=os.environ
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": f"{EXAMPLES}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(calls, json.loads(output.read_text()), strict=True))


def variants(results):
    """The kinds of runs, by the second part of their names."""
    return [key[1] for key in results if isinstance(key, tuple) and key[0] == "ours"]


def test_losses_are_those_of_pytorch_s_class(results):
    """Up to rounding: of float32; in mixed precision of bfloat16, a unit of which is 0.004; in 8
    bits of the moments."""
    for key in ("ours", "low"):
        for variant in (None, *variants(results)):
            names = [x if variant is None else (x, variant) for x in (key, "torch")]
            found, expected = (results[name]["losses"] for name in names)
            rtol = 5e-3 if key == "low" or variant == "mixed" else 1e-5
            np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=str(names))
            assert expected[-1] < expected[0]


def test_the_kernels_update_all(results):
    for key, result in results.items():
        kind = key if isinstance(key, str) else key[0]
        assert set(result["paths"]) == (set() if kind == "torch" else {"kernels"}), key


def test_the_state_is_as_small_as_it_was_asked_for(results):
    for key, result in results.items():
        kind = key if isinstance(key, str) else key[0]
        if kind == "low":
            assert 2 * 1348 < result["bytes"] < 2.1 * 1348, key
        else:
            assert result["bytes"] == 8 * 1348, key


@pytest.mark.parametrize("kind", ["ours", "low"])
def test_resumed_runs_have_the_losses_of_whole_ones(results, kind):
    """Bit for bit."""
    first, rest = (results[kind, name]["losses"] for name in ("first", "rest"))
    whole = results[kind]["losses"]
    assert first[:16] == whole[:16]
    assert rest[-8:] == whole[-8:]
    assert not [x for x in results[kind, "rest"]["warnings"] if "converted" in x]


def test_a_checkpoint_of_pytorch_s_class_is_resumed_in_8_bits(results):
    found = results["low", "converted"]
    np.testing.assert_allclose(found["losses"][-8:], results["torch"]["losses"][-8:], rtol=5e-3)
    assert len([x for x in found["warnings"] if "'float32' moments" in x]) == 1
