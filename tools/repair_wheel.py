"""Make a wheel of Linux complete: ``repair_wheel.py WHEEL FOLDER`` writes the result to FOLDER.

It adds libgomp, strips the module of what only debuggers read, and names the C library that both
need. The name of libgomp stays ``libgomp.so.1``: the dynamic linker loads one library of a name, so
that a process has one OpenMP runtime, that of PyTorch or this one, whichever is imported first. A
library with a hash in its name (as ``auditwheel repair`` gives it) would be a second one, and with
``OMP_PROC_BIND`` the first of two leaves the other a single core.

Needs binutils (readelf, strip) and patchelf. The result depends on the contents of the wheel and of
libgomp only, and on SOURCE_DATE_EPOCH.
"""

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
import tempfile
import time
import zipfile
from pathlib import Path

LIBGOMP = "libgomp.so.1"
LIBRARIES = "fused_adamw.libs"
LICENSES = Path(__file__).with_name("libgomp")
LICENSE = "GPL-3.0-or-later WITH GCC-exception-3.1"
C_LIBRARY = re.compile(
    r"lib(c|m|dl|rt|pthread)\.so\.\d|ld-linux[\w-]*\.so\.\d|libc\.musl-\w+\.so\.1"
)
OLDEST_GLIBC = 17  # 2.17, of manylinux2014
EARLIEST = 315532800  # 1980: zip files know nothing before it


class UnsuitableWheelError(Exception):
    """The wheel cannot be made complete."""


def repair(wheel: Path, target: Path) -> Path:
    """Write the complete wheel to a folder. Returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root)
        modules = list(root.glob("fused_adamw/_core*.so"))
        infos = list(root.glob("*.dist-info"))
        if len(modules) != 1 or len(infos) != 1:
            raise UnsuitableWheelError(f"{wheel.name} must have one module and one dist-info")
        run("strip", "--strip-all", modules[0])
        libraries = add_libgomp(modules[0], root)
        if libraries:
            add_licenses(infos[0])
        tags = set_platform(infos[0] / "WHEEL", platform_tags([*modules, *libraries]))
        target.mkdir(parents=True, exist_ok=True)
        name, version, *_ = wheel.name.split("-")
        repaired = target / f"{name}-{version}-{tags}.whl"
        write_record(root, infos[0] / "RECORD")
        pack(root, repaired)
    return repaired


# ---------------------------------------------------------------------------- libraries


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dynamic(library: Path, key: str) -> list[str]:
    """The values of a key of the dynamic section, such as NEEDED."""
    return re.findall(rf"\({key}\).*\[(.*)\]", run("readelf", "--wide", "-d", library))


def add_libgomp(module: Path, root: Path) -> list[Path]:
    """Copy libgomp where the module finds it. Returns the copy, or nothing without OpenMP."""
    if LIBGOMP not in dynamic(module, "NEEDED"):
        return []
    found = re.search(rf"{re.escape(LIBGOMP)} => (\S+)", run("ldd", module))
    if found is None:
        raise UnsuitableWheelError(f"{LIBGOMP} is missing on this machine")
    copy = root / LIBRARIES / LIBGOMP
    copy.parent.mkdir()
    shutil.copyfile(found[1], copy)
    copy.chmod(0o755)
    run("strip", "--strip-unneeded", copy)
    if dynamic(copy, "SONAME") != [LIBGOMP]:
        raise UnsuitableWheelError(f"{found[1]} must have the SONAME {LIBGOMP}")
    run("patchelf", "--set-rpath", f"$ORIGIN/../{LIBRARIES}", module)
    return [copy]


def platform_tags(libraries: list[Path]) -> str:
    """The platform that a set of libraries needs, as in the name of a wheel."""
    machine = platform.machine()
    needed = {name for library in libraries for name in dynamic(library, "NEEDED")}
    foreign = sorted(x for x in needed if x != LIBGOMP and not C_LIBRARY.fullmatch(x))
    if foreign:
        raise UnsuitableWheelError(f"needs {foreign}, which this machine has and others may not")
    if any("musl" in name for name in needed):
        return os.environ["AUDITWHEEL_PLAT"]  # the images in which wheels are built set it
    symbols = "".join(run("readelf", "--wide", "--version-info", x) for x in libraries)
    minor = max(OLDEST_GLIBC, *(int(x) for x in re.findall(r"GLIBC_2\.(\d+)", symbols)))
    tag = f"manylinux_2_{minor}_{machine}"
    return f"{tag}.manylinux2014_{machine}" if minor == OLDEST_GLIBC else tag


# ---------------------------------------------------------------------------- metadata


def add_licenses(info: Path) -> None:
    """Add the license of libgomp to what the wheel says of its own."""
    names = sorted(path.name for path in LICENSES.iterdir())
    folder = info / "licenses" / LICENSES.name
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(LICENSES / name, folder / name)
    metadata = info / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    text, count = re.subn(
        r"(?m)^License-Expression: (.*)$", rf"License-Expression: \1 AND ({LICENSE})", text, count=1
    )
    if not count:
        raise UnsuitableWheelError("METADATA must have a License-Expression")
    lines = "".join(f"\nLicense-File: {LICENSES.name}/{name}" for name in names)
    text = re.sub(r"(?m)^License-File: .*$", lambda found: found[0] + lines, text, count=1)
    metadata.write_text(text, encoding="utf-8")


def set_platform(wheel_file: Path, platforms: str) -> str:
    """Write the platform into the tags of a WHEEL file. Returns them as in the name of a wheel."""
    text = wheel_file.read_text(encoding="utf-8")
    tags = re.findall(r"(?m)^Tag: (\S+)-(\S+)-\S+$", text)
    if len(tags) != 1:
        raise UnsuitableWheelError(f"WHEEL must have one tag; got {tags}")
    python, abi = tags[0]
    lines = "\n".join(f"Tag: {python}-{abi}-{tag}" for tag in platforms.split("."))
    text = re.sub(r"(?m)^Tag: .*$", lines, text)
    wheel_file.write_text(text, encoding="utf-8")
    return f"{python}-{abi}-{platforms}"


def write_record(root: Path, record: Path) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for path in sorted(x for x in root.rglob("*") if x.is_file() and x != record):
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
        name = path.relative_to(root).as_posix()
        writer.writerow([name, f"sha256={digest.decode().rstrip('=')}", path.stat().st_size])
    writer.writerow([record.relative_to(root).as_posix(), "", ""])
    record.write_text(lines.getvalue(), encoding="utf-8")


def pack(root: Path, wheel: Path) -> None:
    """Write a zip file of the folder; dist-info comes last, as installers like it."""
    epoch = max(EARLIEST, int(os.environ.get("SOURCE_DATE_EPOCH", EARLIEST)))
    paths = sorted(x for x in root.rglob("*") if x.is_file())
    paths.sort(key=lambda path: path.relative_to(root).parts[0].endswith(".dist-info"))
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), time.gmtime(epoch)[:6])
            mode = 0o755 if path.suffix == ".so" or path.name == LIBGOMP else 0o644
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {Path(sys.argv[0]).name} WHEEL FOLDER")
    try:
        print(repair(Path(sys.argv[1]), Path(sys.argv[2])))
    except UnsuitableWheelError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
