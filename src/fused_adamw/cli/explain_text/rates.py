"""The text of the section on effective learning rates."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from ...explain.rates import Rate, Rates, TensorRates
from ..console import heading, number_table, paragraph
from .adamw import NEARLY_ALL
from .numbers import cell, factor, number, times


def rates_text(found: Rates) -> Iterator[RenderableType]:
    """Yield the section."""
    h = found.hyperparameters
    yield heading("The smaller the gradient, the larger its effective learning rate")
    yield paragraph(
        f"effective rate = α / (√v̂ + ε), with α = {h.lr:g} and ε = {h.eps:g}. At the first step "
        f"v̂ = g²: {size_of_first(found.by_gradient)}"
    )
    yield by_gradient(found.by_gradient)
    yield heading("In the tiny transformer, while it trains")
    yield paragraph(
        "Effective rates of the parameters of each tensor, as multiples of α. Parameters whose "
        "gradient has always been 0 are left out: the embeddings of <PAD>, <EOS> and the last "
        f"position, from which nothing is predicted. λ = {factor(h.weight_decay)}, "
        f"β₁ = {factor(h.betas[0])}, β₂ = {factor(h.betas[1])}."
    )
    for step, loss in found.losses.items():
        rows = [row for row in found.by_tensor if row.step == step]
        yield by_tensor(rows, f"Step {step:,}: loss {number(loss)} after it")


def size_of_first(rows: Sequence[Rate]) -> str:
    """Return how far a first update moves a parameter: |g| / (|g| + ε) of α."""
    least, *_, largest = (row.gradient * row.multiplier for row in rows)
    if least >= NEARLY_ALL:
        return "every parameter moves by about α, whatever its gradient."
    return (
        "a parameter moves by |g| / (|g| + ε) of α, which is about α where ε is small next to |g|; "
        f"here from {number(least)} α for the smallest of these gradients to {number(largest)} α "
        "for the largest."
    )


def by_gradient(rows: Sequence[Rate]) -> Table:
    """Return the effective rate of gradients by their size."""
    table = number_table("|gradient|", "v̂ (≈ g²)", "effective rate", "multiplier")
    for row in rows:
        table.add_row(
            f"{row.gradient:.3f}",
            cell(row.v_hat),
            cell(row.effective_lr),
            f"{times(row.multiplier)} ×",
        )
    return table


def by_tensor(rows: Sequence[TensorRates], title: str) -> Table:
    """Return the rates of each tensor at a step."""
    table = number_table("", "least", "median", "largest", "left out", title=title)
    for row in rows:
        values = (row.least, row.median, row.largest)
        cells = ("" if value is None else f"{times(value)} ×" for value in values)
        table.add_row(row.tensor, *cells, str(row.without_gradient or ""))
    return table
