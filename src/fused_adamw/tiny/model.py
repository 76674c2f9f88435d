"""A transformer block with its gradients, written out by hand in NumPy.

    tokens -> embedding -> attention -> linear -> H -> linear, gelu, linear -> F
    layernorm(H + F) -> linear -> logits -> cross entropy -> loss

Each layer is a pair of functions. `X_forward` computes the output; `X_backward`, right below it,
takes the gradient of the loss with respect to that output and returns those with respect to the
inputs. `dX` names the gradient of the loss with respect to X, and has the shape of X.

Shapes stand at the end of the lines:

    B   sequences in the batch       D       d_model, the width of the model
    n   positions in a sequence      d_head  D / heads
    N   B * n, all positions         V       tokens in the vocabulary

Outside attention no position sees another, so sequence and position are one axis, N.
"""

import math
import operator
import random
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.intp]
Sequences: TypeAlias = ArrayLike | Sequence[ArrayLike]
Parameters: TypeAlias = dict[str, FloatArray]

VOCABULARY = ("<PAD>", "<BOS>", "<EOS>", "I", "like", "transformers")
PAD = 0

# "I like transformers": every token is trained to predict the one after it.
TOKENS = (1, 3, 4, 5, 2)
TARGETS = (3, 4, 5, 2)

INITIAL_STD = 0.1
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
    # Without the shift, exp overflows for large scores; softmax itself is blind to it.
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    P: FloatArray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return P


def attention_mask(tokens: IntArray, causal_mask: FloatArray) -> FloatArray:
    """What is added to the scores: -inf where a key is later than the query, or is PAD."""
    n = tokens.shape[1]
    mask = causal_mask[:n, :n]  # (n, n)
    is_pad = tokens == PAD  # (B, n)
    if not np.count_nonzero(is_pad):
        return mask
    # A PAD attends to itself: a softmax over nothing would be nan, and nan would spread.
    hidden = is_pad[:, None, :] & ~np.eye(n, dtype=bool)  # (B, n, n)
    return mask + np.where(hidden, causal_mask.dtype.type(-np.inf), causal_mask.dtype.type(0))


