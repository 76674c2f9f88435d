"""The command ``fused-adamw info``."""

from dataclasses import dataclass

from ..runtime import runtime_info
from .console import key_value_table, make_console, print_json
from .options import Json, with_options


@dataclass(frozen=True)
class InfoOptions:
    """The options of the command."""

    json: Json = False


@with_options
def info(options: InfoOptions) -> None:
    """Show the version, the instruction sets and the number of threads."""
    found = runtime_info()
    if options.json:
        print_json(dict(found))
        return
    rows = {
        "version": found["version"],
        "instruction set": found["isa"],
        "available": ", ".join(found["available_isas"]),
        "threads": f"{found['num_threads']}, {found['threading'] or 'no others than the caller'}",
    }
    make_console().print(key_value_table(rows))
