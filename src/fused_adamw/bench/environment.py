"""What the race runs on: processor, memory, versions, and who else is at work there."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from ..runtime import runtime_info


class Machine(TypedDict):
    processor: str
    cores: int | None
    threads: int
    isa: str
    available_isas: list[str]
    system: str
    python: str
    compiler: str | None


def machine() -> Machine:
    runtime = runtime_info()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": runtime["num_threads"],
        "isa": runtime["isa"],
        "available_isas": runtime["available_isas"],
        "system": platform.system(),
        "python": platform.python_version(),
        "compiler": compiler(),
    }


def lines(facts: Machine, other_work: float | None, versions: Mapping[str, str]) -> list[str]:
    """The same for people."""
    isas = ", ".join(facts["available_isas"])
    told = [
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads",
        f"fused-adamw {runtime_info()['version']}, {facts['isa']} (of {isas})",
        f"{facts['system']}, Python {facts['python']}, {facts['compiler'] or 'no C compiler'}",
    ]
    if other_work is not None:
        told.append(f"other processes had {other_work:.0%} of the processors meanwhile")
    return [*told, ", ".join(f"{package} {found}" for package, found in versions.items())]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compiler_command() -> list[str]:
    return os.environ.get("CC", "cc").split()


def compiler() -> str | None:
    command = [*compiler_command(), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """{package: version} of those that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------------------- memory

LEFT_FREE = 0.2  # of the memory


def memory_allows(nbytes: float) -> bool:
    """Whether so much more leaves a fifth of the memory free, as far as anybody says."""
    return nbytes < available_memory() - LEFT_FREE * physical_memory()


def physical_memory() -> int:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # such as on Windows
        pages = 8 * 2**30
    return min(pages, container_memory() or pages)


def container_memory() -> int | None:
    """What a container is limited to."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def available_memory() -> int:
    """Linux alone says what others have left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return physical_memory()
    return min(int(found) * 1024, physical_memory())


# ---------------------------------------------------------------------------- other work

Ticks = tuple[int, int, float]


def processor_ticks() -> Ticks | None:
    """Ticks since the machine started: busy ones, all, those of this process. Linux alone says."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    ticks = [int(field) for field in first[1:9]]  # user nice system idle iowait irq softirq steal
    own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), own


def other_work(start: Ticks | None) -> float | None:
    """The share of the machine that other processes had since then; None if nobody says."""
    now = processor_ticks()
    if start is None or now is None:
        return None
    busy, total, own = (after - before for after, before in zip(now, start, strict=True))
    return max(0, busy - own) / max(1, total)
