"""Checkpoints: what was saved comes back to the bit; what is damaged or foreign changes nothing."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")

import safetensors.numpy

from fused_adamw import AdamW, checkpoint, matrices_only
from fused_adamw.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    MismatchedCheckpointError,
    NewerCheckpointError,
    load_checkpoint,
    read_extra,
    save_checkpoint,
)
from fused_adamw.schedules import CosineDecay, LinearWarmup


def draw(shape, dtype=np.float32, seed=0):
    return np.array(np.random.default_rng(seed).standard_normal(shape), dtype)


def mapping(dtype=np.float32):
    return {"W_Q": draw((3, 4), dtype, 1), "b": draw(5, dtype, 2), "scale": draw((), dtype, 3)}


def groups():
    return [
        {"params": {"w": draw((4, 3), seed=1), "b": draw(4, np.float64, 2)}, "lr": 0.01},
        {"params": [draw(6, seed=3)], "weight_decay": 0.0, "betas": (0.8, 0.95)},
    ]


def arrays_in(structure):
    """The arrays of params, or of groups, in order."""
    if isinstance(structure, dict):
        return [a for key, part in structure.items() if key != "lr" for a in arrays_in(part)]
    if isinstance(structure, list):
        return [array for part in structure for array in arrays_in(part)]
    return [structure] if isinstance(structure, np.ndarray) else []


def gradients(params, seed, missing=False):
    """Random ones in the structure of ``params``; some are None with ``missing``."""
    rng = np.random.default_rng(seed)

    def like(part):
        if isinstance(part, dict) and "params" in part:
            return like(part["params"])
        if isinstance(part, dict):
            return {key: like(value) for key, value in part.items()}
        if isinstance(part, list):
            return [like(x) for x in part]
        gradient = np.array(rng.standard_normal(part.shape), part.dtype)
        return None if missing and rng.random() < 0.4 else gradient

    return like(params)


def trained(params, steps=3, **options):
    optimizer = AdamW(params, **options)
    for seed in range(steps):
        optimizer.step(gradients(params, seed))
    return optimizer


def contents(optimizer):
    """All that a checkpoint restores, byte by byte."""
    state = optimizer.state_dict()
    entries = {
        name: {key: x if key == "step" else (x.shape, x.tobytes()) for key, x in entry.items()}
        for name, entry in state.pop("state").items()
    }
    params = arrays_in([group["params"] for group in optimizer.param_groups])
    return [array.tobytes() for array in params], entries, state


@contextmanager
def nothing_changes(optimizer, error=CheckpointError, match=None):
    before = contents(optimizer)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert contents(optimizer) == before


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


# ---- there and back

STRUCTURES = {
    "one array": lambda: draw((3, 4)),
    "a sequence": lambda: [draw((3, 4)), draw(5, np.float64), draw(()), draw((0, 3))],
    "a mapping": mapping,
    "groups": groups,
    "Fortran order": lambda: {"w": np.asfortranarray(draw((3, 4))), "v": draw((2, 3, 4))},
    "no NumPy array": lambda: {"w": memoryview(draw(5))},
}


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES.keys())
@pytest.mark.parametrize("amsgrad", [False, True])
def test_round_trip(path, make, amsgrad):
    optimizer = AdamW(make(), amsgrad=amsgrad)
    rng = np.random.default_rng(5)
    state = optimizer.state_dict()
    for i, entry in enumerate(state["state"].values()):
        entry["step"] = i + 3
        for role in entry.keys() - {"step"}:
            entry[role][...] = rng.random(entry[role].shape)
    optimizer.load_state_dict(state | {"t": 2**40})
    save_checkpoint(path, optimizer)

    other = AdamW(make(), amsgrad=amsgrad)
    for group in other.param_groups:
        for array in arrays_in(group["params"]):
            array[...] = 7
    assert load_checkpoint(path, other) == {}
    assert contents(other) == contents(optimizer)


def test_names_in_the_file_are_readable(path):
    params = mapping()
    optimizer = trained(params, amsgrad=True)
    save_checkpoint(path, optimizer)
    tensors = safetensors.numpy.load_file(path)
    roles = ["params", "m", "v", "v_max"]
    assert set(tensors) == {f"{role}/{name}" for role in roles for name in params}
    for name in params:
        assert np.array_equal(tensors[f"params/{name}"], params[name])
        for role in roles[1:]:
            assert np.array_equal(tensors[f"{role}/{name}"], getattr(optimizer, role)[name])


def metadata_of(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def test_metadata(path):
    schedule = CosineDecay(0.1, 9)
    optimizer = trained(groups(), lr=schedule, max_grad_norm=0.5)
    save_checkpoint(path, optimizer, extra={"position": 17})
    metadata = metadata_of(path)
    assert metadata["version"] == "1"
    assert json.loads(metadata["extra"]) == {"position": 17}
    saved = json.loads(metadata["optimizer"])
    assert saved["t"] == 3
    assert saved["steps"] == {"0.w": 3, "0.b": 3, "1.0": 3}
    assert saved["max_grad_norm"] == 0.5
    assert [group["lr"] for group in saved["param_groups"]] == [0.01, {"schedule": repr(schedule)}]


def test_hyper_parameters_and_options_return(path):
    optimizer = trained(groups())
    optimizer.param_groups[1].update(lr=0.1 + 0.2, betas=(0.7, 1 / 3), eps=1e-300)
    optimizer.maximize, optimizer.max_grad_norm, optimizer.skip_nonfinite = True, 1 / 7, True
    save_checkpoint(path, optimizer)
    other = AdamW(groups())
    load_checkpoint(path, other)
    assert contents(other) == contents(optimizer)
    assert other.param_groups[1]["betas"] == (0.7, 1 / 3)


def test_hyper_parameters_of_other_types(path):
    eps = Fraction(1, 3)
    optimizer = trained(mapping(), lr=np.float32(0.1), max_grad_norm=np.int64(2), eps=eps)
    optimizer.skip_nonfinite = np.bool_(True)
    save_checkpoint(path, optimizer)
    other = AdamW(mapping())
    load_checkpoint(path, other)
    assert other.param_groups[0]["lr"] == float(np.float32(0.1))
    assert other.param_groups[0]["eps"] == 1 / 3
    assert other.max_grad_norm == 2
    assert other.skip_nonfinite is True


@pytest.mark.parametrize(
    "extra",
    [{}, {"a": 1}, {"rng": np.random.default_rng(3).bit_generator.state, "é\n\ud800": [None, 0.1]}],
)
def test_extra(path, extra):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra=extra)
    assert read_extra(path) == extra
    assert load_checkpoint(path, optimizer) == extra


@pytest.mark.parametrize("extra", [{"a": object()}, {"a": np.zeros(2)}, {(1, 2): 3}, [1], "a", 3])
def test_extra_that_cannot_be_written(path, extra):
    with pytest.raises(TypeError, match="extra"):
        save_checkpoint(path, trained(mapping()), extra=extra)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("name", ["é", "a/b", 'quote"', "line\n", "", "\0", "__metadata__"])
def test_unusual_names(path, name):
    optimizer = trained({name: draw(3), "w": draw(2)})
    save_checkpoint(path, optimizer)
    other = AdamW({name: np.zeros(3, np.float32), "w": np.zeros(2, np.float32)})
    load_checkpoint(path, other)
    assert contents(other) == contents(optimizer)


def test_a_name_that_is_no_unicode(path):
    with pytest.raises(ValueError, match="surrogates"):
        save_checkpoint(path, AdamW({"\ud800": draw(3)}))
    assert os.listdir(path.parent) == []


def test_more_than_the_format_holds(path, monkeypatch):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    needed = int.from_bytes(path.read_bytes()[:8], "little")
    assert checkpoint.HEADER_LIMIT == 100_000_000  # of the format
    monkeypatch.setattr(checkpoint, "HEADER_LIMIT", needed)
    save_checkpoint(path, optimizer)
    old = path.read_bytes()
    with pytest.raises(ValueError, match="extra"):
        save_checkpoint(path, optimizer, extra={"a": "x" * 8})
    assert path.read_bytes() == old


def test_what_safetensors_refuses_to_write(path, monkeypatch):
    def refuse(tensors, metadata):
        raise safetensors.SafetensorError("header too large")

    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(ValueError, match=r"extra.*header too large"):
        save_checkpoint(path, trained(mapping()))
    assert os.listdir(path.parent) == []


# ---- a run that is resumed

RUNS = {
    "plain": (mapping, {}),
    "amsgrad": (mapping, {"amsgrad": True, "max_grad_norm": 0.5}),
    "groups": (groups, {"maximize": True, "skip_nonfinite": True}),
    "one array": (lambda: draw((3, 4)), {}),
    "decay mask": (mapping, {"decay_mask": matrices_only}),
    "schedule": (groups, {"lr": LinearWarmup(0.1, 5).then(CosineDecay(0.1, 20)), "amsgrad": True}),
}


@pytest.mark.parametrize(("make", "options"), RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 9])
def test_a_resumed_run_is_the_run_that_never_stopped(path, make, options, missing, stop):
    options = {"lr": 0.01} | options
    params = make()
    straight = AdamW(params, **options)
    for seed in range(20):
        if seed == stop:
            save_checkpoint(path, straight, extra={"next": seed})
        straight.step(gradients(params, seed, missing))

    params = make()
    for array in arrays_in(params):
        array[...] = np.nan
    resumed = AdamW(params, **options)
    for seed in range(load_checkpoint(path, resumed)["next"], 20):
        resumed.step(gradients(params, seed, missing))
    assert contents(resumed) == contents(straight)
    assert resumed.t == straight.t == 20


def test_a_schedule_is_the_optimizers_own(path):
    save_checkpoint(path, trained(mapping(), lr=lambda t: 0.1 / t))
    schedule = CosineDecay(0.3, 9)
    other = AdamW(mapping(), lr=schedule)
    load_checkpoint(path, other)
    assert other.param_groups[0]["lr"] is schedule
    assert other.t == 3


# ---- damage


@pytest.fixture
def small(path):
    """A small file, and an optimizer of another state that it fits."""
    source = trained({"w": draw((1, 3)), "b": draw(1, np.float64)}, 2, max_grad_norm=1.0)
    save_checkpoint(path, source, extra={"position": 3})
    return AdamW({"w": draw((1, 3), seed=7), "b": draw(1, np.float64, 8)}), source


def refuses(path, optimizer):
    with suppress(CheckpointError):
        load_checkpoint(path, optimizer)
        return False
    return True


def test_every_bit_flipped(path, small):
    optimizer, _ = small
    whole, before = path.read_bytes(), contents(optimizer)
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255, 0):
                file.seek(position)
                file.write(bytes([byte ^ mask]))
                assert mask == 0 or refuses(path, optimizer), (position, mask)
            assert contents(optimizer) == before
    assert path.read_bytes() == whole
    load_checkpoint(path, optimizer)


def test_every_length(path, small):
    optimizer, _ = small
    whole, before = path.read_bytes(), contents(optimizer)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refuses(path, optimizer), length
        assert contents(optimizer) == before
    path.write_bytes(whole + b"\0")
    assert refuses(path, optimizer)
    assert contents(optimizer) == before


def test_random_damage(path, small):
    """Bytes and blocks overwritten: refused, or, as where a blank becomes a tab, of one meaning."""
    optimizer, source = small
    whole, before = path.read_bytes(), contents(optimizer)
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        start = rng.randrange(len(whole))
        size = rng.choice([1, 1, 2, 3, 8, 100])
        damaged[start : start + size] = rng.choice(
            [rng.randbytes(size), bytes(size), b"\t" * size, b"9" * size, b'"' * size, b""]
        )
        path.write_bytes(damaged)
        if refuses(path, optimizer):
            assert contents(optimizer) == before
        else:
            assert contents(optimizer) == contents(source)
            optimizer = AdamW({"w": draw((1, 3), seed=7), "b": draw(1, np.float64, 8)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        b"not a checkpoint at all",
        b"\x02" + b"\0" * 7 + b"{}",
        b"\x02" + b"\0" * 7 + b"[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        safetensors.numpy.save({"w": np.zeros(3)}),
        safetensors.numpy.save({"w": np.zeros(3)}, {"format": "pt"}),
        safetensors.numpy.save({"w": np.zeros(3)}, {"format": checkpoint.FORMAT, "version": "x"}),
        safetensors.numpy.save({"w": np.zeros(3)}, {"format": checkpoint.FORMAT, "version": "1"}),
    ],
)
def test_other_files(path, data):
    path.write_bytes(data)
    optimizer = trained(mapping())
    with nothing_changes(optimizer, CorruptCheckpointError, "damaged, or no checkpoint"):
        load_checkpoint(path, optimizer)


def rewrite(path, other_tensors=(), **changes):
    """A file with other tensors and metadata, and the checksum that belongs to it."""
    metadata = metadata_of(path) | changes
    del metadata["checksum"]
    tensors = safetensors.numpy.load(path.read_bytes()) | dict(other_tensors)
    metadata["checksum"] = checkpoint._checksum(tensors, metadata)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def test_a_checksum_covers_what_it_should(path, small):
    """The other tests of damage might pass for the parser's sake: here the file is well formed."""
    optimizer, source = small
    tensors, metadata = safetensors.numpy.load(path.read_bytes()), metadata_of(path)
    other_shape = {
        **tensors,
        **{f"{role}/w": tensors[f"{role}/w"].reshape(3, 1) for role in ("params", "m", "v")},
    }
    swapped = {**tensors, "m/w": tensors["v/w"], "v/w": tensors["m/w"]}
    other_t = metadata["optimizer"].replace('"t": 2', '"t": 3')
    assert other_t != metadata["optimizer"]
    for changed in (
        (tensors, metadata | {"extra": "{}"}),
        (tensors, metadata | {"optimizer": other_t}),
        (tensors, metadata | {"another": ""}),
        (swapped, metadata),
        (other_shape, metadata),
        ({**tensors, "m/w": tensors["m/w"].view(np.int32)}, metadata),
    ):
        path.write_bytes(safetensors.numpy.save(*changed))
        with nothing_changes(optimizer, CorruptCheckpointError, "checksum"):
            load_checkpoint(path, optimizer)
    # It is the change that is refused, not the way of making it.
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    load_checkpoint(path, optimizer)
    assert contents(optimizer) == contents(source)


