"""The text of the section on the forward pass."""

import math
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from ...explain.forward import Forward
from ...tiny.layers import GELU_LINEAR, LAYERNORM_EPS, FloatArray
from ..console import bullets, heading, number_table, paragraph
from .numbers import vector

DIFFERENCES = (
    "No residual around attention: the paper normalizes X + attention(X), here H has no X.",
    "One layer norm, after the feed-forward layer; the paper has another one after attention.",
    "One block; the paper has six in the decoder, and an encoder with six more.",
    "Position embeddings are learned; the paper adds sines and cosines.",
    "W_lm has weights of its own; the paper shares them with the embeddings, times √d_model.",
    "GELU; the paper uses ReLU. No dropout, and no label smoothing.",
)


def forward_text(found: Forward) -> Iterator[RenderableType]:
    """Yield the section."""
    i = found.followed
    yield heading("The forward pass: from tokens to the loss")
    yield paragraph(
        f"The numbers below are those of position {i}, {name(found, i)!r}, where nothing else is "
        "said. Of long vectors the first values are shown; --json has all."
    )
    yield from embedding(found)
    yield from attention(found)
    yield from after_attention(found)
    yield from prediction(found)
    yield heading("Where the model differs from the paper (Vaswani et al. 2017)")
    yield bullets(DIFFERENCES)


def name(found: Forward, position: int) -> str:
    """Return the token at a position."""
    return found.vocabulary[found.tokens[position]]


def vectors(rows: dict[str, FloatArray]) -> str:
    """Return a line for each vector."""
    width = max(map(len, rows))
    return "\n".join(f"{label:{width}}  {vector(values)}" for label, values in rows.items())


def four(value: float) -> str:
    """Return a number as the vectors have it."""
    return f"{value:.4f}"


# ---------------------------------------------------------------------------- embedding


def embedding(found: Forward) -> Iterator[RenderableType]:
    """Yield step 1."""
    i = found.followed
    yield heading("1. Tokenization and embedding lookup")
    table = number_table("", *(str(position) for position in range(len(found.tokens))))
    table.add_row("token", *(name(found, position) for position in range(len(found.tokens))))
    table.add_row("its index", *map(str, found.tokens))
    targets = [found.vocabulary[target] for target in found.targets]
    table.add_row("to predict", *targets, *[""] * (len(found.tokens) - len(targets)))
    yield table
    token, D = found.tokens[i], found.X.shape[1]
    rows = {
        f"E_token[{token}]": found.E_token[i],
        f"E_pos[{i}]": found.E_pos[i],
        "X, their sum": found.X[i],
    }
    yield paragraph(
        f"X = E_token[token] + E_pos[position], {D} values for each position:\n"
        f"{vectors(rows)}\n"
        f"X[0] = {four(found.E_token[i, 0])} + {four(found.E_pos[i, 0])} = {four(found.X[i, 0])}"
    )


# ---------------------------------------------------------------------------- attention


def attention(found: Forward) -> Iterator[RenderableType]:
    """Yield steps 2 and 3."""
    i = found.followed
    n_heads, _, d_head = found.Q.shape
    yield heading("2. Q/K/V projections")
    rows = {
        f"{letter}, head {head}": values[head, i]
        for head in range(n_heads)
        for letter, values in zip("QKV", (found.Q, found.K, found.V), strict=True)
    }
    yield paragraph(
        f"Q = X · W_Q, K = X · W_K, V = X · W_V: {n_heads} heads of {d_head} values.\n"
        f"{vectors(rows)}"
    )
    yield heading("3. Scaled dot-product attention with causal masking")
    score, root = found.scores[0, i, 0], math.sqrt(d_head)
    exponentials = " + ".join(four(math.exp(x)) for x in found.scores[0, i, : i + 1])
    yield paragraph(
        f"scores = Q · Kᵀ / √{d_head}. Query of {name(found, i)!r}, key of {name(found, 0)!r}, "
        "head 0:\n"
        f"{four(score * root)} / {four(root)} = {four(score)}\n"
        "Scores of later positions are masked, -∞: no position sees what it is to predict.\n"
        "The softmax of a row is what a position attends to:\n"
        f"exp({four(score)}) / ({exponentials}) = {four(found.attention[0, i, 0])}"
    )
    for head in range(n_heads):
        yield attention_table(found, head)
    weights = (
        f"{four(weight)} × {four(value)}"
        for weight, value in zip(
            found.attention[0, i, : i + 1], found.V[0, : i + 1, 0], strict=True
        )
    )
    yield paragraph(
        "Weights so close to equal are those of a model that has learned nothing yet.\n"
        "A head is the weighted sum of V. Its first value, head 0:\n"
        f"{' + '.join(weights)} = {four(found.heads[0, i, 0])}"
    )


