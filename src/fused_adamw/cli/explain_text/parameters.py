"""The text of the section on the model's parameters."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from ..._core import BLOCK
from ...explain.parameters import Parameters, StateBytes
from ..console import heading, paragraph, text_table


def parameters_text(found: Parameters) -> Iterator[RenderableType]:
    """Yield the section."""
    yield heading("The parameters of the tiny transformer")
    yield tensors_table(found)
    yield paragraph(f"AdamW state (m and v): 2 × {found.total:,} = {found.state_values:,} values")
    yield heading("Bytes of that state, for each way of storing it")
    yield storage_table(found.storage)
    yield paragraph(
        f"Master weights are the float32 that 16-bit parameters are rounded from. In a format with "
        f"scales, {BLOCK} values share them; a tensor whose last block is not full takes a little "
        "more for each parameter. In code: AdamW(params, state_dtype=..., master_weights=...)."
    )


def tensors_table(found: Parameters) -> Table:
    """Return the parameters with the arithmetic of their counts."""
    table = text_table("")
    table.add_column("count", justify="right")
    table.add_column("in the code")
    for tensor in found.tensors:
        sizes = " × ".join(map(str, tensor.shape))
        product = f"{sizes} = {tensor.count:,}" if len(tensor.shape) > 1 else f"{tensor.count:,}"
        table.add_row(tensor.title, product, tensor.name)
    table.add_section()
    table.add_row("total", f"{found.total:,}", style="bold")
    return table


def storage_table(rows: Sequence[StateBytes]) -> Table:
    """Return the bytes of state of each combination."""
    table = text_table("parameters", "m and v", "master weights")
    table.add_column("bytes per parameter", justify="right")
    table.add_column("this model", justify="right")
    for row in rows:
        per_parameter = f"{row.bytes_per_parameter:.2f}".rstrip("0").rstrip(".")
        master = "yes" if row.master_weights else ""
        table.add_row(row.params, row.moments, master, per_parameter, f"{row.model_bytes:,}")
    return table
