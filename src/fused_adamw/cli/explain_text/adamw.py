"""The text of the section on one parameter's updates."""

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from ...explain.adamw import (
    GRADIENT,
    THETA,
    AdamWUpdates,
    BiasCorrection,
    Hyperparameters,
    OptimizerOutcome,
    Update,
)
from ..console import heading, number_table, paragraph
from .numbers import cell, factor, in_parentheses, narrow, number, signed, times

MOST_ROWS = 20
NEARLY_ALL = 0.9  # of α, so that an update is about α
LITTLE = 0.1  # of the decay in AdamW, so that almost nothing is left
SIGNED, UNSIGNED = 9, 8  # widths of columns: eight of them have to fit


def adamw_text(found: AdamWUpdates) -> Iterator[RenderableType]:
    """Yield the section."""
    h, first = found.hyperparameters, found.updates[0]
    yield heading("One AdamW update, number by number")
    if (first.theta_before, first.gradient) == (THETA, GRADIENT):
        yield paragraph(
            f"Suppose the gradient of the loss at the parameter E_token[<BOS>][0] is {GRADIENT}."
        )
    yield paragraph(initial_state(first, h))
    for title, lines in four_steps(first, h).items():
        yield heading(title)
        yield paragraph("\n".join(lines))
    yield heading("Summary")
    yield paragraph(summary(first, found))
    yield heading("The steps after it")
    yield paragraph(after_first(found))
    yield updates_table(found.updates)
    yield bias_table(found.bias_corrections)
    yield from model_text(found.model_updates, found.hyperparameters)
    yield from comparison_text(found)


# ---------------------------------------------------------------------------- the first step


def initial_state(first: Update, h: Hyperparameters) -> str:
    """Return the numbers before the step."""
    return (
        "\n"
        f"parameter        θ₀ = {number(first.theta_before)}\n"
        f"gradient         g  = {number(first.gradient)}\n"
        f"first moment     m₀ = {number(first.m_before)}\n"
        f"second moment    v₀ = {number(first.v_before)}\n"
        f"step             t  = {first.t}\n"
        f"learning rate    α  = {h.lr:g}\n"
        f"decay rates      β₁ = {h.betas[0]:.10g}, β₂ = {h.betas[1]:.10g}\n"
        f"epsilon          ε  = {h.eps:g}\n"
        f"weight decay     λ  = {h.weight_decay:g}"
    )


def four_steps(u: Update, h: Hyperparameters) -> dict[str, list[str]]:
    """Return the lines of each of the four steps, with the numbers substituted."""
    (beta1, beta2), g, g2 = map(factor, h.betas), number(u.gradient), number(u.gradient_squared)
    rest1, rest2 = factor(1 - h.betas[0]), factor(1 - h.betas[1])
    m, v, m_hat, v_hat = number(u.m), number(u.v, 9), number(u.m_hat), number(u.v_hat)
    decay, decayed = factor(1 - h.lr * h.weight_decay), number(u.decayed, 9)
    root, update = number(u.denominator - h.eps), number(u.update)
    return {
        "Step 1: update the moments": [
            "m₁ = β₁ × m₀ + (1 - β₁) × g",
            f"   = {beta1} × 0.0 + {rest1} × {g} = {m}",
            "v₁ = β₂ × v₀ + (1 - β₂) × g²",
            f"   = {beta2} × 0.0 + {rest2} × ({g})²",
            f"   = {beta2} × 0.0 + {rest2} × {g2} = {v}",
        ],
        "Step 2: correct their bias": [
            f"m̂₁ = m₁ / (1 - β₁¹) = {m} / {rest1} = {m_hat}",
            f"v̂₁ = v₁ / (1 - β₂¹) = {v} / {rest2} = {v_hat}",
            "Both moments began at zero. At t = 1, m̂ is the gradient itself.",
        ],
        "Step 3: decay the weight": [
            f"θ × (1 - α × λ) = {number(u.theta_before)} × {decay} = {decayed}",
            f"shrinkage: {number(u.shrinkage, 9)}",
        ],
        "Step 4: update the parameter": [
            f"effective rate = α / (√v̂₁ + ε) = {h.lr:g} / ({root} + {h.eps:g})"
            f" = {number(u.effective_lr)}",
            f"This is {times(u.multiplier)}× the base learning rate!",
            "update = α × m̂₁ / (√v̂₁ + ε)",
            f"       = {h.lr:g} × {m_hat} / {number(u.denominator)} = {update}",
            f"θ₁ = {decayed} - {in_parentheses(update)} = {number(u.theta)}",
        ],
    }


