"""What tools/repair_wheel.py makes of a wheel."""

import base64
import csv
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fused_adamw
from fused_adamw import _core, runtime_info

ROOT = Path(__file__).parents[2]
REPAIR = ROOT / "tools" / "repair_wheel.py"

pytestmark = pytest.mark.slow
needs_tools = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc"
    or not REPAIR.exists()
    or not all(map(shutil.which, ("patchelf", "readelf", "strip", "ldd")))
    or runtime_info()["threading"] != "OpenMP",
    reason="needs glibc, binutils, patchelf and OpenMP",
)

INFO = "fused_adamw-9.9.dist-info"
METADATA = """\
Metadata-Version: 2.4
Name: fused-adamw
Version: 9.9
License-Expression: MIT
License-File: LICENSE

License-File: is not one here
"""
WHEEL = f"Wheel-Version: 1.0\nTag: cp311-abi3-linux_{platform.machine()}\n"


def make_wheel(path, module, *, reverse=False, date=(1999, 1, 1, 0, 0, 0)):
    """A wheel of the package as it is imported here, with a module."""
    package = Path(fused_adamw.__file__).parent
    files = {
        x.relative_to(package.parent).as_posix(): x.read_bytes() for x in package.rglob("*.py")
    }
    files["fused_adamw/_core.abi3.so"] = module.read_bytes()
    files |= {f"{INFO}/METADATA": METADATA.encode(), f"{INFO}/WHEEL": WHEEL.encode()}
    files |= {f"{INFO}/licenses/LICENSE": b"MIT", f"{INFO}/RECORD": b""}
    date = max(date, (1980, 1, 1, 0, 0, 0))
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files, reverse=reverse):
            archive.writestr(zipfile.ZipInfo(name, date), files[name])
    return path


