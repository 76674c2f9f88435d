"""The tiny transformer as its definition reads, and models and batches to compare it on."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fused_adamw.tiny import PAD, TARGETS, TOKENS, TinyTransformer

Parameters = dict[str, NDArray[Any]]

# Three heads, sequences of unequal length, a token that occurs twice, targets shorter than their
# tokens, a target PAD in the middle, and a PAD that is no padding.
ODD_SIZES: dict[str, Any] = {
    "vocab_size": 7,
    "d_model": 12,
    "n_heads": 3,
    "d_ff": 10,
    "max_length": 6,
}
ODD_TOKENS = [[1, 3, 3, 5, 6], [1, 4], [1, PAD, 2, 6, 5, 4]]
ODD_TARGETS = [[3, 3, PAD, 6], [4, 2], [2, 2, 6, 5, 4]]

CASES: dict[str, tuple[TinyTransformer, Any, Any]] = {
    "default": (TinyTransformer(seed=42), TOKENS, TARGETS),
    "odd": (TinyTransformer(seed=7, **ODD_SIZES), ODD_TOKENS, ODD_TARGETS),
}
for name, shift in (("gamma", 1.0), ("beta", 0.0)):
    # At their ones and zeros an error in gamma or beta could hide.
    parameter = CASES["odd"][0].parameters[name]
    parameter[:] = shift + np.linspace(-0.3, 0.4, parameter.size)


def plain_loss(p: Parameters, tokens: Sequence[Any], targets: Sequence[Any]) -> Any:
    """The loss as the definition reads: one sequence, one head, one position at a time.

    Nothing is padded and nothing is masked: a position looks only at the keys it may see. All of
    it is analytic, so that it also accepts complex parameters.
    """
    total, count = 0.0, 0
    for sequence, labels in zip(tokens, targets, strict=True):
        for i, label in enumerate(labels):
            if label != PAD:
                logits = plain_logits(p, sequence, i)
                total += np.log(np.exp(logits).sum()) - logits[label]
                count += 1
    return total / count


def plain_logits(p: Parameters, tokens: Sequence[int], i: int) -> NDArray[Any]:
    X = [p["E_token"][token] + p["E_pos"][j] for j, token in enumerate(tokens)]
    seen = [j for j in range(i + 1) if tokens[j] != PAD or j == i]
    heads = []
    for W_Q, W_K, W_V in zip(p["W_Q"], p["W_K"], p["W_V"], strict=True):
        q = X[i] @ W_Q
        weights = np.array([np.exp(q @ (X[j] @ W_K) / math.sqrt(len(q))) for j in seen])
        values = np.array([X[j] @ W_V for j in seen])
        heads.append(weights @ values / weights.sum())
    H = p["W_O"] @ np.concatenate(heads)
    x = p["W_1"] @ H + p["b_1"]
    gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    Z = H + p["W_2"] @ gelu + p["b_2"]
    centered = Z - Z.sum() / len(Z)
    Y = centered / np.sqrt((centered**2).sum() / len(Z) + 1e-5) * p["gamma"] + p["beta"]
    logits: NDArray[Any] = p["W_lm"] @ Y
    return logits


def batched(sequences: Any) -> Any:
    return [sequences] if isinstance(sequences[0], int) else sequences


def arrays_in(cache: Any) -> Iterator[NDArray[Any]]:
    if isinstance(cache, np.ndarray):
        yield cache
    elif isinstance(cache, tuple):
        for item in cache:
            yield from arrays_in(item)
