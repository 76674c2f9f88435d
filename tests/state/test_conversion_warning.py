"""Loading converts, with one warning that names the formats; ``convert=False`` refuses."""

import _thread
import time
import warnings

import pytest
from states import arrays_of, contents, trained

from fused_adamw.checkpoint import MismatchedCheckpointError, load_checkpoint, save_checkpoint

PAIRS = [
    ({}, {"state_dtype": "8bit"}, "holds 'float32' moments, this optimizer stores '8bit'"),
    ({"state_dtype": "8bit"}, {}, "holds '8bit' moments, this optimizer stores 'float32'"),
    (
        {"state_dtype": "8bit"},
        {"state_dtype": "bfloat16", "master_weights": True},
        "holds '8bit' moments without master, this optimizer stores 'bfloat16' with master",
    ),
    (
        {"state_dtype": "8bit", "ema_decay": 0.5},
        {"state_dtype": "8bit"},
        r"has \['ema', 'm', .*\], this optimizer stores \['m', .*\]",
    ),
]


def load(opt, saved, path, **options):
    """From a snapshot, or from a file where there is a path."""
    if path is None:
        opt.load_state_dict(saved.state_dict(), **options)
    else:
        save_checkpoint(path, saved)
        load_checkpoint(path, opt, **options)


@pytest.mark.parametrize(("before", "after", "difference"), PAIRS)
@pytest.mark.parametrize("through", ["snapshot", "file"])
def test_one_warning_names_the_formats(before, after, difference, through, tmp_path):
    path = tmp_path / "file" if through == "file" else None
    saved = trained("float16", **before)
    opt, expected = (trained("float16", steps=1, **after) for _ in range(2))
    untouched = contents(opt)
    error = ValueError if path is None else MismatchedCheckpointError
    with pytest.raises(error, match=f"{difference}; pass convert=True"):
        load(opt, saved, path, convert=False)
    assert contents(opt) == untouched
    what = "state_dict" if path is None else "file"
    message = f"{what} was converted: the state of 4 tensors {difference}; convert=False refuses"
    with pytest.warns(UserWarning, match=message) as caught:
        load(opt, saved, path)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="was converted"):
        load(expected, saved, path, convert=True)
    assert contents(opt) == contents(expected)


@pytest.mark.parametrize("through", ["snapshot", "file"])
def test_a_warning_that_is_an_error_changes_nothing(through, tmp_path):
    path = tmp_path / "file" if through == "file" else None
    saved, opt = trained(), trained(state_dtype="8bit", steps=1)
    before = contents(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="was converted"):
            load(opt, saved, path)
        assert contents(opt) == before
        load(opt, trained(state_dtype="8bit"), path)  # no conversion, no warning


@pytest.mark.parametrize("through", ["snapshot", "file"])
def test_parameters_that_cannot_be_loaded_are_refused_without_a_warning(through, tmp_path):
    path = tmp_path / "file" if through == "file" else None
    saved, opt = trained(), trained(state_dtype="8bit", steps=1)
    before = contents(opt)
    arrays_of(opt)[0].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="must be writable"):
            load(opt, saved, path)
    assert contents(opt) == before


def test_a_thread_whose_lines_are_all_in_the_package():
    saved, opt = trained(), trained(state_dtype="8bit", steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _thread.start_new_thread(opt.load_state_dict, (saved.state_dict(),))
        until = time.monotonic() + 60
        while opt.t != saved.t and time.monotonic() < until:
            time.sleep(0.001)
    assert opt.t == saved.t
    assert ["was converted" in str(warning.message) for warning in caught] == [True]


@pytest.mark.parametrize("convert", [None, "yes", 2])
@pytest.mark.parametrize("through", ["snapshot", "file"])
def test_convert_is_a_flag(convert, through, tmp_path):
    path = tmp_path / "file" if through == "file" else None
    with pytest.raises(TypeError, match="convert must be a bool; got"):
        load(trained(), trained(), path, convert=convert)
