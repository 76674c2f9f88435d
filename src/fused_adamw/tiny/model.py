"""A transformer block that predicts the next token, on the layers of `layers.py`.

    tokens -> embedding -> attention -> linear -> H -> linear, gelu, linear -> F
    layernorm(H + F) -> linear -> logits -> cross entropy -> loss

The letters in the shapes are explained in `layers.py`.
"""

import math
import random
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .._core import as_integer, shown
from .layers import (
    AttentionCache,
    AttentionGradients,
    CrossEntropyCache,
    FloatArray,
    GeluCache,
    IntArray,
    LayernormCache,
    attention_backward,
    attention_forward,
    attention_mask,
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
)
from .token_input import Sequences, check_dtype, pad, target_rows, token_rows

Parameters: TypeAlias = dict[str, FloatArray]

VOCABULARY = ("<PAD>", "<BOS>", "<EOS>", "I", "like", "transformers")

# "I like transformers": every token is trained to predict the one after it.
TOKENS = (1, 3, 4, 5, 2)
TARGETS = (3, 4, 5, 2)

INITIAL_STD = 0.1


class Activations(NamedTuple):
    """What the forward pass has computed, layer by layer."""

    tokens: IntArray  # (B, n)
    X: FloatArray  # (N, D), the embedded tokens
    attention: AttentionCache
    concatenated: FloatArray  # (N, D), the heads side by side
    H: FloatArray  # (N, D)
    gelu: GeluCache
    hidden: FloatArray  # (N, d_ff)
    F: FloatArray  # (N, D)
    layernorm: LayernormCache
    Y: FloatArray  # (N, D)


Cache: TypeAlias = tuple[Activations, CrossEntropyCache]


class ActivationGradients(NamedTuple):
    """Gradients of the loss with respect to the activations, in the order of the backward pass."""

    dlogits: FloatArray  # (N, V)
    dY: FloatArray  # (N, D)
    dF: FloatArray  # (N, D); H + F passes it on to both
    dhidden: FloatArray  # (N, d_ff)
    dgelu: FloatArray  # (N, d_ff), with respect to what GELU is applied to
    dH: FloatArray  # (N, D), through F and through the sum H + F
    dconcatenated: FloatArray  # (N, D)
    attention: AttentionGradients