def summary(first: Update, found: AdamWUpdates) -> str:
    """Return the parameter before and after."""
    kernel = found.kernel
    return (
        f"before  {number(first.theta_before):>9}\n"
        f"after   {number(first.theta):>9}\n"
        f"change  {signed(first.change):>9}\n"
        f"The compiled update, fused_adamw, in float64: θ {number(kernel['theta'], 9)}, "
        f"m {number(kernel['m'])}, v {number(kernel['v'], 9)}."
    )


# ---------------------------------------------------------------------------- more steps


def after_first(found: AdamWUpdates) -> str:
    """Return what the tables show."""
    text = "m is a mean of recent gradients (the momentum), v one of their squares."
    if not math.isfinite(found.uncorrected):  # v is infinite
        return text
    return (
        f"{text} With m and v in place of m̂ and v̂, without bias correction, the first update would "
        f"be {times(found.uncorrected)} times as large."
    )


def updates_table(updates: Sequence[Update]) -> Table:
    """Return the numbers of several steps."""
    table = number_table(" t", "g", "m", "v", "m̂", "v̂", "rate / α", "θ")
    table.padding = (0, 1 if updates[-1].t < 1000 else 0, 0, 0)
    for u in shown(updates):
        multiplier = times(u.multiplier)
        table.add_row(
            f" {u.t}",
            narrow(u.gradient, SIGNED),
            narrow(u.m, SIGNED),
            narrow(u.v, UNSIGNED),
            narrow(u.m_hat, SIGNED),
            narrow(u.v_hat, UNSIGNED),
            multiplier if len(multiplier) <= UNSIGNED else narrow(u.multiplier, UNSIGNED),
            narrow(u.theta, SIGNED),
        )
    return table


def shown(updates: Sequence[Update]) -> list[Update]:
    """Return all updates; of many, the first, the last, and some between them."""
    if len(updates) <= MOST_ROWS:
        return list(updates)
    chosen = {m * 10**k for k in range(5) for m in (1, 2, 5)} | {3, 4, len(updates)}
    return [u for u in updates if u.t in chosen]


def bias_table(rows: Sequence[BiasCorrection]) -> Table:
    """Return what m and v are multiplied by."""
    table = number_table("t", "m̂ = m × 1 / (1 - β₁ᵗ)", "v̂ = v × 1 / (1 - β₂ᵗ)")
    for row in rows:
        table.add_row(f"{row.t:,}", cell(row.of_m), cell(row.of_v))
    return table


# ---------------------------------------------------------------------------- the model's gradient


def model_text(updates: Sequence[Update], h: Hyperparameters) -> Iterator[RenderableType]:
    """Yield the updates with the gradients that the model has there."""
    first = updates[0]
    yield heading("The same with the model's own gradient")
    yield paragraph(
        f"In the model, the gradient at E_token[<BOS>][0] is {number(first.gradient)} (see the "
        "section backward). The steps are the same:\n"
        "\n"
        f"m₁ = {number(first.m)}, v₁ = {number(first.v)}\n"
        f"m̂₁ = {number(first.m_hat)}, v̂₁ = {number(first.v_hat)}\n"
        f"effective rate = {number(first.effective_lr)}\n"
        f"This is {times(first.multiplier)}× the base learning rate!\n"
        f"update = {number(first.update)}\n"
        f"θ₁ = {number(first.decayed, 9)} - {in_parentheses(number(first.update))} = "
        f"{number(first.theta)}\n"
        "\n"
        f"{size_of_first(first, h)} The next steps of the training:"
    )
    yield updates_table(updates)


