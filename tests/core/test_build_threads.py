"""Which threads setup.py builds with, and the programs by which it finds out whether it can."""

import os
import sys
from pathlib import Path

import pytest
from systems import needs_linux

ROOT = Path(__file__).parents[2]

pytestmark = [
    needs_linux,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no sources to build"),
]


@pytest.fixture
def thread_flags(setup_py):
    """The flags for threads that a build on this system adds, where OpenMP is there."""
    from setuptools import Distribution

    def flags():
        build = setup_py["BuildExt"](Distribution())
        build.openmp_flags = lambda: "OpenMP's"
        build.compile_probe = lambda *arguments: None
        return build.thread_flags()

    return flags


def test_whose_threads_a_build_has(monkeypatch, thread_flags):
    for value, flags in {
        "": "OpenMP's",
        "openmp": "OpenMP's",
        "dispatch": (["-DFUSED_ADAMW_DISPATCH"], ["-ldispatch"]),
        "none": ([], []),
    }.items():
        monkeypatch.setenv("FUSED_ADAMW_THREADS", value)
        assert thread_flags() == flags


def test_on_macos_the_threads_are_of_the_system(monkeypatch, thread_flags):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("FUSED_ADAMW_THREADS", raising=False)
    assert thread_flags() == (["-DFUSED_ADAMW_DISPATCH"], [])


def test_threads_of_anything_else_are_refused(monkeypatch, thread_flags):
    monkeypatch.setenv("FUSED_ADAMW_THREADS", "tbb")
    with pytest.raises(Exception, match="one of openmp, dispatch, none; got 'tbb'"):
        thread_flags()


class ProbeCompiler:
    """Links a program of this text and mode, or nothing."""

    compiler_type = "unix"

    def __init__(self, text, mode):
        self.text, self.mode = text, mode

    def compile(self, sources, output_dir, *, extra_postargs):
        return [f"{output_dir}/probe.o"]

    def link_executable(self, objects, program, *, extra_preargs, extra_postargs):
        from setuptools.errors import LinkError

        if self.text is None:
            raise LinkError("no such library")
        Path(program).write_text(self.text)
        os.chmod(program, self.mode)


@pytest.fixture
def probed_flags(setup_py, monkeypatch):
    """The flags for threads of a build in which a probe becomes this program."""
    from setuptools import Distribution

    def flags(threads, text, mode=0o755):
        build = setup_py["BuildExt"](Distribution())
        build.compiler = ProbeCompiler(text, mode)
        monkeypatch.setenv("FUSED_ADAMW_THREADS", threads)
        return build.thread_flags()

    return flags


CANNOT_START = {
    "of another machine": ("\x7fELF", 0o755),
    "no loader": ("#!/nowhere/loader\n", 0o755),
    "no permission": ("#!/bin/sh\n", 0o644),
}


@pytest.mark.parametrize("reason", CANNOT_START)
def test_a_probe_that_cannot_be_started_is_no_failure(probed_flags, reason):
    assert probed_flags("openmp", *CANNOT_START[reason]) == (["-fopenmp"], ["-fopenmp"])


@pytest.mark.parametrize("text", [None, "#!/bin/sh\nexit 1\n"], ids=["not linked", "fails"])
@pytest.mark.parametrize(
    ("threads", "message"),
    [("openmp", "with OpenMP, but here"), ("dispatch", "with Grand Central Dispatch, but here")],
)
def test_a_probe_that_fails_names_what_is_missing(probed_flags, threads, message, text):
    with pytest.raises(Exception, match=message):
        probed_flags(threads, text)
    assert probed_flags(threads, "#!/bin/sh\n")
