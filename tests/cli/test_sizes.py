"""Sizes that no memory holds, and numbers of many digits."""

import platform
import re

import numpy as np
import pytest
from cli_process import MAIN, SMALL, in_a_process, loads
from systems import needs_linux

from fused_adamw.tiny import memory
from fused_adamw.tiny.memory import require_memory, required_bytes

HUGE = [10**12, 10**23, 10**400]


@pytest.mark.parametrize("size", HUGE, ids=["1e12", "1e23", "1e400"])
@pytest.mark.parametrize("option", ["--batch-size", "--d-model", "--context"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_are_refused_before_training(run, text, monkeypatch, option, size, dtype):
    monkeypatch.setattr("fused_adamw.cli.training.TinyTransformer", None)
    status, out, err = run("train", "--text", text, option, size, "--dtype", dtype)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert ("context of" if option == "--context" else "must be smaller: a step needs") in err


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize(
    "options", [("--d-model", 10**7), ("--batch-size", 10**7), ("--batch-size", 3000)]
)
def test_sizes_with_a_memory_limit(text, options):
    """The last is found out at the first step, by the arrays that cannot be allocated."""
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n{MAIN}"
    done = in_a_process(limited, "train", "--text", text, *options, OPENBLAS_NUM_THREADS="1")
    assert (done.returncode in (1, 2), done.stdout) == (True, "")
    assert re.fullmatch("error: .*memory.*\n", done.stderr)


def test_less_memory_than_a_step_needs(run, text, monkeypatch):
    monkeypatch.setattr(memory, "memory_bound", lambda: 100_000)
    status, out, err = run("train", "--text", text, *SMALL, "--batch-size", 100)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"needs at least 0\.\d GB of memory; got 0\.0 GB$", err)


@pytest.mark.parametrize(
    "larger", [{}, {"vocab_size": 900}, {"d_model": 256}, {"d_ff": 900}, {"max_length": 200}]
)
def test_what_a_step_needs_is_hardly_overestimated(larger):
    """By which models are measured: the arrays of one step. Not all gradients of parameters exist
    at the moment at which there is most."""
    import tracemalloc

    from fused_adamw.tiny import TinyTransformer

    sizes = {"vocab_size": 30, "d_model": 32, "n_heads": 2, "d_ff": 128, "max_length": 24} | larger
    tokens = np.random.default_rng(0).integers(1, 30, (64, sizes["max_length"]))
    # NumPy computes in an array that an expression no longer needs only where the C library has
    # backtrace(), which that of Windows and musl have not.
    least = 0.9 if platform.libc_ver()[0] == "glibc" else 0.85
    for dtype in ("float32", "float64"):
        tracemalloc.start()
        model = TinyTransformer(dtype=dtype, **sizes)
        model.loss_and_gradients(tokens, tokens)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert least * peak < required_bytes(sizes, 64, dtype) < 1.02 * peak


def test_the_memory_of_this_process():
    assert 10**7 < memory.memory_bound() < 10**16
    require_memory("--x", memory.memory_bound())
    with pytest.raises(ValueError, match="--x must be smaller"):
        require_memory("--x", memory.memory_bound() + 1)


@pytest.mark.parametrize("option", ["--warmup", "--seed", "--every"])
def test_numbers_of_many_digits(run, option):
    options = ("--checkpoint", "run") if option == "--every" else ()
    status, out, err = run("train", "--json", "--steps", 3, option, 10**400, *options)
    assert (status, err) == (0, "")
    assert loads(out)["steps"] == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lr", [1e3, 1e100, 1e300])
def test_a_training_that_diverges_is_said_to(run, lr):
    status, out, err = run("train", "--steps", 30, "--sgd-lr", lr, "--lr", lr)
    assert status == 0
    assert not re.search(r"\d{8}", out + err)
    pattern = (
        r"(training has diverged: loss rose from [\d.e+]+ to [\d.e+]+ \(|loss became non-finite)"
    )
    for name in ("AdamW", "SGD"):
        assert re.search(rf"warning: {name}, lr \S+: {pattern}", err), err


@pytest.mark.filterwarnings("error")
def test_a_finite_loss_of_many_digits(run):
    """They are no help: at most 4, and an exponent."""
    status, out, err = run("train", "--steps", 30, "--lr", 0.001, "--sgd-lr", 3)
    assert status == 0
    assert re.fullmatch(
        r"warning: SGD, lr 3: training has diverged: loss rose from 1\.830 to \d\.\d{3}e\+\d+ "
        r"\(chance: 1\.792\); try a smaller learning rate\n",
        err,
    )
    assert re.search(r"SGD, lr 3 +1\.829868 +\d\.\d{3}e\+\d+ +6\.2331 +inf", out)
    assert not re.search(r"\d{8}", out)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lr", [100, 1e4, 1e20])
def test_a_text_on_which_a_training_diverges(run, text, lr):
    status, out, err = run("train", "--text", text, *SMALL, "--steps", 30, "--lr", lr)
    assert (status, err.count("\n")) == (0, 1)
    assert "A sample" not in out
    assert not re.search(r"\d{8}", out)


def test_a_training_that_converges_is_not_said_to_diverge(run):
    assert run("train", "--steps", 30, "--lr", 0.001, "--sgd-lr", 0.1)[2] == ""