def test_another_format(path, small):
    rewrite(path, format="another")
    with nothing_changes(small[0], CorruptCheckpointError, "its format is 'another'"):
        load_checkpoint(path, small[0])


@pytest.mark.parametrize("version", ["2", "10"])
def test_newer_version(path, small, version):
    rewrite(path, version=version)
    with nothing_changes(small[0], NewerCheckpointError, f"version {version}"):
        load_checkpoint(path, small[0])


def test_newer_version_of_unknown_contents(path, small):
    data = safetensors.numpy.save({"a": np.zeros(2)}, {"format": checkpoint.FORMAT, "version": "2"})
    path.write_bytes(data.replace(b'"F64"', b'"I64"'))
    with nothing_changes(small[0], NewerCheckpointError):
        load_checkpoint(path, small[0])


# ---- other models

OTHERS = {
    "a tensor less": (lambda: {"W_Q": draw((3, 4)), "b": draw(5)}, "unexpected .*params/scale"),
    "a tensor more": (lambda: mapping() | {"bias": draw(2)}, "params/bias"),
    "another name": (lambda: {"W_K": draw((3, 4)), "b": draw(5), "scale": draw(())}, "W_Q"),
    "another shape": (lambda: mapping() | {"b": draw(6)}, r"params/b .*\(5,\).*\(6,\)"),
    "of the same size": (lambda: mapping() | {"W_Q": draw((4, 3))}, "params/W_Q"),
    "0-d or not": (lambda: mapping() | {"scale": draw(1)}, "params/scale"),
    "another dtype": (lambda: mapping(np.float64), "float32.*float64"),
    "a group": (lambda: [{"params": mapping()}], "missing"),
    "a sequence": (lambda: list(mapping().values()), "missing"),
}