def attention_table(found: Forward, head: int) -> Table:
    """Return what each position attends to in a head."""
    n = len(found.tokens)
    names = [name(found, position) for position in range(n)]
    title = f"Attention of head {head}: from a row's position to a column's"
    table = number_table("", *names, title=title)
    for row in range(n):
        cells = [four(x) for x in found.attention[head, row, : row + 1]] + [""] * (n - row - 1)
        style = "bold" if row == found.followed else None
        table.add_row(names[row], *cells, style=style)
    return table


# ---------------------------------------------------------------------------- after attention


def after_attention(found: Forward) -> Iterator[RenderableType]:
    """Yield steps 4 to 6."""
    i = found.followed
    yield heading("4. Multi-head concatenation and output projection")
    yield paragraph(
        "H = concat(head 0, head 1) · W_Oᵀ\n"
        + vectors({"concat": found.concatenated[i], "H": found.H[i]})
    )
    yield heading("5. Feed-forward with GELU")
    largest = int(abs(found.before_gelu[i]).argmax())
    x, gelu = (float(values[i, largest]) for values in (found.before_gelu, found.after_gelu))
    rows = {
        "H · W_1ᵀ + b_1": found.before_gelu[i],
        "gelu": found.after_gelu[i],
        "F": found.F[i],
    }
    yield paragraph(
        f"F = gelu(H · W_1ᵀ + b_1) · W_2ᵀ + b_2, with {len(found.before_gelu[i])} values between\n"
        f"{vectors(rows)}\n"
        "gelu(x) = x / 2 × (1 + tanh(√(2/π) × (x + 0.044715 x³)))\n"
        f"The largest of the {len(found.before_gelu[i])}, of index {largest}:\n"
        f"gelu({four(x)}) = {four(x / 2)} × (1 + tanh({four(GELU_LINEAR)} × "
        f"({four(x)} + {0.044715 * x**3:.4f}))) = {four(gelu)}"
    )
    yield heading("6. Layer normalization with residual")
    total = found.H[i] + found.F[i]
    mean, variance = found.mean[i], found.variance[i]
    rows = {"H + F": total, "normalized": found.normalized[i], "Y": found.Y[i]}
    yield paragraph(
        "Y = γ × (H + F - mean) / √(variance + ε) + β, with γ = 1 and β = 0 at first\n"
        f"{vectors(rows)}\n"
        f"mean {mean:.6f}, variance {variance:.6f}, ε = {LAYERNORM_EPS:g}\n"
        f"({four(total[0])} - {four(mean)}) / √{variance + LAYERNORM_EPS:.6f} = "
        f"{four(found.normalized[i, 0])}"
    )


# ---------------------------------------------------------------------------- prediction


def prediction(found: Forward) -> Iterator[RenderableType]:
    """Yield steps 7 and 8."""
    i, n = found.followed, len(found.targets)
    target = found.targets[i]
    names = [token.strip("<>") for token in found.vocabulary]
    yield heading("7. Output projection and softmax")
    yield paragraph("logits = Y · W_lmᵀ, a score for each token of the vocabulary. All positions:")
    yield values_table(found, names, found.logits)
    exponentials = " + ".join(four(math.exp(x)) for x in found.logits[i])
    yield paragraph(
        f"P = softmax(logits). After {name(found, i)!r}:\n"
        f"P({found.vocabulary[target]}) = exp({four(found.logits[i, target])}) /\n"
        f"  ({exponentials}) = {four(found.P[i, target])}"
    )
    yield heading("8. Cross-entropy")
    table = number_table("after", "to predict", "P(target)", "loss = -ln P")
    for position in range(n):
        table.add_row(
            name(found, position),
            found.vocabulary[found.targets[position]],
            four(found.target_probabilities[position]),
            four(found.losses[position]),
        )
    yield table
    losses = " + ".join(map(four, found.losses))
    yield paragraph(
        f"loss = ({losses}) / {n} = {four(found.loss)}\n"
        f"perplexity = exp(loss) = {four(found.perplexity)}\n"
        f"chance: ln {len(found.vocabulary)} = {four(found.chance)}"
    )


def values_table(found: Forward, names: list[str], values: FloatArray) -> Table:
    """Return a number for each position and token of the vocabulary."""
    table = number_table("after", *names)
    table.padding = 0, 1, 0, 0
    for position, row in enumerate(values):
        style = "bold" if position == found.followed else None
        table.add_row(f" {name(found, position)}", *map(four, row), style=style)
    return table
