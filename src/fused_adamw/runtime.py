"""Properties of this build and this machine."""

from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

from . import _core

__all__ = ["RuntimeInfo", "__version__", "runtime_info"]

try:
    __version__ = version("fused-adamw")
except PackageNotFoundError:  # as in a program that PyInstaller has packed, or a copied folder
    __version__ = "unknown"


class RuntimeInfo(TypedDict):
    """Properties of this build and this machine.

    Attributes:
        version: of the package; ``"unknown"`` where its metadata is not installed with it.
        isa: the instruction set that is used.
        available_isas: the instruction sets that run on this machine, widest first.
        threading: ``"OpenMP"`` or, on macOS, ``"Grand Central Dispatch"``; None where the build has
            no threads of its own.
        num_threads: how many threads a large step uses.
    """

    version: str
    isa: str
    available_isas: list[str]
    threading: str | None
    num_threads: int


def runtime_info() -> RuntimeInfo:
    """The instruction set and the threads of a call of ``fused_adamw`` without ``num_threads``.

    Raises:
        ValueError: the environment variable FUSED_ADAMW_ISA names no available instruction set.
    """
    return {
        "version": __version__,
        "isa": _core.selected_isa(),
        "available_isas": _core.available_isas(),
        "threading": _core.threading_library(),
        "num_threads": _core.default_num_threads(),
    }
