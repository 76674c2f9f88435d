"""The text of the section on large models."""

from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.table import Table

from ...explain.scale import MEASURING_SECONDS, Cost, Scale
from ..console import heading, number_table, paragraph


def scale_text(found: Scale) -> Iterator[RenderableType]:
    """Yield the section."""
    yield heading("The same update for large models")
    table = number_table("", "called", "parameters")
    for model in found.models:
        table.add_row(model.name, model.size, f"{model.parameters:,}")
    yield table
    yield heading("AdamW's state, GB")
    yield paragraph(
        "Rows: dtype of the parameters (+master: with master weights) / format of m and v. "
        f"This process can have {found.memory_bytes / 1e9:,.1f} GB of memory."
    )
    yield costs_table(found, lambda cost: gigabytes(cost.state_bytes))
    yield heading(f"Seconds per step on this machine, on {threads(found.num_threads)}")
    yield costs_table(found, seconds)
    yield paragraph(
        "≈: computed, from the bytes that the step reads and writes and the bandwidth that was "
        "measured here with the same mix: what does not fit in memory, and what would have begun "
        f"after {MEASURING_SECONDS:g} seconds of measuring. All others were timed. The gradients "
        "have the dtype of the parameters."
    )
    missing = [row.mix for row in found.bandwidths if not row.measured]
    if missing:
        yield paragraph(
            "Not available here, so that their bandwidth is that of float32 (bfloat16 needs "
            f"ml_dtypes): {', '.join(missing)}."
        )


def costs_table(found: Scale, cell: Callable[[Cost], str]) -> Table:
    """Return a table of mixes and models."""
    table = number_table("", *(model.name for model in found.models))
    table.padding = 0, 1, 0, 0
    rows: dict[str, list[str]] = {}
    for cost in found.costs:  # by model
        rows.setdefault(cost.mix, []).append(cell(cost))
    for mix, cells in rows.items():
        table.add_row(f" {mix}", *cells)
    return table


def threads(number: int) -> str:
    """Return a number of threads in words."""
    return "1 thread" if number == 1 else f"{number} threads"


def gigabytes(nbytes: int) -> str:
    """Return a size in GB."""
    return f"{nbytes / 1e9:,.2f}" if nbytes < 1e11 else f"{nbytes / 1e9:,.0f}"


def seconds(cost: Cost) -> str:
    """Return the time, marked where it is computed."""
    places = 3 if cost.seconds < 10 else 0
    return f"{'' if cost.measured else '≈ '}{cost.seconds:,.{places}f}"