@pytest.mark.parametrize(("make", "match"), OTHERS.values(), ids=OTHERS.keys())
def test_another_model(path, make, match):
    save_checkpoint(path, trained(mapping()))
    optimizer = trained(make(), 1)
    with nothing_changes(optimizer, MismatchedCheckpointError, match):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("role", ["params", "m", "v"])
@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((3, 1), np.float32)])
def test_one_tensor_of_another_kind(path, small, role, other):
    rewrite(path, {f"{role}/w": other})
    with nothing_changes(small[0], MismatchedCheckpointError, f"{role}.* (float64|shape)"):
        load_checkpoint(path, small[0])


def test_many_names_make_a_short_message(path):
    save_checkpoint(path, AdamW([draw(1) for _ in range(1000)]))
    optimizer = AdamW({"w": draw(1)})
    with nothing_changes(optimizer, MismatchedCheckpointError) as caught:
        load_checkpoint(path, optimizer)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_amsgrad_or_not(path):
    for saved in False, True:
        save_checkpoint(path, trained(mapping(), amsgrad=saved))
        optimizer = trained(mapping(), amsgrad=not saved)
        with nothing_changes(optimizer, MismatchedCheckpointError, f"amsgrad={saved}"):
            load_checkpoint(path, optimizer)


def test_schedule_or_number(path):
    schedule = CosineDecay(0.1, 9)
    for saved, own in (schedule, 0.1), (0.1, schedule):
        save_checkpoint(path, trained(mapping(), lr=saved))
        optimizer = trained(mapping(), lr=own)
        with nothing_changes(optimizer, MismatchedCheckpointError, "lr of group 0"):
            load_checkpoint(path, optimizer)


