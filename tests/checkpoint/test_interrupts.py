"""SIGINT while loading, and threads."""

import signal
import threading

import pytest
from checkpoints import contents, mapping, trained

from fused_adamw import _core
from fused_adamw._io import checkpoint_load
from fused_adamw._io.stop_signals import stop_signals
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint


def interrupting(function, moment):
    """The function, and SIGINT arrives at its first call."""

    def interrupted(*arguments):
        nonlocal moment
        if moment == "before":
            signal.raise_signal(signal.SIGINT)
        function(*arguments)
        if moment == "after":
            signal.raise_signal(signal.SIGINT)
        moment = None

    return interrupted


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["_load_numbers", "_gather_params", "read_exactly"])
def test_an_interrupted_load_is_complete(path, small, monkeypatch, name, moment):
    optimizer, source = small
    handler = signal.getsignal(signal.SIGINT)
    where = checkpoint_load if name == "read_exactly" else optimizer
    monkeypatch.setattr(where, name, interrupting(getattr(where, name), moment))
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, optimizer)
    assert contents(optimizer) == contents(source)
    assert signal.getsignal(signal.SIGINT) is handler


def test_verifying_can_be_interrupted(path, small, monkeypatch):
    """Nothing has been changed then."""
    optimizer, _ = small
    before = contents(optimizer)
    verify = interrupting(checkpoint_load.verify_tensors, "before")
    monkeypatch.setattr(checkpoint_load, "verify_tensors", verify)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, optimizer)
    assert contents(optimizer) == before


def test_a_signal_to_stop_is_noted():
    handler, seen = signal.getsignal(signal.SIGINT), []
    with stop_signals() as request:
        seen.append(request.signal)
        signal.raise_signal(signal.SIGINT)
        seen.append(request.signal)
    assert seen == [0, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_of_the_application():
    """A loop that is asked to stop keeps out of their way."""
    calls = []
    default = signal.signal(signal.SIGINT, lambda *_: calls.append("handler"))
    try:
        with stop_signals() as request:
            signal.raise_signal(signal.SIGINT)
            assert calls == ["handler"]
        assert not request.signal
    finally:
        signal.signal(signal.SIGINT, default)


def test_a_handler_that_is_not_of_python(path, small, monkeypatch):
    """It cannot be put back, so it stays in its place."""
    monkeypatch.setattr(_core, "getsignal", lambda number: None)
    monkeypatch.setattr(_core, "signal", None)
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


def test_the_first_signal_is_kept_and_the_next_are_repeats():
    repeats = []
    with stop_signals(lambda: repeats.append(True)) as request:
        signal.raise_signal(signal.SIGTERM)
        assert (request.signal, repeats) == (signal.SIGTERM, [])
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert (request.signal, repeats) == (signal.SIGTERM, [True, True])
