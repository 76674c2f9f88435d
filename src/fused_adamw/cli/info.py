"""The command ``fused-adamw info``."""

import platform
from dataclasses import dataclass

import numpy as np

from ..runtime import runtime_info
from .console import key_value_table, make_console, print_json
from .options import Json, with_options


@dataclass(frozen=True)
class InfoOptions:
    """The options of the command."""

    json: Json = False


@with_options
def info(options: InfoOptions) -> None:
    """Show the version, the instruction sets, the number of threads, and what they run on."""
    found = runtime_info()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    around = {"python": python, "numpy": np.__version__, "system": platform.platform()}
    if options.json:
        print_json({**found, **around})
        return
    rows = {
        "version": found["version"],
        "instruction set": found["isa"],
        "available": ", ".join(found["available_isas"]),
        "threads": f"{found['num_threads']}, {found['threading'] or 'none besides the caller'}",
        "Python": around["python"],
        "NumPy": around["numpy"],
        "system": around["system"],
    }
    make_console().print(key_value_table(rows))
