"""What was saved is restored to the bit."""

import json
import os
from fractions import Fraction

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import arrays_in, contents, draw, gradients, groups, mapping, metadata_of, trained

from fused_adamw import AdamW, matrices_only
from fused_adamw._io import atomic_write, safetensors_stream
from fused_adamw.checkpoint import load_checkpoint, read_extra, read_step, save_checkpoint
from fused_adamw.schedules import CosineDecay, LinearDecay, LinearWarmup

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
    assert safetensors_stream.MAX_HEADER_BYTES <= 100_000_000  # or safetensors cannot read it
    monkeypatch.setattr(safetensors_stream, "MAX_HEADER_BYTES", needed)
    save_checkpoint(path, optimizer)
    load_checkpoint(path, trained(mapping()))
    old = path.read_bytes()
    with pytest.raises(ValueError, match="extra"):
        save_checkpoint(path, optimizer, extra={"a": "x" * 8})
    assert path.read_bytes() == old


# ---- a run that is resumed

RUNS = {
    "plain": (mapping, {}),
    "amsgrad": (mapping, {"amsgrad": True, "max_grad_norm": 0.5}),
    "groups": (groups, {"maximize": True, "skip_nonfinite": True}),
    "one array": (lambda: draw((3, 4)), {}),
    "decay mask": (mapping, {"decay_mask": matrices_only}),
    "schedule": (groups, {"lr": LinearWarmup(0.1, 5).then(CosineDecay(0.1, 20)), "amsgrad": True}),
    "schedule of eps": (groups, {"eps": LinearDecay(0.1, 15)}),
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("lr", value, "^lr must be") for value in (-1.0, np.nan, "x")),
        ("betas", 0.9, "^betas must be a pair of numbers; got 0.9$"),
    ],
)
def test_a_number_that_every_step_refuses_is_not_saved(name, value, message, tmp_path):
    opt, path = AdamW({"w": np.ones(3)}), tmp_path / "file"
    save_checkpoint(path, opt)
    opt.param_groups[0][name] = value
    with pytest.raises((TypeError, ValueError), match=message):
        save_checkpoint(path, opt)
    load_checkpoint(path, AdamW({"w": np.ones(3)}))  # the old file is whole


def test_a_schedule_that_has_ended_can_be_saved(tmp_path):
    opt = AdamW({"w": np.ones(3)}, lr=lambda t: [0.1, 0.1][t - 1])
    for _ in range(2):
        opt.step({"w": np.ones(3)})
    save_checkpoint(tmp_path / "file", opt)


def test_before_the_first_step_and_without_data(path):
    """The header is all that the file has."""
    optimizer, other = AdamW({"w": np.zeros((0, 3))}), AdamW({"w": np.zeros((0, 3))})
    save_checkpoint(path, optimizer)
    assert os.stat(path).st_size == 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert read_step(path) == 0
    load_checkpoint(path, other)
    assert contents(other) == contents(optimizer)


def test_where_open_files_cannot_be_renamed(path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(atomic_write, "RENAMES_OPEN_FILES", False)
    optimizer, other = trained(mapping()), trained(mapping(), 1)
    for _ in range(2):  # a new file, and one that is there
        save_checkpoint(path, optimizer)
    load_checkpoint(path, other)
    assert contents(other) == contents(optimizer)
    assert [x.name for x in path.parent.iterdir()] == [path.name]
