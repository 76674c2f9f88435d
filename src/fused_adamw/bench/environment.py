"""The environment of a benchmark: processor, memory, versions, and the load of other processes."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

import cpuinfo
import psutil

from .._cgroup import memory_limit
from ..runtime import runtime_info
from .implementations.bandwidth_bound import compiler_command


class Environment(TypedDict):
    processor: str
    cores: int | None
    threads: int
    isa: str
    available_isas: list[str]
    system: str
    python: str
    compiler: str | None


def get_environment() -> Environment:
    """What the benchmark runs on."""
    runtime = runtime_info()
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": runtime["num_threads"],
        "isa": runtime["isa"],
        "available_isas": runtime["available_isas"],
        "system": platform.system(),
        "python": platform.python_version(),
        "compiler": compiler_version(),
    }


def describe(
    environment: Environment, background_load: float | None, versions: Mapping[str, str]
) -> list[str]:
    """Lines of text for people.

    Args:
        background_load: see ``BackgroundLoad.share``; None where it was not measured.
        versions: {package: version}.
    """
    isas = ", ".join(environment["available_isas"])
    lines = [
        f"{environment['processor']}, {environment['cores']} cores, "
        f"{environment['threads']} threads",
        f"fused-adamw {runtime_info()['version']}, {environment['isa']} (available: {isas})",
        f"{environment['system']}, Python {environment['python']}, "
        f"{environment['compiler'] or 'no C compiler'}",
    ]
    if background_load is not None:
        lines.append(
            f"other processes used {background_load:.0%} of the processors during the benchmark"
        )
    return [*lines, ", ".join(f"{package} {number}" for package, number in versions.items())]


def processor_name() -> str:
    name = cpuinfo.get_cpu_info().get("brand_raw")
    return name or platform.processor() or platform.machine()


def compiler_version() -> str | None:
    """The first line that the C compiler prints about itself; None without one."""
    try:
        command = [*compiler_command(), "--version"]
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, ValueError, IndexError):  # CC may have a quote that is not closed
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """{package: version} of those that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


# ---------------------------------------------------------------------------- memory

MIN_FREE_SHARE = 0.2  # of the physical memory


def fits_in_memory(nbytes: float) -> bool:
    """Whether allocating that many bytes leaves a fifth of the memory free."""
    return nbytes < available_memory() - MIN_FREE_SHARE * physical_memory()


def physical_memory() -> int:
    """In bytes; that of the container, where its cgroup limits it."""
    total: int = psutil.virtual_memory().total
    return min(total, memory_limit() or total)


def available_memory() -> int:
    """In bytes: what can be allocated without swapping."""
    available: int = psutil.virtual_memory().available
    return min(available, physical_memory())


# ---------------------------------------------------------------------------- background load


class BackgroundLoad:
    """Measures, from its construction on, how busy other processes keep the processors."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def share(self) -> float:
        """The share, from 0 to 1, of the processors' time that other processes have used."""
        now = self._seconds()
        busy, total, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / max(total, 0.01)

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Processor seconds: busy, all, and those of this process and its children."""
        times = psutil.cpu_times()._asdict()
        # On Linux user and nice include the guests.
        total = sum(times.values()) - times.get("guest", 0) - times.get("guest_nice", 0)
        idle = times["idle"] + times.get("iowait", 0)
        return total - idle, total, sum(os.times()[:4])
