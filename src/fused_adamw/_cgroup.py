"""The processors and the memory that the control groups of Linux grant this process."""

import os
from pathlib import Path


def cpu_quota(root: str = "/") -> int | None:
    """The smallest CPU quota of this process's cgroup and its ancestors, rounded up to whole
    processors; None where nothing is limited, or on a system without cgroups.

    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``), see cgroups(7). ``root`` is
    the root of the file system.
    """
    quotas = [_quota(folder) for folder in _folders(Path(root), "cpu")]
    return min((q for q in quotas if q is not None), default=None)


def memory_limit(root: str = "/") -> int | None:
    """The smallest memory limit, in bytes, on the way from this process's cgroup to the top; None
    where nothing is limited, or on a system without cgroups.

    Reads version 2 (``memory.max``) and version 1 (``memory.limit_in_bytes``, where a number close
    to 2^63 means that there is no limit). ``root`` is the root of the file system.
    """
    limits = [_memory_limit(folder) for folder in _folders(Path(root), "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def _folders(root: Path, controller: str) -> list[Path]:
    """The folders that may limit this process with that controller."""
    try:
        lines = os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        fields = line.split(":", 2)
        if len(fields) != 3 or not {"", controller} & set(fields[1].split(",")):
            continue
        _, controllers, path = fields
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = mount / path.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(mount)]
    return folders


def _quota(folder: Path) -> int | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max": no limit here
        return None


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit here
            continue
    return None