def test_the_schedule_of_one_group(path):
    save_checkpoint(path, trained(groups(), lr=CosineDecay(0.1, 9)))
    optimizer = trained(groups(), lr=0.1)
    with nothing_changes(optimizer, MismatchedCheckpointError, "lr of group 1"):
        load_checkpoint(path, optimizer)


def test_other_groups(path):
    save_checkpoint(path, AdamW([{"params": []}, {"params": {"w": draw(3)}}]))
    optimizer = AdamW([{"params": []}, {"params": {"w": draw(3)}}, {"params": []}])
    with nothing_changes(optimizer, MismatchedCheckpointError, "2 parameter groups; expected 3"):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("t", -1),
        ("t", "3"),
        ("steps", {"w": 2}),
        ("steps", {"w": 2, "b": -1}),
        ("max_grad_norm", -1.0),
        ("param_groups", [{"lr": -1.0, "betas": [0.9, 0.99], "eps": 0, "weight_decay": 0}]),
        ("param_groups", [{"lr": 0.1}]),
        ("unknown", 1),
    ],
)
def test_a_well_formed_file_of_bad_values(path, small, key, value):
    optimizer, _ = small
    saved = json.loads(metadata_of(path)["optimizer"])
    rewrite(path, optimizer=json.dumps(saved | {key: value}))
    with nothing_changes(optimizer, MismatchedCheckpointError):
        load_checkpoint(path, optimizer)