def repair(wheel, target, **environment):
    return subprocess.run(
        [sys.executable, REPAIR, wheel, target],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A complete wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    name = f"fused_adamw-9.9-cp311-abi3-linux_{platform.machine()}.whl"
    made = repair(make_wheel(folder / name, Path(_core.__file__)), folder / "repaired")
    assert made.returncode == 0, made.stderr
    (found,) = (folder / "repaired").iterdir()
    assert made.stdout == f"{found}\n"
    return found


@pytest.fixture(scope="module")
def unpacked(wheel):
    folder = wheel.parent.with_name("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    # The version that the package looks up.
    (folder / INFO / "METADATA").write_text(METADATA)
    return folder


def text_of(wheel, name):
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


# ---- one OpenMP runtime in a process

BESIDE_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
if "fused_adamw" in sys.argv:
    import numpy as np
    from fused_adamw import AdamW
    w = np.ones(1 << 20, np.float32)
    AdamW(w, num_threads=2).step(w + 1)
torch.ones(1 << 20).add_(1).sum()
with open("/proc/self/maps") as maps:
    libraries = {line.split()[-1] for line in maps if "libgomp" in line}
print(len(libraries), torch.get_num_threads())
"""
AFFINITY = {
    "default": {},
    "OMP_PROC_BIND": {"OMP_PROC_BIND": "true"},
    "OMP_PLACES": {"OMP_PLACES": "cores"},
    "GOMP_CPU_AFFINITY": {"GOMP_CPU_AFFINITY": "0-1"},
}


@needs_tools
@pytest.mark.parametrize("first", ["torch", "fused_adamw"])
@pytest.mark.parametrize("name", AFFINITY)
def test_pytorch_has_one_openmp_runtime_and_its_threads(unpacked, name, first):
    pytest.importorskip("torch")
    second = "torch" if first == "fused_adamw" else "fused_adamw"

    def run(*names):
        run = subprocess.run(
            [sys.executable, "-c", BESIDE_TORCH, *names], capture_output=True, text=True,
            env=os.environ | AFFINITY[name] | {"PYTHONPATH": str(unpacked)}, cwd=unpacked,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return [int(number) for number in run.stdout.split()]

    alone = run("torch")
    if alone[0] != 1:
        pytest.skip("this PyTorch has no libgomp of its own")
    assert run(first, second) == alone


@needs_tools
def test_libgomp_is_found_in_the_wheel(unpacked):
    module = unpacked / "fused_adamw" / "_core.abi3.so"
    section = subprocess.run(["readelf", "-d", module], capture_output=True, text=True).stdout
    assert re.search(r"\(RUNPATH\).*\[\$ORIGIN/../fused_adamw.libs\]", section)
    assert "(RPATH)" not in section
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    found = subprocess.run(["ldd", module], capture_output=True, text=True, env=environment).stdout
    (path,) = re.findall(r"libgomp\S* => (\S+)", found)
    assert os.path.realpath(path) == str(unpacked.resolve() / "fused_adamw.libs" / "libgomp.so.1")


# ---- contents


@needs_tools
def test_the_module_is_stripped_and_exports_the_c_api(unpacked):
    module = unpacked / "fused_adamw" / "_core.abi3.so"
    sections = subprocess.run(["readelf", "-SW", module], capture_output=True, text=True).stdout
    assert ".dynsym" in sections
    assert not re.search(r"\.symtab|\.debug", sections)
    symbols = subprocess.run(
        ["readelf", "--dyn-syms", "-W", module], capture_output=True, text=True
    ).stdout
    lines = [line.split() for line in symbols.splitlines() if " GLOBAL DEFAULT " in line]
    exported = {line[7] for line in lines if line[6] != "UND"}
    assert "PyInit__core" in exported
    assert {x for x in exported if not x.startswith("fused_adamw_")} == {"PyInit__core"}


@needs_tools
def test_record_lists_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    record = f"{INFO}/RECORD"
    expected = [
        [
            name,
            f"sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().strip('=')}",
            str(len(data)),
        ]
        for name, data in files.items()
        if name != record
    ]
    found = list(csv.reader(io.StringIO(files[record].decode())))
    assert sorted(found) == sorted([*expected, [record, "", ""]])


@needs_tools
def test_tags_name_the_c_library(wheel):
    """Of the module and of libgomp: the newest symbol that either uses."""
    *_, platforms = wheel.stem.split("-")
    tags = re.findall(r"(?m)^Tag: (.*)$", text_of(wheel, f"{INFO}/WHEEL"))
    assert tags == [f"cp311-abi3-{tag}" for tag in platforms.split(".")]
    (minor,) = re.findall(rf"manylinux_2_(\d+)_{platform.machine()}", platforms)
    with zipfile.ZipFile(wheel) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if ".so" in name]
    used = [int(x) for data in libraries for x in re.findall(rb"GLIBC_2\.(\d+)\0", data)]
    assert len(libraries) == 2
    assert int(minor) == max(17, *used)


@needs_tools
def test_licenses(wheel):
    text = text_of(wheel, f"{INFO}/METADATA")
    header, description = text.split("\n\n")
    expression = "MIT AND (GPL-3.0-or-later WITH GCC-exception-3.1)"
    assert f"License-Expression: {expression}\n" in header
    assert description == METADATA.split("\n\n")[1]
    files = re.findall(r"(?m)^License-File: (.*)$", header)
    assert files == ["LICENSE", "libgomp/COPYING.RUNTIME", "libgomp/COPYING3"]
    for name in files:
        assert text_of(wheel, f"{INFO}/licenses/{name}")
    assert "GCC RUNTIME LIBRARY EXCEPTION" in text_of(wheel, f"{INFO}/licenses/{files[1]}")
    assert "GNU GENERAL PUBLIC LICENSE" in text_of(wheel, f"{INFO}/licenses/{files[2]}")


@needs_tools
def test_the_same_contents_make_the_same_bytes(wheel, tmp_path):
    made = []
    for reverse, year in ((False, 1999), (True, 2020)):
        folder = tmp_path / str(year)
        folder.mkdir()
        source = folder / f"fused_adamw-9.9-cp311-abi3-linux_{platform.machine()}.whl"
        date = (year, 1, 1, 0, 0, 0)
        make_wheel(source, Path(_core.__file__), reverse=reverse, date=date)
        run = repair(source, folder / "out", SOURCE_DATE_EPOCH="1700000000")
        made.append(Path(run.stdout.strip()).read_bytes())
    assert made[0] == made[1]


@needs_tools
def test_other_libraries_of_this_machine_are_refused(tmp_path):
    module = tmp_path / "_core.abi3.so"
    shutil.copy(_core.__file__, module)
    subprocess.run(["patchelf", "--add-needed", "libz.so.1", module], check=True)
    run = repair(make_wheel(tmp_path / "fused_adamw-9.9-x-y-z.whl", module), tmp_path / "out")
    assert run.returncode == 1
    assert "libz.so.1" in run.stderr
    assert not list(tmp_path.glob("out/*"))
