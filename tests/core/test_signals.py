"""Deferral of signal handlers."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from time import sleep

import pytest

from fused_adamw import _core
from fused_adamw._core import DeferredSignals

if not hasattr(signal, "SIGUSR1"):
    pytest.skip("needs signals of its own", allow_module_level=True)

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class RaisedError(Exception):
    pass


@pytest.fixture
def calls():
    """What the handlers of three signals have been called with; each raises the signal's number."""
    found = []

    def handler(number, frame):
        found.append((number, frame))
        raise RaisedError(number)

    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    found.append(handler)
    yield found
    for number, old in previous.items():
        signal.signal(number, old)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_handler_runs_at_the_end(calls, number):
    before, reached = handlers(), []

    def block():
        with DeferredSignals():
            for _ in range(3):
                os.kill(os.getpid(), number)
                reached.append(len(calls))

    with pytest.raises(RaisedError, match=str(int(number))):
        block()
    assert reached == [1, 1, 1]
    assert [called for called, _ in calls[1:]] == [number]  # once, as a blocked signal is
    assert calls[1][1].f_code is block.__code__
    assert handlers() == before


def test_all_handlers_run_and_all_are_put_back(calls):
    before = handlers()
    with pytest.raises(RaisedError) as raised:  # noqa: SIM117, PT012
        with DeferredSignals():
            for number in SIGNALS:
                signal.raise_signal(number)
    assert [number for number, _ in calls[1:]] == list(SIGNALS)
    assert handlers() == before
    error, seen = raised.value, []
    while error is not None:
        seen.append(error.args[0])
        error = error.__context__
    assert seen == [int(number) for number in reversed(SIGNALS)]


def test_what_the_block_raises_is_the_context(calls):
    def block():
        with DeferredSignals():
            signal.raise_signal(SIGNALS[0])
            raise KeyError("of the block")

    with pytest.raises(RaisedError) as raised:
        block()
    assert repr(raised.value.__context__) == "KeyError('of the block')"


@pytest.mark.parametrize("fails_at", range(6))
def test_a_handler_may_raise_while_handlers_are_replaced_or_put_back(calls, monkeypatch, fails_at):
    before, install, count = handlers(), _core.signal, [0]

    def interrupted(*arguments):
        count[0] += 1
        if count[0] == fails_at + 1:
            raise RaisedError("of another signal")
        return install(*arguments)

    def replaced():  # SIGINT has a handler too
        return [signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)]

    sigint, entered = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(_core, "signal", interrupted)

    def block():
        with DeferredSignals():
            entered.append(replaced())

    with pytest.raises(RaisedError, match="of another signal"):
        block()
    assert replaced() == [*before, sigint]
    if entered:
        assert all(isinstance(handler, DeferredSignals) for handler in entered[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_handler_raises_on_entry_is_raised(calls, monkeypatch, error):
    before, entered = handlers(), []

    def interrupted(*_):
        raise error("of a signal that arrived just before")

    def block():
        with DeferredSignals():
            entered.append(True)

    monkeypatch.setattr(_core, "signal", interrupted)
    with pytest.raises(error, match="just before"):
        block()
    assert entered == []
    assert handlers() == before


def test_nested_blocks_defer_to_the_end_of_the_outermost(calls):
    reached = []

    def blocks():
        with DeferredSignals():
            with DeferredSignals():
                signal.raise_signal(SIGNALS[0])
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(RaisedError):
        blocks()
    assert reached == ["inner", "outer"]


def test_ignored_signals_and_default_actions_stay():
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with DeferredSignals():
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_handler_that_the_block_installs_stays(calls):
    with DeferredSignals():
        signal.signal(SIGNALS[0], signal.SIG_IGN)
    assert signal.getsignal(SIGNALS[0]) == signal.SIG_IGN


def test_another_thread_defers_nothing(calls):
    entered, leave, errors = threading.Event(), threading.Event(), []

    def work():
        try:
            with DeferredSignals():
                entered.set()
                assert leave.wait(60)
        except BaseException as error:
            errors.append(error)

    def interrupted():
        signal.raise_signal(SIGNALS[0])
        sleep(0)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(60)
    assert handlers() == [calls[0]] * 3
    with pytest.raises(RaisedError):
        interrupted()
    leave.set()
    thread.join()
    assert errors == []


# ---- handlers outside of Python, and the flags of the system


@pytest.fixture
def own_handler():
    """Of SIGUSR1, which notes its calls."""
    found = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: found.append("Python"))
    yield found
    signal.signal(signal.SIGUSR1, previous)


def test_a_handler_outside_of_python_stays(own_handler, tmp_path):
    """Over one of Python, which getsignal still returns."""
    with open(tmp_path / "stacks", "w+") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
        try:
            with DeferredSignals():
                signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
        file.seek(0)
        assert file.read().count("Stack") == 2
    assert own_handler == []
    signal.raise_signal(signal.SIGUSR1)
    assert own_handler == ["Python"]


@pytest.mark.skipif(sys.platform != "linux", reason="has another struct sigaction")
@pytest.mark.parametrize("interrupts", [False, True])
def test_system_calls_go_on_after_a_signal_as_before(own_handler, interrupts):
    """What siginterrupt has set."""
    signal.siginterrupt(signal.SIGUSR1, interrupts)
    before = flags_of(signal.SIGUSR1)
    with DeferredSignals(), DeferredSignals():
        pass
    assert flags_of(signal.SIGUSR1) == before
    signal.raise_signal(signal.SIGUSR1)
    assert own_handler == ["Python"]


class Action(ctypes.Structure):
    """A struct sigaction of Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_char * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def flags_of(number):
    action = Action()
    assert ctypes.CDLL(None).sigaction(int(number), None, ctypes.byref(action)) == 0
    return action.flags