def test_parameters_that_became_read_only(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer)
    optimizer.step(gradients(mapping(), 9))
    optimizer.param_groups[0]["params"]["scale"].flags.writeable = False
    with nothing_changes(optimizer, MismatchedCheckpointError, "params/scale is read-only"):
        load_checkpoint(path, optimizer)


# ---- the file


def test_what_is_loaded_does_not_hold_the_file(path, small):
    optimizer, source = small
    load_checkpoint(path, optimizer)
    with open(path, "r+b") as file:
        file.write(b"\0" * 100)
        file.truncate(100)
    assert contents(optimizer) == contents(source)
    optimizer.step(gradients(optimizer.param_groups[0]["params"], 3))


def test_the_file_is_read_not_mapped(path, small, monkeypatch):
    maps = []

    def deserialize(data):
        with open("/proc/self/maps") as file:
            maps.append(file.read())
        return safetensors.deserialize(data)

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(checkpoint, "deserialize", deserialize)
    load_checkpoint(path, small[0])
    assert len(maps) == 1
    assert path.name not in maps[0]


@pytest.mark.parametrize("make", [str, os.fspath, lambda path: path], ids=["str", "fspath", "Path"])
def test_kinds_of_paths(path, make):
    optimizer = trained(mapping())
    save_checkpoint(make(path), optimizer)
    load_checkpoint(make(path), optimizer)


def test_a_path_without_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    save_checkpoint("a", trained(mapping()))
    assert os.listdir() == ["a"]


