"""The forward pass on "I like transformers", from tokens to the loss."""

import math
from dataclasses import dataclass

import numpy as np

from ..tiny.layers import LAYERNORM_EPS, FloatArray, attention_scores
from ..tiny.model import TARGETS, TOKENS, VOCABULARY, TinyTransformer

FOLLOWED = 2  # the position of "like": it attends to three tokens, itself included


@dataclass(frozen=True)
class Forward:
    """The section: the activations of all positions, in the order in which they are computed.

    Shapes: n positions, D = 16 values each, heads of d_head = 8 values, d_ff = 64, V tokens in the
    vocabulary. Those after `vocabulary` are of one sequence, without an axis for the batch.
    """

    vocabulary: list[str]
    tokens: list[int]  # (n,)
    targets: list[int]  # (n - 1,): the last position predicts nothing
    followed: int  # the position whose numbers the text follows
    E_token: FloatArray  # (n, D), the rows of the tokens
    E_pos: FloatArray  # (n, D)
    X: FloatArray  # (n, D)
    Q: FloatArray  # (heads, n, d_head)
    K: FloatArray  # (heads, n, d_head)
    V: FloatArray  # (heads, n, d_head)
    scores: FloatArray  # (heads, n, n), -inf where a later position is masked
    attention: FloatArray  # (heads, n, n), the softmax of each row
    heads: FloatArray  # (heads, n, d_head)
    concatenated: FloatArray  # (n, D)
    H: FloatArray  # (n, D)
    before_gelu: FloatArray  # (n, d_ff)
    after_gelu: FloatArray  # (n, d_ff)
    F: FloatArray  # (n, D)
    mean: FloatArray  # (n,), of H + F
    variance: FloatArray  # (n,)
    normalized: FloatArray  # (n, D)
    Y: FloatArray  # (n, D)
    logits: FloatArray  # (n, V)
    P: FloatArray  # (n, V), the softmax of each row
    target_probabilities: list[float]  # (n - 1,)
    losses: list[float]  # (n - 1,)
    loss: float
    perplexity: float
    chance: float  # the loss of guessing


def explain_forward() -> Forward:
    """Compute the section with a forward pass of the model."""
    model = TinyTransformer()
    p = model.parameters
    loss, (a, (log_P, _, _)) = model.forward(TOKENS, TARGETS)
    n, n_heads = len(TOKENS), model.n_heads
    Q, K, V, attention = (
        x[:, 0] for x in (a.attention.Q, a.attention.K, a.attention.V, a.attention.P)
    )
    losses = [-float(log_P[i, target]) for i, target in enumerate(TARGETS)]
    return Forward(
        vocabulary=list(VOCABULARY),
        tokens=list(TOKENS),
        targets=list(TARGETS),
        followed=FOLLOWED,
        E_token=p["E_token"][list(TOKENS)],
        E_pos=p["E_pos"][:n],
        X=a.X,
        Q=Q,
        K=K,
        V=V,
        scores=attention_scores(Q, K, model.causal_mask(n)),
        attention=attention,
        heads=a.concatenated.reshape(n, n_heads, -1).swapaxes(0, 1),
        concatenated=a.concatenated,
        H=a.H,
        before_gelu=a.gelu.X,
        after_gelu=a.hidden,
        F=a.F,
        mean=(a.H + a.F).mean(axis=-1),
        variance=1 / a.layernorm.inverse_std[:, 0] ** 2 - LAYERNORM_EPS,
        normalized=a.layernorm.normalized,
        Y=a.Y,
        logits=model.logits(TOKENS),
        P=np.exp(log_P),
        target_probabilities=[math.exp(-position_loss) for position_loss in losses],
        losses=losses,
        loss=loss,
        perplexity=math.exp(loss),
        chance=math.log(len(VOCABULARY)),
    )
