"""What this build and this machine are."""

from importlib.metadata import version
from typing import TypedDict

from . import _core

__version__ = version("fused-adamw")


class RuntimeInfo(TypedDict):
    version: str
    isa: str
    available_isas: list[str]
    openmp: bool
    num_threads: int


def runtime_info() -> RuntimeInfo:
    """What a call of ``fused_adamw`` without ``isa`` and ``num_threads`` runs on.

    Returns a dict: ``version`` of the package; ``isa``, the instruction set that is used, and
    ``available_isas``, those that run on this machine, widest first; ``openmp``, whether the build
    has it; ``num_threads``, how many threads a large step uses.

    Raises ValueError if the environment variable FUSED_ADAMW_ISA names no available set.
    """
    return {
        "version": __version__,
        "isa": _core.selected_isa(),
        "available_isas": _core.available_isas(),
        "openmp": _core.has_openmp(),
        "num_threads": _core.resolve_threads(None),
    }
