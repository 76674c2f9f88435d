"""The text of the section on the backward pass."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from ...explain.backward import STEP, Backward
from ...tiny.model import TOKENS
from ..console import heading, number_table, paragraph
from .numbers import cell, vector


def backward_text(found: Backward) -> Iterator[RenderableType]:
    """Yield the section."""
    yield heading("The backward pass: from the loss to the gradients")
    yield paragraph("dX names the gradient of the loss with respect to X, and has the shape of X.")
    yield from of_logits(found)
    yield from through_layers(found)
    yield from of_all(found)
    yield from of_one_parameter(found)


def name(found: Backward, position: int) -> str:
    """Return the token at a position."""
    return found.vocabulary[TOKENS[position]]


def of_logits(found: Backward) -> Iterator[RenderableType]:
    """Yield the first step."""
    i, n = found.followed, len(found.P)
    target = int(found.onehot[i].argmax())
    names = [token.strip("<>") for token in found.vocabulary]
    P, d = found.P[i, target], found.dlogits[i, target]
    yield heading("1. Gradient of the loss with respect to the logits")
    yield paragraph(
        f"dlogits = (P − onehot) / {n}: what the model predicts, minus 1 at the target, divided by "
        f"the number of positions that predict. At {name(found, i)}, with the target "
        f"{found.vocabulary[target]}:\n"
        f"({P:.4f} − 1) / {n} = {d:.4f}"
    )
    table = number_table("after", *names)
    table.padding = 0, 1, 0, 0
    for position, row in enumerate(found.dlogits):
        table.add_row(f" {name(found, position)}", *(f"{x:.4f}" for x in row))
    yield table


def through_layers(found: Backward) -> Iterator[RenderableType]:
    """Yield the second step."""
    i = found.followed
    yield heading("2. Backpropagation through every layer")
    yield paragraph(f"First values at position {i}, {name(found, i)}:")
    width = max(len(stage.name) for stage in found.stages)
    lines = []
    for stage in found.stages:
        lines += [f"{stage.name:{width}} = {stage.formula}", f"  {vector(stage.values)}"]
    yield paragraph("\n".join(lines))
    yield paragraph(
        "\n"
        "H reaches the loss twice, through F and through the sum H + F: it gets the sum of both "
        "gradients.\n"
        "Layer norm, with N for the normalized values, and the mean of each row:\n"
        "dN = dY × γ, d(H + F) = (dN - mean(dN) - N × mean(dN × N)) / √(variance + ε)\n"
        "Attention, with A for the softmax of the scores, and the sum of each row:\n"
        "dV = Aᵀ · dhead, dA = dhead · Vᵀ, dscores = A × (dA - sum(A × dA)),\n"
        f"dQ = dscores · K / √{found.d_head}, dK = dscoresᵀ · Q / √{found.d_head}"
    )


def of_all(found: Backward) -> Iterator[RenderableType]:
    """Yield the third step."""
    count = sum(row.count for row in found.tensors)
    yield heading("3. Gradients of all parameters")
    yield paragraph(
        "dW = dYᵀ · X where Y = X · Wᵀ; db is the sum of dY over the positions. Beside each tensor "
        f"the largest error of a finite difference (h = {STEP:g}), over all {count:,} parameters:"
    )
    yield tensors_table(found)


def of_one_parameter(found: Backward) -> Iterator[RenderableType]:
    """Yield the gradient that the section adamw takes."""
    i = found.followed
    bos = name(found, i)
    paths = [f"through {path}  {value:13.10f}" for path, value in found.paths.items()]
    yield heading("One of them, which AdamW takes: E_token[<BOS>][0]")
    yield paragraph(
        f"{bos} occurs once, at position {i}; so the gradient of its embedding is dX there. Of its "
        "first value:\n" + "\n".join(paths) + f"\nsum        {found.gradient:13.10f}\n"
        f"{bos} sees only itself, and attention is 1 whatever its query is: nothing comes through "
        "Q. Its key and its value are seen by all positions.\n"
        "\n"
        "The same without a backward pass, by a finite difference:\n"
        "(loss(θ + h) - loss(θ - h)) / 2h\n"
        "A larger h is less exact since the loss is curved, a smaller one since both losses are "
        "rounded."
    )
    table = number_table("h", "finite difference", "minus the gradient")
    for row in found.finite_differences:
        table.add_row(f"{row.h:g}", f"{row.gradient:.10f}", f"{row.error:.1e}")
    yield table
    yield paragraph(
        "The section adamw goes on with this gradient. A training run repeats it: for each epoch, "
        "for each batch: t += 1, forward, backward, update of every parameter."
    )


def tensors_table(found: Backward) -> Table:
    """Return the gradient of each tensor and its errors."""
    table = number_table("", "parameters", "norm", "largest", "largest error")
    for row in found.tensors:
        table.add_row(
            row.tensor,
            f"{row.count:,}",
            cell(row.norm),
            cell(row.largest),
            f"{row.largest_error:.1e}",
        )
    return table
