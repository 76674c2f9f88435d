"""Files that someone has crafted: well formed, with the right checksums, and wrong."""

import copy
import json
import operator
from contextlib import suppress

import numpy as np
import pytest
from checkpoints import (
    VALUES,
    changes,
    contents,
    draw,
    header_and_data,
    nothing_changes,
    rewrite,
    trained,
    write_file,
)

from fused_adamw import AdamW
from fused_adamw.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    MismatchedCheckpointError,
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)
from fused_adamw.schedules import CosineDecay

READERS = [read_extra, read_step, read_arrays]


def make(lr=0.1, **options):
    params = [{"params": {"w": draw((1, 3))}, "lr": lr}, {"params": {"b": draw(2, np.float64, 1)}}]
    return trained(params, 2, max_grad_norm=1.0, ema_decay=0.9, **options)


@pytest.fixture(params=["constant", "schedule", "flat"])
def optimizer(request):
    if request.param == "flat":
        return trained({"w": draw((2, 3))}, 2, state_dtype="8bit")
    return make(CosineDecay(0.1, 9) if request.param == "schedule" else 0.1)


def assert_one_printable_line(error):
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 3000


def only_checkpoint_errors(path, optimizer):
    """Load a file, and read parts of it; return what it is refused with, or None."""
    before, refused = contents(optimizer), None
    try:
        load_checkpoint(path, optimizer)
    except CheckpointError as error:
        assert_one_printable_line(error)
        assert contents(optimizer) == before
        refused = error
    for read in READERS:
        try:
            read(path)
        except CheckpointError as error:
            assert_one_printable_line(error)
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("key", ["optimizer", "extra", "tensor_checksums"])
def test_any_value_in_the_metadata(path, optimizer, key):
    save_checkpoint(path, optimizer, extra={"a": {"b": [1]}}, arrays={"losses": np.arange(3.0)})
    header, data = header_and_data(path)
    loaded, metadata = copy.deepcopy(optimizer), header["__metadata__"]
    refused = 0
    for _, _, value in changes(json.loads(metadata[key])):
        write_file(path, header | {"__metadata__": metadata | {key: json.dumps(value)}}, data)
        if only_checkpoint_errors(path, loaded) is None:
            # What is accepted can be saved, loaded and stepped.
            save_checkpoint(path, loaded)
            load_checkpoint(path, copy.deepcopy(loaded))
            loaded = copy.deepcopy(optimizer)
        else:
            refused += 1
    assert refused >= 15


@pytest.mark.slow
def test_any_value_in_the_header(path, optimizer):
    save_checkpoint(path, optimizer, arrays={"losses": np.arange(3.0)})
    header, data = header_and_data(path)
    loaded, refused = copy.deepcopy(optimizer), 0
    for place, _, value in changes(header):
        if not place or not isinstance(value, dict):
            path.write_bytes((2).to_bytes(8, "little") + b"[]" + data)
        else:
            with suppress(AttributeError, TypeError, ValueError):  # of the writer
                write_file(path, value, data)
        refused += only_checkpoint_errors(path, loaded) is not None
    assert refused > 300


REFUSED = {
    "lr": [("param_groups", 0, "lr"), [True, False, "0.1", None, [0.1], {}, {"rate": 1}]],
    "betas": [("param_groups", 0, "betas"), [[True, 0.9], [0.9], {"0.9": 0, "0.99": 0}, "ab"]],
    "eps": [("param_groups", 0, "eps"), [True, None, [0.1], {}, {"rate": 1}]],
    "weight_decay": [("param_groups", 1, "weight_decay"), [False, "0"]],
    "t": [("t",), [True, 2.0, "2", -1, None]],
    "step": [("steps", "0.w"), [True, 2.0, "2", -1, None]],
    "orders": [("orders",), [{"0.w": True}, {"0.w": "C"}, {"x": "C"}, [], None]],
    "maximize": [("maximize",), [0, 1, None, "yes"]],
    "skip_nonfinite": [("skip_nonfinite",), [1, None]],
    "max_grad_norm": [("max_grad_norm",), [True, "1"]],
    "ema_decay": [("ema_decay",), [True, "1"]],
    "seed": [("seed",), [True, 1.0, "1"]],
}


