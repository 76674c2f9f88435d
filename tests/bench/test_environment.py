"""Processor, memory and the load of other processes."""

import os
import shutil
import subprocess
import sys

import pytest

from fused_adamw._cgroup import memory_limit
from fused_adamw.bench import environment
from fused_adamw.bench.implementations.bandwidth_bound import compile_library


def test_the_processor_has_a_name():
    assert environment.processor_name().strip()


def test_versions_of_installed_packages():
    versions = environment.installed_versions(["numpy", "no-such-package"])
    assert list(versions) == ["numpy"]


def test_memory():
    assert 0 < environment.available_memory() <= environment.physical_memory()
    assert environment.fits_in_memory(0) in (True, False)
    assert not environment.fits_in_memory(environment.physical_memory())


def test_a_container_limits_the_memory(monkeypatch):
    monkeypatch.setattr(environment, "memory_limit", lambda: 2**20)
    assert environment.physical_memory() == 2**20
    assert environment.available_memory() == 2**20


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "4096\n", "a/b/memory.max": "max\n"}, 4096),
        ("0::/a/b\n", {"a/memory.max": "4096\n", "a/b/memory.max": "1024\n"}, 1024),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("4:memory:/a\n3:cpu:/c\n", {"memory/a/memory.limit_in_bytes": "512\n"}, 512),
        ("3:cpu:/c\n", {"memory/a/memory.limit_in_bytes": "512\n"}, None),
    ],
)
def test_the_memory_limit_of_a_cgroup(tmp_path, membership, files, limit):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for path, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit(str(tmp_path)) == limit


def test_no_cgroups(tmp_path):
    assert memory_limit(str(tmp_path)) is None


def test_background_load_is_that_of_others(monkeypatch):
    seconds = iter([(10.0, 100.0, 5.0), (16.0, 110.0, 8.0)])  # busy, all, own
    monkeypatch.setattr(environment.BackgroundLoad, "_seconds", lambda _: next(seconds))
    assert environment.BackgroundLoad().share() == pytest.approx((6 - 3) / 10)


def test_background_load_is_a_share():
    background = environment.BackgroundLoad()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert 0 <= background.share() <= 1


needs_compiler = pytest.mark.skipif(
    os.name != "posix" or not shutil.which("cc"), reason="starts a C compiler of POSIX"
)


@needs_compiler
def test_the_compiler_that_cc_names(tmp_path, monkeypatch):
    """As a shell reads it: with options, in a folder with a space in its name; empty is unset."""
    folder = tmp_path / "my tools"
    folder.mkdir()
    (folder / "cc").symlink_to(shutil.which("cc"))
    monkeypatch.delenv("CC", raising=False)
    default = environment.compiler_version()
    assert default
    for value in ("", " ", "cc -O1", f"'{folder / 'cc'}' -O1"):
        monkeypatch.setenv("CC", value)
        assert environment.compiler_version() == default
        assert compile_library(f"int f(void) {{ return 1; }} /* {value} */").f() == 1


@pytest.mark.parametrize("value", ["no-such-compiler", "'no end"])
def test_a_compiler_that_cannot_be_started(monkeypatch, value):
    monkeypatch.setenv("CC", value)
    assert environment.compiler_version() is None
