"""What setup.py does itself: the module's name, the source distribution, files at the same time."""

import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no sources to build")


def command(setup_py, name, module="fused_adamw._core"):
    from setuptools import Distribution, Extension

    core = Extension(module, ["x.c"], py_limited_api=True)
    return setup_py[name](Distribution({"name": "fused-adamw", "ext_modules": [core]}))


@pytest.mark.skipif(os.name == "nt", reason="modules are .pyd there")
@pytest.mark.parametrize("suffix", [".abi3.so", ".abi3-x86_64-linux-gnu.so", ".abi3t.so"])
def test_the_module_of_the_stable_abi_has_one_name(setup_py, monkeypatch, suffix):
    """Older versions of Python do not find the others, which setuptools makes for newer ones."""
    if not setup_py["ABI3"]:
        pytest.skip("this Python has no stable ABI")
    monkeypatch.setattr("setuptools.command.build_ext.get_abi3_suffix", lambda: suffix)
    build_ext = command(setup_py, "BuildExt")
    build_ext.ensure_finalized()
    name = build_ext.get_ext_filename("fused_adamw._core")
    assert Path(name) == Path("fused_adamw", "_core.abi3.so")


def test_a_source_distribution_depends_on_its_contents(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for moment, mode in ((1_000_000_000, 0o600), (1_500_000_000, 0o664)):
        root = tmp_path / str(moment)
        files = [root / "p-1" / "b" / "x.py", root / "p-1" / "a.txt"]
        for path in files if mode == 0o600 else reversed(files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
            path.chmod(mode)
            os.utime(path, (moment, moment))
        monkeypatch.chdir(root)
        sdist = command(setup_py, "SDist")
        archive = Path(sdist.make_archive("p-1", "gztar", base_dir="p-1", owner=None, group=None))
        made.append(archive.read_bytes())
    assert made[0] == made[1]
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        members = {x.name: (x.mode, x.mtime, x.uid) for x in archive if x.isfile()}
    assert members == dict.fromkeys(["p-1/a.txt", "p-1/b/x.py"], (0o644, 1_700_000_000, 0))


def test_files_are_compiled_at_the_same_time(setup_py, monkeypatch):
    """The objects come in the order of their sources, so that modules are equal."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    second_is_done = threading.Event()

    def compile_files(sources, folder, *, flag):
        if sources == ["a.c"]:
            assert second_is_done.wait(timeout=60)
        else:
            second_is_done.set()
        return [f"{folder}/{source}{flag}" for source in sources]

    compile_all = setup_py["at_the_same_time"](compile_files)
    assert compile_all(["a.c", "b.c"], "build", flag=".o") == ["build/a.c.o", "build/b.c.o"]


def test_a_file_that_does_not_compile_ends_the_build(setup_py):
    def compile_files(sources):
        if sources == ["b.c"]:
            raise RuntimeError("b.c")
        return sources

    with pytest.raises(RuntimeError, match=r"b\.c"):
        setup_py["at_the_same_time"](compile_files)(["a.c", "b.c", "c.c"])
