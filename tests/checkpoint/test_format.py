"""The file is what docs/checkpoint-format.md says, and any reader of safetensors reads it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import contents, draw, groups, mapping, metadata_of, sealed, trained

from fused_adamw import AdamW
from fused_adamw.checkpoint import (
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoint-format.md"


@pytest.mark.skipif(not DOCUMENT.exists(), reason="not in the source distribution")
def test_the_program_of_the_documentation(path):
    (_, code) = DOCUMENT.read_text().split("```python\n")
    code = code.split("```")[0]
    assert len(code.splitlines()) <= 20
    save_checkpoint(path, trained(mapping() | {"é": draw(3)}), extra={"é": "ü"})
    run = subprocess.run(
        [sys.executable, "-I", "-c", code, str(path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("step 3 [['m/W_Q', 'F32', [3, 4]], ")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    run = subprocess.run([sys.executable, "-I", "-c", code, str(path)], capture_output=True)
    assert b"AssertionError" in run.stderr


@pytest.mark.parametrize("make", [mapping, groups, lambda: draw(())])
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_a_file_that_safetensors_writes(path, make, state_dtype):
    """With the checksums as documented it is read, although its header is in another order."""
    if make is groups and state_dtype is not None:
        pytest.skip("has float64")
    optimizer = trained(make(), state_dtype=state_dtype)
    save_checkpoint(path, optimizer, extra={"a": 1}, arrays={"b": np.arange(3.0)})
    tensors, metadata = safetensors.numpy.load_file(path), metadata_of(path)
    assert sealed(tensors, metadata) == metadata
    path.write_bytes(safetensors.numpy.save(tensors, dict(reversed(metadata.items()))))
    other = AdamW(make(), state_dtype=state_dtype)
    assert load_checkpoint(path, other) == {"a": 1}
    assert contents(other) == contents(optimizer)


@pytest.mark.parametrize("characters", range(8))
def test_data_is_aligned(path, characters):
    """As safetensors itself places it, so that a reader can map it; for headers of any length."""
    arrays = {"odd": np.arange(3, dtype=np.int8), "wide": np.arange(3.0)}
    save_checkpoint(path, trained(mapping()), extra={"a": "x" * characters}, arrays=arrays)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    sizes = {"F64": 8, "F32": 4, "I8": 1}
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        assert (start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0


# ---- arrays of the caller

ARRAYS = {
    "losses": np.linspace(3, 1, 7),
    "a/b": np.arange(6, dtype=np.int64).reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(20, dtype=np.uint16)[::3],
    "0-d": np.array(True),
    "empty": np.zeros((0, 4), np.float16),
    "": np.arange(5, dtype=np.int8),
    "w": np.ones(3, np.uint64),
}


def test_arrays(path):
    optimizer = trained({"w": draw(3)})
    save_checkpoint(path, optimizer, extra={"n": 1}, arrays=ARRAYS)
    found = read_arrays(path)
    other_reader = safetensors.numpy.load_file(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        np.testing.assert_array_equal(other_reader[f"extra/{name}"], array, strict=True)
        assert found[name].flags.owndata
        found[name][...] = 0
    other = AdamW({"w": np.zeros(3, np.float32)})
    for convert in (False, True):
        assert load_checkpoint(path, other, convert=convert) == {"n": 1}
        assert contents(other) == contents(optimizer)
    assert (read_extra(path), read_step(path)) == ({"n": 1}, 3)
    save_checkpoint(path, AdamW({"w": draw(3)}))
    assert (read_extra(path), read_step(path)) == ({}, 0)


def test_without_arrays(path):
    for arrays in (None, {}):
        save_checkpoint(path, trained(mapping()), arrays=arrays)
        assert read_arrays(path) == {}


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.array([1, None])},
        {"a": np.array(["x"])},
        {"a": np.zeros(3, ">f4")},
        {"a": np.zeros(3, np.complex64)},
        {"a": np.ma.masked_array([1.0, 2.0], [True, False])},
        {"a": np.zeros(3, "datetime64[s]")},
        {3: np.zeros(3)},
        [np.zeros(3)],
        np.zeros(3),
    ],
    ids=lambda arrays: str(arrays)[:30],
)
def test_arrays_that_cannot_be_written(path, arrays):
    with pytest.raises(TypeError, match="arrays"):
        save_checkpoint(path, trained(mapping()), arrays=arrays)
    assert not list(path.parent.iterdir())


def test_arrays_of_bfloat16(path):
    array = np.zeros(3, pytest.importorskip("ml_dtypes").bfloat16)
    with pytest.raises(TypeError, match=r"arrays\['a'\] must be .*; got ndarray of bfloat16"):
        save_checkpoint(path, trained(mapping()), arrays={"a": array})


def test_safetensors_is_not_needed(path):
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import numpy as np, fused_adamw, fused_adamw.checkpoint as c\n"
        "opt = fused_adamw.AdamW(np.ones(3))\n"
        "c.save_checkpoint(sys.argv[1], opt); c.load_checkpoint(sys.argv[1], opt)\n"
        "assert 'mpi4py' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