def attention_forward(
    X: FloatArray, W_Q: FloatArray, W_K: FloatArray, W_V: FloatArray, mask: FloatArray
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    n_heads, _, d_head = W_Q.shape
    W = np.array((W_Q, W_K, W_V))  # (3, heads, D, d_head): one product for three
    Q, K, V = (X @ W).reshape(3, n_heads, -1, mask.shape[-1], d_head)  # (heads, B, n, d_head) each
    scores = Q @ K.swapaxes(-1, -2) / math.sqrt(d_head) + mask  # (heads, B, n, n)
    P = softmax(scores)  # (heads, B, n, n)
    A = P @ V  # (heads, B, n, d_head)
    concatenated = A.reshape(n_heads, -1, d_head).swapaxes(0, 1).reshape(X.shape)  # (N, D)
    return concatenated, (W, Q, K, V, P)


def attention_backward(
    dconcatenated: FloatArray, X: FloatArray, cache: tuple[FloatArray, ...]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
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
    dX = (dQKV @ W.swapaxes(-1, -2)).sum(axis=(0, 1))  # (N, D)
    dW_Q, dW_K, dW_V = X.T @ dQKV  # (heads, D, d_head) each
    return dX, dW_Q, dW_K, dW_V


# ---------------------------------------------------------------------------- gelu

# gelu(x) = x * gate(x), gate(x) = (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 x^3),
# with u written as x * (GELU_LINEAR + GELU_CUBIC * x^2).
GELU_LINEAR = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


def gelu_forward(X: FloatArray) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    square = X * X  # (N, d_ff)
    gate = 0.5 + 0.5 * np.tanh(X * (GELU_LINEAR + GELU_CUBIC * square))  # (N, d_ff)
    return X * gate, (X, square, gate)


def gelu_backward(dY: FloatArray, cache: tuple[FloatArray, ...]) -> FloatArray:
    X, square, gate = cache
    # gate' = (1 - tanh(u)^2) / 2 * u', and 1 - tanh(u)^2 = 4 gate (1 - gate).
    u_slope = GELU_LINEAR + 3 * GELU_CUBIC * square  # (N, d_ff)
    gate_slope = 2.0 * gate * (1.0 - gate) * u_slope  # (N, d_ff)
    dX: FloatArray = dY * (gate + X * gate_slope)  # (N, d_ff)
    return dX


# ---------------------------------------------------------------------------- layernorm


def layernorm_forward(
    X: FloatArray, gamma: FloatArray, beta: FloatArray
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    D = X.shape[-1]
    centred = X - X.sum(axis=-1, keepdims=True) / D  # (N, D)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / D  # (N, 1)
    inverse_std = 1.0 / np.sqrt(variance + LAYERNORM_EPS)  # (N, 1)
    normalized = centred * inverse_std  # (N, D)
    return normalized * gamma + beta, (normalized, inverse_std)


def layernorm_backward(
    dY: FloatArray, gamma: FloatArray, cache: tuple[FloatArray, ...]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    normalized, inverse_std = cache
    D = dY.shape[-1]
    dgamma = (dY * normalized).sum(axis=0)  # (D,)
    dbeta = dY.sum(axis=0)  # (D,)
    # Mean and variance depend on X as well: what they pass on removes from the gradient its mean
    # and its component along the normalized values.
    dnormalized = dY * gamma  # (N, D)
    mean = dnormalized.sum(axis=-1, keepdims=True) / D  # (N, 1)
    along = (dnormalized * normalized).sum(axis=-1, keepdims=True) / D  # (N, 1)
    dX = inverse_std * (dnormalized - mean - normalized * along)  # (N, D)
    return dX, dgamma, dbeta


# ---------------------------------------------------------------------------- cross entropy


def cross_entropy_forward(
    logits: FloatArray, targets: IntArray
) -> tuple[float, tuple[FloatArray, NDArray[np.bool_], int]]:
    """The mean of -log P(target) over the positions whose target is not PAD."""
    is_target = targets[:, None] == np.arange(logits.shape[1])  # (N, V), one-hot
    is_target[:, PAD] = False
    count = int(np.count_nonzero(is_target))
    if count == 0:
        raise ValueError("targets has no position that counts: each is PAD or missing")
    shifted = logits - logits.max(axis=-1, keepdims=True)  # (N, V)
    log_P = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # (N, V)
    loss = -float(log_P[is_target].sum()) / count
    return loss, (log_P, is_target, count)


def cross_entropy_backward(cache: tuple[FloatArray, NDArray[np.bool_], int]) -> FloatArray:
    log_P, is_target, count = cache
    is_counted = is_target.any(axis=-1, keepdims=True)  # (N, 1)
    return (np.exp(log_P) * is_counted - is_target) / count  # (N, V)


# ---------------------------------------------------------------------------- the model


class Activations(NamedTuple):
    """What the layers leave behind for their backward pass."""

    tokens: IntArray  # (B, n)
    X: FloatArray  # (N, D), the embedded tokens
    attention: tuple[FloatArray, ...]
    concatenated: FloatArray  # (N, D), the heads side by side
    H: FloatArray  # (N, D)
    gelu: tuple[FloatArray, ...]
    hidden: FloatArray  # (N, d_ff)
    layernorm: tuple[FloatArray, ...]
    Y: FloatArray  # (N, D)


Cache: TypeAlias = tuple[Activations, tuple[FloatArray, NDArray[np.bool_], int]]


class TinyTransformer:
    """One transformer block that predicts the next token.

    Attention as of Vaswani et al. 2017 (arXiv:1706.03762), causal; GELU in its tanh form, Hendrycks
    & Gimpel 2016 (arXiv:1606.08415); layer normalization of Ba et al. 2016 (arXiv:1607.06450).

    Args:
        seed: of the draws from N(0, 0.1^2), in the order of `parameters`.
        dtype: float32 or float64, of parameters, activations and gradients.
        vocab_size, d_model, n_heads, d_ff, max_length: sizes, 1 or more; d_model is a multiple of
            n_heads, and no sequence is longer than max_length.

    Raises TypeError or ValueError, naming the argument, for sizes, dtypes, tokens and targets that
    do not fit.

    Tokens and targets are one sequence of integers, or a batch: a 2-D array, or a list of
    sequences, which may differ in length and are padded on the right. Targets may be shorter than
    their tokens; the positions left over predict nothing. A target PAD is not counted in the
    loss, and no other position attends to a PAD token: padding on the right changes neither the
    loss nor a gradient.

    `parameters` maps names to arrays, which an optimizer may update in place. Between `forward`
    and the `backward` that belongs to it they must not change.

    >>> model = TinyTransformer(seed=42)
    >>> loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
    >>> print(f"{loss:.4f}, {model.n_parameters} parameters")
    1.8299, 3456 parameters
    """

    def __init__(
        self,
        seed: int = 42,
        dtype: DTypeLike = np.float64,
        *,
        vocab_size: int = 6,
        d_model: int = 16,
        n_heads: int = 2,
        d_ff: int = 64,
        max_length: int = 5,
    ) -> None:
        self.dtype = checked_dtype(dtype)
        self.vocab_size = checked_size("vocab_size", vocab_size)
        self.d_model = checked_size("d_model", d_model)
        self.n_heads = checked_size("n_heads", n_heads)
        self.d_ff = checked_size("d_ff", d_ff)
        self.max_length = checked_size("max_length", max_length)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model is {d_model}, expected a multiple of n_heads = {n_heads}")
        self.parameters = self._draw_parameters(random.Random(seed))
        full = np.full((self.max_length, self.max_length), -np.inf, dtype=self.dtype)
        self._causal_mask = np.triu(full, k=1)  # (max_length, max_length)

    def _draw_parameters(self, generator: random.Random) -> Parameters:
        D, d_ff = self.d_model, self.d_ff
        heads = (self.n_heads, D, D // self.n_heads)
        shapes = {  # in the order of the draws
            "E_token": (self.vocab_size, D),
            "E_pos": (self.max_length, D),
            "W_Q": heads,
            "W_K": heads,
            "W_V": heads,
            "W_O": (D, D),
            "W_1": (d_ff, D),
            "b_1": (d_ff,),
            "W_2": (D, d_ff),
            "b_2": (D,),
            "W_lm": (self.vocab_size, D),
        }
        parameters: Parameters = {}
        for name, shape in shapes.items():
            draws = [generator.gauss(0, INITIAL_STD) for _ in range(math.prod(shape))]
            # Drawn in float64 for either dtype, so that both models start from the same numbers.
            parameters[name] = np.array(draws).astype(self.dtype).reshape(shape)
        parameters["gamma"] = np.ones(D, dtype=self.dtype)
        parameters["beta"] = np.zeros(D, dtype=self.dtype)
        return parameters

    @property
    def n_parameters(self) -> int:
        return sum(parameter.size for parameter in self.parameters.values())

    def logits(self, tokens: Sequences) -> FloatArray:
        """The scores of each next token: (n, V) for one sequence, (B, n, V) for a batch."""
        rows, one_sequence = token_rows(tokens, self.max_length)
        batch = padded("tokens", rows, max(map(len, rows)), self.vocab_size)  # (B, n)
        logits, _ = self._transform(batch)  # (N, V)
        return logits if one_sequence else logits.reshape(*batch.shape, -1)

    def loss(self, tokens: Sequences, targets: Sequences) -> float:
        """The mean cross entropy, in nats, over all counted positions of the batch."""
        return self.forward(tokens, targets)[0]

    def loss_and_gradients(self, tokens: Sequences, targets: Sequences) -> tuple[float, Parameters]:
        """The loss, and its gradient with respect to every parameter, under the same names."""
        loss, cache = self.forward(tokens, targets)
        return loss, self.backward(cache)

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]:
        """The loss, and what `backward` needs."""
        rows, _ = token_rows(tokens, self.max_length)
        labels = target_rows(targets, rows)
        n = max(map(len, rows))
        batch = padded("tokens", rows, n, self.vocab_size)  # (B, n)
        batch_labels = padded("targets", labels, n, self.vocab_size)  # (B, n)
        logits, activations = self._transform(batch)  # (N, V)
        loss, cross_entropy = cross_entropy_forward(logits, batch_labels.ravel())
        return loss, (activations, cross_entropy)

    def _transform(self, tokens: IntArray) -> tuple[FloatArray, Activations]:
        p = self.parameters
        X = embedding_forward(tokens, p["E_token"], p["E_pos"])  # (N, D)
        mask = attention_mask(tokens, self._causal_mask)  # (n, n) or (B, n, n)
        concatenated, attention = attention_forward(X, p["W_Q"], p["W_K"], p["W_V"], mask)
        H = linear_forward(concatenated, p["W_O"])  # (N, D)
        hidden, gelu = gelu_forward(linear_forward(H, p["W_1"]) + p["b_1"])  # (N, d_ff)
        F = linear_forward(hidden, p["W_2"]) + p["b_2"]  # (N, D)
        Y, layernorm = layernorm_forward(H + F, p["gamma"], p["beta"])  # (N, D)
        logits = linear_forward(Y, p["W_lm"])  # (N, V)
        return logits, Activations(
            tokens, X, attention, concatenated, H, gelu, hidden, layernorm, Y
        )

    def backward(self, cache: Cache) -> Parameters:
        """The gradients of the loss, from what `forward` returned beside it."""
        a, cross_entropy = cache
        p = self.parameters
        dlogits = cross_entropy_backward(cross_entropy)  # (N, V)
        dY, dW_lm = linear_backward(dlogits, a.Y, p["W_lm"])  # (N, D)
        dF, dgamma, dbeta = layernorm_backward(dY, p["gamma"], a.layernorm)  # (N, D)
        dhidden, dW_2 = linear_backward(dF, a.hidden, p["W_2"])  # (N, d_ff)
        dgelu = gelu_backward(dhidden, a.gelu)  # (N, d_ff)
        dH, dW_1 = linear_backward(dgelu, a.H, p["W_1"])  # (N, D)
        # H reaches the loss twice: through F and through the sum H + F, whose gradient is dF too.
        dconcatenated, dW_O = linear_backward(dH + dF, a.concatenated, p["W_O"])  # (N, D)
        dX, dW_Q, dW_K, dW_V = attention_backward(dconcatenated, a.X, a.attention)
        dE_token, dE_pos = embedding_backward(dX, a.tokens, p["E_token"], p["E_pos"])
        return {
            "E_token": dE_token,
            "E_pos": dE_pos,
            "W_Q": dW_Q,
            "W_K": dW_K,
            "W_V": dW_V,
            "W_O": dW_O,
            "W_1": dW_1,
            "b_1": dgelu.sum(axis=0),
            "W_2": dW_2,
            "b_2": dF.sum(axis=0),
            "W_lm": dW_lm,
            "gamma": dgamma,
            "beta": dbeta,
        }


# ---------------------------------------------------------------------------- input


def checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    checked = np.dtype(dtype)
    if checked not in (np.float32, np.float64):
        raise TypeError(f"dtype is {checked}, expected float32 or float64")
    return checked


def checked_size(name: str, size: int) -> int:
    try:
        checked = operator.index(size)
    except TypeError:
        raise TypeError(f"{name} is {size!r}, expected an integer") from None
    if checked < 1:
        raise ValueError(f"{name} is {checked}, expected 1 or more")
    return checked


def as_rows(name: str, sequences: Sequences) -> tuple[list[NDArray[Any]], bool]:
    """One integer array for each sequence, and whether there was but one, outside any batch."""
    if isinstance(sequences, list | tuple) and any(hasattr(item, "__len__") for item in sequences):
        rows = [as_integers(f"{name}[{i}]", row) for i, row in enumerate(sequences)]
        for i, row in enumerate(rows):
            if row.ndim != 1:
                raise ValueError(f"{name}[{i}] has {row.ndim} dimensions, expected 1")
        return rows, False
    array = as_integers(name, sequences)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} has {array.ndim} dimensions, expected 1, or 2 for a batch")
    return ([array], True) if array.ndim == 1 else (list(array), False)


def as_integers(name: str, values: Any) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not an array of integers: {error}") from None
    # NumPy makes an empty list an array of float64.
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers")
    return array


def token_rows(tokens: Sequences, max_length: int) -> tuple[list[NDArray[Any]], bool]:
    rows, one_sequence = as_rows("tokens", tokens)
    lengths = [len(row) for row in rows]
    if min(lengths, default=0) == 0:
        raise ValueError(f"tokens has no token in a sequence; the lengths are {lengths}")
    if max(lengths) > max_length:
        raise ValueError(
            f"tokens has a sequence of length {max(lengths)}, expected max_length = {max_length} "
            "or less"
        )
    return rows, one_sequence


def target_rows(targets: Sequences, tokens: list[NDArray[Any]]) -> list[NDArray[Any]]:
    rows, _ = as_rows("targets", targets)
    if len(rows) != len(tokens):
        raise ValueError(f"targets has {len(rows)} sequences, expected {len(tokens)}, as tokens")
    for i, (row, token_row) in enumerate(zip(rows, tokens, strict=True)):
        if len(row) > len(token_row):
            raise ValueError(
                f"targets has {len(row)} positions in sequence {i}, "
                f"expected at most {len(token_row)}, as tokens"
            )
    return rows


def padded(name: str, rows: list[NDArray[Any]], length: int, vocab_size: int) -> IntArray:
    batch = np.full((len(rows), length), PAD, dtype=np.intp)  # (B, n)
    for batch_row, row in zip(batch, rows, strict=True):
        batch_row[: len(row)] = row
    # Seen as unsigned a negative token is a huge one, so that one pass finds both.
    if batch.view(np.uintp).max() >= vocab_size:
        outside = batch[(batch < 0) | (batch >= vocab_size)][0]
        raise ValueError(f"{name} has a token {outside}, expected 0 to {vocab_size - 1}")
    return batch