class TinyTransformer:
    """One transformer block that predicts the next token.

    Attention of Vaswani et al. 2017 (arXiv:1706.03762), causal; GELU in its tanh form, Hendrycks
    & Gimpel 2016 (arXiv:1606.08415); layer normalization of Ba et al. 2016 (arXiv:1607.06450).

    Tokens and targets are one sequence of integers, or a batch: a 2-D array, or a list of
    sequences, which may differ in length and are padded on the right. Targets may be shorter than
    their tokens; the remaining positions predict nothing. A target PAD is not counted in the
    loss, and no other position attends to a PAD token: padding on the right changes neither the
    loss nor a gradient.

    Args:
        seed: 0 or more, the seed of the draws from N(0, 0.1^2), in the order of `parameters`.
        dtype: float32 or float64, for parameters, activations and gradients.
        vocab_size: number of tokens in the vocabulary, PAD included.
        d_model: width of the model; a multiple of n_heads.
        n_heads: number of attention heads.
        d_ff: width of the feed-forward layer.
        max_length: length of the longest sequence.

    Attributes:
        parameters: the arrays by name. An optimizer may update them in place, but not between
            `forward` and the `backward` that belongs to it.

    Raises:
        TypeError, ValueError: a size, dtype, token or target is invalid; the message names the
            argument.

    >>> model = TinyTransformer(seed=42)
    >>> loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
    >>> print(f"{loss:.4f}, {model.n_parameters} parameters")
    1.8299, 3456 parameters
    """

    has_whole_gradients = True  # unlike those of a rank that takes a part of a batch

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
        self.dtype = check_dtype(dtype)
        self.vocab_size = as_integer("vocab_size", vocab_size, minimum=1)
        self.d_model = as_integer("d_model", d_model, minimum=1)
        self.n_heads = as_integer("n_heads", n_heads, minimum=1)
        self.d_ff = as_integer("d_ff", d_ff, minimum=1)
        self.max_length = as_integer("max_length", max_length, minimum=1)
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model must be a multiple of the number of heads ({shown(self.n_heads)}); got "
                f"{shown(self.d_model)}"
            )
        seed = as_integer("seed", seed, minimum=0)
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
            size = math.prod(shape)
            # Drawn in float64 for either dtype, so that both start from the same numbers.
            draws = np.fromiter((generator.gauss(0, INITIAL_STD) for _ in range(size)), float, size)
            parameters[name] = draws.astype(self.dtype).reshape(shape)
        parameters["gamma"] = np.ones(D, dtype=self.dtype)
        parameters["beta"] = np.zeros(D, dtype=self.dtype)
        return parameters

    @property
    def n_parameters(self) -> int:
        """The number of parameters."""
        return sum(parameter.size for parameter in self.parameters.values())

    def causal_mask(self, n: int) -> FloatArray:
        """Return what is added to the (n, n) scores: -inf where a key comes after the query.

        `n` is at most `max_length`.
        """
        n = as_integer("n", n, minimum=1)
        if n > self.max_length:
            raise ValueError(f"n must be at most max_length ({self.max_length}); got {shown(n)}")
        return self._causal_mask[:n, :n]

    def logits(self, tokens: Sequences) -> FloatArray:
        """Return the scores of the next token: (n, V) for one sequence, (B, n, V) for a batch.

        Raises:
            TypeError, ValueError: as the class says; the same holds for the methods below.
        """
        rows, one_sequence = token_rows(tokens, self.max_length)
        batch = pad("tokens", rows, max(map(len, rows)), self.vocab_size)  # (B, n)
        logits, _ = self._transform(batch)  # (N, V)
        return logits if one_sequence else logits.reshape(*batch.shape, -1)

    def loss(self, tokens: Sequences, targets: Sequences) -> float:
        """Return the mean cross entropy, in nats, over all counted positions of the batch."""
        return self.forward(tokens, targets)[0]

    def loss_and_gradients(self, tokens: Sequences, targets: Sequences) -> tuple[float, Parameters]:
        """Return the loss, and its gradient with respect to every parameter by name.

        Each gradient is a new array with the shape and dtype of its parameter.
        """
        loss, cache = self.forward(tokens, targets)
        return loss, self.backward(cache)

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]:
        """Return the loss, and what `backward` needs."""
        rows, _ = token_rows(tokens, self.max_length)
        labels = target_rows(targets, rows)
        n = max(map(len, rows))
        batch = pad("tokens", rows, n, self.vocab_size)  # (B, n)
        batch_labels = pad("targets", labels, n, self.vocab_size)  # (B, n)
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
            tokens, X, attention, concatenated, H, gelu, hidden, F, layernorm, Y
        )

    def backward(self, cache: Cache) -> Parameters:
        """Return the gradients of the loss by parameter name, from the cache of `forward`."""
        return self.backward_through_layers(cache)[0]

    def backward_through_layers(self, cache: Cache) -> tuple[Parameters, ActivationGradients]:
        """Return what `backward` returns, and the gradients on the way there."""
        a, cross_entropy = cache
        p = self.parameters
        dlogits = cross_entropy_backward(cross_entropy)  # (N, V)
        dY, dW_lm = linear_backward(dlogits, a.Y, p["W_lm"])  # (N, D)
        dF, dgamma, dbeta = layernorm_backward(dY, p["gamma"], a.layernorm)  # (N, D)
        dhidden, dW_2 = linear_backward(dF, a.hidden, p["W_2"])  # (N, d_ff)
        dgelu = gelu_backward(dhidden, a.gelu)  # (N, d_ff)
        dH_through_F, dW_1 = linear_backward(dgelu, a.H, p["W_1"])  # (N, D)
        # H reaches the loss twice: through F and through the sum H + F, whose gradient is dF too.
        dH = dH_through_F + dF  # (N, D)
        dconcatenated, dW_O = linear_backward(dH, a.concatenated, p["W_O"])  # (N, D)
        attention = attention_backward(dconcatenated, a.X, a.attention)
        dE_token, dE_pos = embedding_backward(attention.dX, a.tokens, p["E_token"], p["E_pos"])
        grads = {
            "E_token": dE_token,
            "E_pos": dE_pos,
            "W_Q": attention.dW_Q,
            "W_K": attention.dW_K,
            "W_V": attention.dW_V,
            "W_O": dW_O,
            "W_1": dW_1,
            "b_1": dgelu.sum(axis=0),
            "W_2": dW_2,
            "b_2": dF.sum(axis=0),
            "W_lm": dW_lm,
            "gamma": dgamma,
            "beta": dbeta,
        }
        return grads, ActivationGradients(
            dlogits, dY, dF, dhidden, dgelu, dH, dconcatenated, attention
        )