def test_permissions(path):
    optimizer = trained(mapping())
    umask = os.umask(0o027)
    try:
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save_checkpoint(path, optimizer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(umask)


def test_symbolic_links(tmp_path):
    optimizer = trained(mapping())
    (tmp_path / "disk").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("disk/real")
    for _ in range(2):  # to a file that is not there yet, and to one that is
        save_checkpoint(link, optimizer)
        assert link.is_symlink()
        assert os.listdir(tmp_path / "disk") == ["real"]
        assert not (tmp_path / "disk" / "real").is_symlink()
    load_checkpoint(link, optimizer)


def test_hard_links_keep_the_old_file(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    other = path.with_name("kept")
    other.hardlink_to(path)
    save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(other, optimizer) == {"n": 1}
    assert load_checkpoint(path, optimizer) == {"n": 2}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_not_a_regular_file(path, kind):
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        save_checkpoint(path, trained(mapping()))
    assert os.listdir(path.parent) == [path.name]
    assert not path.is_file()


def test_no_such_file(path):
    optimizer = trained(mapping())
    with nothing_changes(optimizer, FileNotFoundError):
        load_checkpoint(path, optimizer)


def test_no_such_folder(tmp_path):
    optimizer = trained(mapping())
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "none" / "a", optimizer)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        save_checkpoint(tmp_path / "file" / "a", optimizer)


def test_unwritable_folder(path):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    path.parent.chmod(0o555)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(PermissionError):
            save_checkpoint(path, optimizer, extra={"n": 2})
        assert load_checkpoint(path, optimizer) == {"n": 1}
    finally:
        path.parent.chmod(0o755)
    assert os.listdir(path.parent) == [path.name]


def test_leftovers_of_killed_processes_are_removed(path):
    own = [f".{path.name}.{'0123456789abcdef'}.tmp", f".{path.name}.{'f' * 16}.tmp"]
    others = [
        f".{path.name}.0123.tmp",
        f".{path.name}.{'g' * 16}.tmp",
        f".{path.name}x.{'f' * 16}.tmp",
        f".x{path.name}.{'f' * 16}.tmp",
        f"{path.name}.{'f' * 16}.tmp",
        f"x.{path.name}.{'f' * 16}.tmp",
        f".{path.name}.{'f' * 16}.tmp.gz",
        f".{path.name.replace('.', '-')}.{'f' * 16}.tmp",
    ]
    for name in own + others:
        path.with_name(name).touch()
    save_checkpoint(path, trained(mapping()))
    assert sorted(os.listdir(path.parent)) == sorted([*others, path.name])


def test_a_folder_that_may_not_be_listed(path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    save_checkpoint(path, trained(mapping()))
    assert os.listdir(path.parent) == [path.name]


# ---- errors amid a save


class Failing:
    """Stands for a function of ``os``; its call number ``at`` raises instead."""

    def __init__(self, function, at, error):
        self.function, self.at, self.error, self.calls = function, at, error, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.function(*args, **options)


ERRORS = [OSError(errno.EIO, "I/O error"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_before_the_renaming_leaves_the_old_file(path, monkeypatch, name, error, exists):
    optimizer = trained(mapping())
    if exists or name == "chmod":
        save_checkpoint(path, optimizer, extra={"n": 1})
    old = path.read_bytes() if path.exists() else None
    before = contents(optimizer)
    with monkeypatch.context() as patch:
        failing = Failing(getattr(os, name), 1, error)
        patch.setattr(os, name, failing)
        with pytest.raises(type(error)) as caught:
            save_checkpoint(path, optimizer, extra={"n": 2})
    assert caught.value is error
    assert failing.calls == 1
    assert os.listdir(path.parent) == ([path.name] if old else [])
    assert old is None or path.read_bytes() == old
    assert contents(optimizer) == before


def test_an_error_of_the_folder_leaves_the_new_file(path, monkeypatch):
    optimizer = trained(mapping())
    save_checkpoint(path, optimizer, extra={"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Failing(os.fsync, 2, OSError(errno.EIO, "I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            save_checkpoint(path, optimizer, extra={"n": 2})
    assert load_checkpoint(path, optimizer) == {"n": 2}
    assert os.listdir(path.parent) == [path.name]


def test_a_file_system_that_cannot_flush_folders(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, 2, OSError(errno.EINVAL, "Invalid")))
    save_checkpoint(path, trained(mapping()))


def test_file_is_flushed_before_the_renaming_and_the_folder_after(path, monkeypatch):
    calls = []

    def fsync(descriptor, fsync=os.fsync):
        status = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def replace(source, target, replace=os.replace):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint(path, trained(mapping()))
    assert calls == [path.stat().st_size, "rename", "folder"]


# ---- Ctrl-C amid a load


def interrupting(optimizer, monkeypatch, moment):
    """Let SIGINT arrive while the state is written."""
    load_state_dict = optimizer.load_state_dict

    def interrupted(*arguments):
        if moment == "before":
            signal.raise_signal(signal.SIGINT)
        load_state_dict(*arguments)
        if moment == "after":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(optimizer, "load_state_dict", interrupted, raising=False)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_load_is_whole(path, small, monkeypatch, moment):
    optimizer, source = small
    handler = signal.getsignal(signal.SIGINT)
    interrupting(optimizer, monkeypatch, moment)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, optimizer)
    assert contents(optimizer) == contents(source)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_is_not_of_python(path, small, monkeypatch):
    """It cannot be put back, so it stays in its place."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    load_checkpoint(path, small[0])
    assert contents(small[0]) == contents(small[1])


def test_save_and_load_in_a_thread(path):
    optimizer, errors = trained(mapping()), []

    def work():
        try:
            save_checkpoint(path, optimizer)
            load_checkpoint(path, optimizer)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


# ---- processes that are killed

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def marked(n):
    """An optimizer all of whose numbers are n; large enough for a save to take some time."""
    params = {"w": np.full((300, 200), n, np.float32), "b": np.full(7, n, np.float64)}
    optimizer = AdamW(params)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["step"] = n
        entry["m"][...] = entry["v"][...] = n
    optimizer.load_state_dict(state | {"t": n})
    return optimizer


def mark_in(path):
    """The n of a file, all of which has to agree."""
    optimizer = marked(0)
    n = load_checkpoint(path, optimizer)["n"]
    assert contents(optimizer) == contents(marked(n))
    return n


def save_marked(path, n):
    save_checkpoint(path, marked(n), extra={"n": n})


def start(work):
    """A child process."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def stop(child):
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child ended before it was killed"


@forks
def test_killed_at_random_moments(path):
    rng = random.Random(0)
    save_marked(path, 1)
    reached = 1

    def save_for_ever():
        n = reached
        while True:
            n += 1
            save_marked(path, n)

    for _ in range(40):
        child = start(save_for_ever)
        time.sleep(rng.uniform(0, 0.04))
        stop(child)
        found = mark_in(path)
        assert found >= reached
        reached = found
        assert len(os.listdir(path.parent)) <= 2  # the file, and what the last child left
    assert reached > 10
    save_marked(path, reached)
    assert os.listdir(path.parent) == [path.name]


@forks
@pytest.mark.parametrize(
    ("name", "call", "before", "found"),
    [
        ("fsync", 1, True, 1),
        ("fsync", 1, False, 1),
        ("replace", 1, True, 1),
        ("replace", 1, False, 2),
        ("fsync", 2, True, 2),
        ("fsync", 2, False, 2),
    ],
)
def test_killed_at_each_stage(path, name, call, before, found):
    save_marked(path, 1)

    def save():
        function, calls = getattr(os, name), []

        def killing(*args):
            calls.append(args)
            if before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*args)
            if not before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, killing)
        save_marked(path, 2)

    _, status = os.waitpid(start(save), 0)
    assert os.WIFSIGNALED(status)
    assert mark_in(path) == found
    assert len(os.listdir(path.parent)) == (2 if found == 1 else 1)
    save_marked(path, 3)
    assert os.listdir(path.parent) == [path.name]


class CutOff:
    """A file whose writer is killed when it has written a part of the data."""

    def __init__(self, part, *arguments):
        self.part, self.arguments = part, arguments

    def __enter__(self):
        self.file = open(*self.arguments)
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[: int(len(data) * self.part)])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.999, 1])
def test_killed_amid_the_writing(path, part):
    save_marked(path, 1)

    def save():
        checkpoint.open = partial(CutOff, part)
        save_marked(path, 2)

    _, status = os.waitpid(start(save), 0)
    assert os.WIFSIGNALED(status)
    assert mark_in(path) == 1
    assert len(os.listdir(path.parent)) == 2
    save_marked(path, 2)
    assert os.listdir(path.parent) == [path.name]


@forks
@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_no_room_for_the_whole_file(path, size):
    """The limit on the size of files fails a write halfway, as a full disk does."""
    resource = pytest.importorskip("resource")
    save_marked(path, 1)

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            save_marked(path, 2)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 2)

    _, status = os.waitpid(start(save), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert mark_in(path) == 1
    assert os.listdir(path.parent) == [path.name]


@forks
def test_loaded_while_another_process_saves(path):
    save_marked(path, 1)

    def save_for_ever():
        n = 1
        while True:
            n += 1
            save_marked(path, n)

    child = start(save_for_ever)
    try:
        found, end = [1], time.monotonic() + 10
        while len(set(found)) < 40 and time.monotonic() < end:
            found.append(mark_in(path))
    finally:
        stop(child)
    assert found == sorted(found)
    assert len(set(found)) >= 2


# ---- without safetensors


def test_without_safetensors():
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import fused_adamw, fused_adamw.schedules\n"
        "import fused_adamw.checkpoint"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        'ImportError: checkpoints need safetensors: pip install "fused-adamw[checkpoint]"'
    )
    assert "During handling" not in run.stderr