def size_of_first(first: Update, h: Hyperparameters) -> str:
    """Return how far the first update moves the parameter: |g| / (|g| + ε) of α."""
    share = abs(first.m_hat) / first.denominator
    if share >= NEARLY_ALL:
        return (
            "This is what adaptive means: at the first step every parameter moves by about α, "
            "whatever the size of its gradient."
        )
    return (
        "At the first step a parameter moves by |g| / (|g| + ε) of α, which is about α where ε is "
        f"small next to |g|. Here ε = {h.eps:g} is not: the update is {number(share)} α."
    )


# ---------------------------------------------------------------------------- other optimizers


def comparison_text(found: AdamWUpdates) -> Iterator[RenderableType]:
    """Yield what other optimizers make of the same numbers."""
    h, first = found.hyperparameters, found.updates[0]
    regularized = first.gradient + h.weight_decay * first.theta_before
    yield heading("The same numbers in SGD, and in Adam with L2 regularization")
    yield comparison_table(found.comparisons, len(found.updates))
    yield paragraph(
        f"SGD: θ₁ = θ₀ - α × g = {number(first.theta_before)} - {h.lr:g} × "
        f"{number(first.gradient)} = {number(found.comparisons[-1].after_first)}\n"
        "Its steps are proportional to the gradient. It is said to have three failings: one rate "
        "for all parameters is too large for some and too small for others; noisy gradients cause "
        "oscillation; and the result is sensitive to the rate. This model does not show the third: "
        "see fused-adamw train --compare.\n"
        "\n"
        "Adam with L2 adds the decay to the gradient:\n"
        f"g + λ × θ₀ = {number(first.gradient)} + {h.weight_decay:g} × "
        f"{number(first.theta_before)} = {number(regularized)}\n"
        f"{decay_in_l2(found)} AdamW subtracts it from θ itself, whatever the gradient is. That is "
        "the W: decoupled weight decay."
    )


def decay_in_l2(found: AdamWUpdates) -> str:
    """Return what the first update of Adam with L2 leaves of the decay, and why."""
    h, first = found.hyperparameters, found.updates[0]
    adamw, l2 = (row.decay_first for row in found.comparisons[:2])
    if adamw == 0 or not math.isfinite(l2 / adamw):
        return (
            "There is no decay to compare at this step: α × λ × θ₀ is 0, is lost in rounding, or "
            "is beyond float64."
        )
    if abs(l2) <= LITTLE * abs(adamw):
        why = "√v̂, which has changed in the same proportion"
        if h.eps > math.sqrt(first.v_hat):
            why = f"√v̂ + ε, and ε = {h.eps:g} is large"
        return f"The update divides this by {why}: almost nothing is left of the decay."
    if first.gradient == 0:
        reason = "the gradient is 0, so that the decay alone is divided by its own size"
    elif first.gradient * (first.gradient + h.weight_decay * first.theta_before) <= 0:
        reason = "the decay is larger than the gradient and has the other sign"
    else:
        reason = f"ε = {h.eps:g} is not small next to the gradient"
    return (
        f"The update divides this by √v̂ + ε. What is left of the decay, {number(-l2, 9)}, is "
        f"{times(l2 / adamw)} times that of AdamW, since {reason}."
    )


def comparison_table(rows: Sequence[OptimizerOutcome], steps: int) -> Table:
    """Return the parameter in each optimizer, and what of it is due to weight decay."""
    headers = ["", "θ after step 1", "due to λ"]
    if steps > 1:
        headers += [f"after step {steps:,}", "due to λ"]
    table = number_table(*headers)
    for row in rows:
        cells = [narrow(row.after_first, 12, places=9), narrow(row.decay_first, 12, places=9)]
        if steps > 1:
            cells += [narrow(row.after_last, 12, places=9), narrow(row.decay_last, 12, places=9)]
        table.add_row(row.optimizer, *cells)
    return table