@pytest.mark.parametrize(("place", "values"), REFUSED.values(), ids=REFUSED)
def test_numbers_of_the_wrong_kind(path, place, values):
    """JSON's true is the number 1 to Python."""
    optimizer = make()
    save_checkpoint(path, optimizer)
    saved = json.loads(header_and_data(path)[0]["__metadata__"]["optimizer"])
    whole = path.read_bytes()
    for value in values:
        changed = copy.deepcopy(saved)
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        path.write_bytes(whole)
        rewrite(path, optimizer=json.dumps(changed))
        with nothing_changes(optimizer, CheckpointError):
            load_checkpoint(path, optimizer)


@pytest.mark.parametrize("value", [{}, {"rate": 1}, {"schedule": "x", "rate": 1}])
def test_what_is_no_schedule(path, value):
    """For an optimizer that has one."""
    optimizer = make(CosineDecay(0.1, 9))
    save_checkpoint(path, optimizer)
    saved = json.loads(header_and_data(path)[0]["__metadata__"]["optimizer"])
    saved["param_groups"][0]["lr"] = value
    rewrite(path, optimizer=json.dumps(saved))
    with nothing_changes(optimizer, CheckpointError, "lr must be a number or a schedule"):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("kind", [bool, float, str, operator.neg])
@pytest.mark.parametrize("key", ["shape", "data_offsets"])
def test_numbers_of_the_wrong_kind_in_the_header(path, key, kind):
    optimizer = trained({"w": draw((1, 3)), "x": draw((1, 1))})
    save_checkpoint(path, optimizer)
    header, data = header_and_data(path)
    replaced = 0
    for entry in header.values():
        for i, n in enumerate(entry.get(key, ())):
            if kind is not bool or n in (0, 1):  # True is 1, and 12.0 is 12
                entry[key][i], replaced = kind(n), replaced + 1
    assert replaced
    write_file(path, header, data)
    with nothing_changes(optimizer, CorruptCheckpointError):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("t", [True, 2.0, "2", -1, None, [2]])
def test_the_step_of_a_file_is_a_count(path, t):
    save_checkpoint(path, make())
    saved = json.loads(header_and_data(path)[0]["__metadata__"]["optimizer"])
    rewrite(path, optimizer=json.dumps(saved | {"t": t}))
    with pytest.raises(CorruptCheckpointError):
        read_step(path)


@pytest.mark.parametrize(
    "version", ["-3", "0", "+1", " 1", "1 ", "1_0", "\uff11", "01", "1.0", "", "9" * 5000]
)
def test_what_is_no_version(path, version):
    optimizer = make()
    save_checkpoint(path, optimizer)
    rewrite(path, version=version)
    with nothing_changes(optimizer, CorruptCheckpointError):
        load_checkpoint(path, optimizer)


def test_numbers_given_as_booleans_are_saved_as_numbers(path):
    """The constructor takes True for 1; a file has the number."""
    optimizer = trained({"w": draw(3)}, 1, lr=True, betas=(False, 0.9), weight_decay=np.True_)
    save_checkpoint(path, optimizer)
    other = AdamW({"w": draw(3)})
    load_checkpoint(path, other)
    assert other.param_groups[0]["lr"] == 1
    assert contents(other) == contents(optimizer)


# ---- names


def test_names_are_escaped_in_messages(path):
    """They could be escape sequences of terminals, or lines that look like another message."""
    name = "w\x1b[2J\n\x9b\u202eerror"
    save_checkpoint(path, trained({name: draw(3)}, 1))
    optimizer = trained({"w": draw(3)})
    with nothing_changes(optimizer, MismatchedCheckpointError) as caught:
        load_checkpoint(path, optimizer)
    assert_one_printable_line(caught.value)
    assert r"w\x1b[2J\n\x9b\u202eerror" in str(caught.value).replace("\\\\", "\\")
    optimizer = trained({name: draw(3, seed=1)})
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with nothing_changes(optimizer, CorruptCheckpointError) as caught:
        load_checkpoint(path, optimizer)
    assert_one_printable_line(caught.value)


def test_paths_are_escaped_in_messages(tmp_path):
    path = tmp_path / "a\x1b[2J\n"
    try:
        path.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    for read in READERS:
        with pytest.raises(CorruptCheckpointError) as caught:
            read(path)
        assert_one_printable_line(caught.value)


def test_a_long_name_is_shortened_in_messages(path):
    save_checkpoint(path, trained({"w" * 100_000: draw(3)}, 1))
    optimizer = trained({"w": draw(3)})
    with nothing_changes(optimizer, MismatchedCheckpointError) as caught:
        load_checkpoint(path, optimizer)
    assert_one_printable_line(caught.value)


def test_the_values_are_of_all_kinds():
    assert {type(value).__name__ for value in VALUES} >= {"bool", "int", "float", "str", "list"}
