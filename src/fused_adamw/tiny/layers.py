"""The layers of a transformer block with their gradients, written out by hand in NumPy.

Each layer is a pair of functions. `X_forward` computes the output; `X_backward`, right below it,
takes the gradient of the loss with respect to that output and returns those with respect to the
inputs. `dX` names the gradient of the loss with respect to X, and has the shape of X.

Shapes are given at the end of the lines:

    B   sequences in the batch       D       d_model, the width of the model
    n   positions in a sequence      d_head  D / heads
    N   B * n, all positions         V       tokens in the vocabulary

Outside attention no position sees another, so sequence and position are one axis, N.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.intp]
CrossEntropyCache: TypeAlias = tuple[FloatArray, NDArray[np.bool_], int]

PAD = 0  # the token that fills up a shorter sequence of a batch
LAYERNORM_EPS = 1e-5


# ---------------------------------------------------------------------------- embedding


def embedding_forward(tokens: IntArray, E_token: FloatArray, E_pos: FloatArray) -> FloatArray:
    X = E_token[tokens] + E_pos[: tokens.shape[1]]  # (B, n, D)
    return X.reshape(-1, X.shape[-1])  # (N, D)


def embedding_backward(
    dX: FloatArray, tokens: IntArray, E_token: FloatArray, E_pos: FloatArray
) -> tuple[FloatArray, FloatArray]:
    B, n = tokens.shape
    dE_token = np.zeros(E_token.shape, E_token.dtype)  # (V, D)
    np.add.at(dE_token, tokens.ravel(), dX)  # a token that occurs twice gets both gradients
    dE_pos = np.zeros(E_pos.shape, E_pos.dtype)  # (max_length, D)
    dE_pos[:n] = dX.reshape(B, n, -1).sum(axis=0)  # (n, D)
    return dE_token, dE_pos


# ---------------------------------------------------------------------------- linear


def linear_forward(X: FloatArray, W: FloatArray) -> FloatArray:
    Y: FloatArray = X @ W.T  # (N, d_in), (d_out, d_in) -> (N, d_out)
    return Y


def linear_backward(dY: FloatArray, X: FloatArray, W: FloatArray) -> tuple[FloatArray, FloatArray]:
    dX = dY @ W  # (N, d_in)
    dW = dY.T @ X  # (d_out, d_in)
    return dX, dW


# ---------------------------------------------------------------------------- attention


def softmax(scores: FloatArray) -> FloatArray:
    # Without the shift, exp overflows for large scores; it cancels in the quotient.
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    P: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return P


def attention_mask(tokens: IntArray, causal_mask: FloatArray) -> FloatArray:
    """The term added to the scores: -inf where a key comes after the query or is PAD."""
    n = tokens.shape[1]
    mask = causal_mask[:n, :n]  # (n, n)
    is_pad = tokens == PAD  # (B, n)
    if not np.count_nonzero(is_pad):
        return mask
    # A PAD attends to itself: a softmax over nothing would be NaN, and NaN would spread.
    hidden = is_pad[:, None, :] & ~np.eye(n, dtype=bool)  # (B, n, n)
    return mask + np.where(hidden, causal_mask.dtype.type(-np.inf), causal_mask.dtype.type(0))


class AttentionCache(NamedTuple):
    """What the backward pass needs of attention."""

    W: FloatArray  # (3, heads, D, d_head): W_Q, W_K, W_V
    Q: FloatArray  # (heads, B, n, d_head)
    K: FloatArray  # (heads, B, n, d_head)
    V: FloatArray  # (heads, B, n, d_head)
    P: FloatArray  # (heads, B, n, n): each row is what a position attends to


class AttentionGradients(NamedTuple):
    """Gradients of the loss with respect to what attention is computed from."""

    dX: FloatArray  # (N, D), the sum of the paths
    dW_Q: FloatArray  # (heads, D, d_head)
    dW_K: FloatArray  # (heads, D, d_head)
    dW_V: FloatArray  # (heads, D, d_head)
    paths: FloatArray  # (3, heads, N, D): what reaches X through Q, K and V


def attention_scores(Q: FloatArray, K: FloatArray, mask: FloatArray) -> FloatArray:
    scores: FloatArray = Q @ K.swapaxes(-1, -2) / math.sqrt(Q.shape[-1]) + mask
    return scores  # (heads, B, n, n)


def attention_forward(
    X: FloatArray, W_Q: FloatArray, W_K: FloatArray, W_V: FloatArray, mask: FloatArray
) -> tuple[FloatArray, AttentionCache]:
    n_heads, _, d_head = W_Q.shape
    W = np.array((W_Q, W_K, W_V))  # (3, heads, D, d_head): one product for three
    Q, K, V = (X @ W).reshape(3, n_heads, -1, mask.shape[-1], d_head)  # (heads, B, n, d_head) each
    P = softmax(attention_scores(Q, K, mask))  # (heads, B, n, n)
    A = P @ V  # (heads, B, n, d_head)
    concatenated = A.reshape(n_heads, -1, d_head).swapaxes(0, 1).reshape(X.shape)  # (N, D)
    return concatenated, AttentionCache(W, Q, K, V, P)


def attention_backward(
    dconcatenated: FloatArray, X: FloatArray, cache: AttentionCache
) -> AttentionGradients:
    W, Q, K, V, P = cache
    _, n_heads, _, d_head = W.shape
    by_head = dconcatenated.reshape(-1, n_heads, d_head).swapaxes(0, 1)  # (heads, N, d_head)
    dA = by_head.reshape(V.shape)  # (heads, B, n, d_head)
    dP = dA @ V.swapaxes(-1, -2)  # (heads, B, n, n)
    PdP = P * dP  # (heads, B, n, n)
    dscores = (PdP - P * PdP.sum(axis=-1, keepdims=True)) / math.sqrt(d_head)  # (heads, B, n, n)
    dQ = dscores @ K  # (heads, B, n, d_head)
    dK = dscores.swapaxes(-1, -2) @ Q  # (heads, B, n, d_head)
    dV = P.swapaxes(-1, -2) @ dA  # (heads, B, n, d_head)
    dQKV = np.array((dQ, dK, dV)).reshape(3, n_heads, -1, d_head)  # (3, heads, N, d_head)
    paths = dQKV @ W.swapaxes(-1, -2)  # (3, heads, N, D)
    dW_Q, dW_K, dW_V = X.T @ dQKV  # (heads, D, d_head) each
    return AttentionGradients(paths.sum(axis=(0, 1)), dW_Q, dW_K, dW_V, paths)


# ---------------------------------------------------------------------------- gelu

# gelu(x) = x * gate(x), gate(x) = (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 x^3),
# with u written as x * (GELU_LINEAR + GELU_CUBIC * x^2).
GELU_LINEAR = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


class GeluCache(NamedTuple):
    """What the backward pass needs of GELU."""

    X: FloatArray  # (N, d_ff), what it is applied to
    square: FloatArray  # (N, d_ff)
    gate: FloatArray  # (N, d_ff)


def gelu_forward(X: FloatArray) -> tuple[FloatArray, GeluCache]:
    square = X * X  # (N, d_ff)
    gate = 0.5 + 0.5 * np.tanh(X * (GELU_LINEAR + GELU_CUBIC * square))  # (N, d_ff)
    return X * gate, GeluCache(X, square, gate)


def gelu_backward(dY: FloatArray, cache: GeluCache) -> FloatArray:
    X, square, gate = cache
    # gate' = (1 - tanh(u)^2) / 2 * u', and 1 - tanh(u)^2 = 4 gate (1 - gate).
    u_slope = GELU_LINEAR + 3 * GELU_CUBIC * square  # (N, d_ff)
    gate_slope = 2.0 * gate * (1.0 - gate) * u_slope  # (N, d_ff)
    dX: FloatArray = dY * (gate + X * gate_slope)  # (N, d_ff)
    return dX


# ---------------------------------------------------------------------------- layernorm


class LayernormCache(NamedTuple):
    """What the backward pass needs of layer normalization."""

    normalized: FloatArray  # (N, D), of mean 0 and variance 1 in each row
    inverse_std: FloatArray  # (N, 1)


def layernorm_forward(
    X: FloatArray, gamma: FloatArray, beta: FloatArray
) -> tuple[FloatArray, LayernormCache]:
    D = X.shape[-1]
    centered = X - X.sum(axis=-1, keepdims=True) / D  # (N, D)
    variance = (centered * centered).sum(axis=-1, keepdims=True) / D  # (N, 1)
    inverse_std = 1.0 / np.sqrt(variance + LAYERNORM_EPS)  # (N, 1)
    normalized = centered * inverse_std  # (N, D)
    return normalized * gamma + beta, LayernormCache(normalized, inverse_std)


def layernorm_backward(
    dY: FloatArray, gamma: FloatArray, cache: LayernormCache
) -> tuple[FloatArray, FloatArray, FloatArray]:
    normalized, inverse_std = cache
    D = dY.shape[-1]
    dgamma = (dY * normalized).sum(axis=0)  # (D,)
    dbeta = dY.sum(axis=0)  # (D,)
    # Mean and variance depend on X as well; their share removes from the gradient its mean and its
    # component along the normalized values.
    dnormalized = dY * gamma  # (N, D)
    mean = dnormalized.sum(axis=-1, keepdims=True) / D  # (N, 1)
    along = (dnormalized * normalized).sum(axis=-1, keepdims=True) / D  # (N, 1)
    dX = inverse_std * (dnormalized - mean - normalized * along)  # (N, D)
    return dX, dgamma, dbeta


# ---------------------------------------------------------------------------- cross entropy


def cross_entropy_forward(logits: FloatArray, targets: IntArray) -> tuple[float, CrossEntropyCache]:
    """Return the mean of -log P(target) over the positions whose target is not PAD."""
    is_target = targets[:, None] == np.arange(logits.shape[1])  # (N, V), one-hot
    is_target[:, PAD] = False
    count = int(np.count_nonzero(is_target))
    if count == 0:
        raise ValueError("targets must contain at least one token other than PAD; got none")
    shifted = logits - logits.max(axis=-1, keepdims=True)  # (N, V)
    log_P = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # (N, V)
    loss = -float(log_P[is_target].sum()) / count + 0.0  # without the sign of -0
    return loss, (log_P, is_target, count)


def cross_entropy_backward(cache: CrossEntropyCache) -> FloatArray:
    log_P, is_target, count = cache
    is_counted = is_target.any(axis=-1, keepdims=True)  # (N, 1)
    return (np.exp(log_P) * is_counted - is_target) / count  # (N, V)
