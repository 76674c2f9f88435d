"""Steps of ranges of PyTorch's tensors, and the norm of gradients in ranges."""

from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw import AdamW  # noqa: E402
from fused_adamw._core import CHUNK, norm_of_chunks, step_pieces, sums_of_squares  # noqa: E402
from fused_adamw._offload.stepper import Pieces  # noqa: E402
from fused_adamw._torch.dispatch import EXCHANGE  # noqa: E402
from fused_adamw._torch.state import Kind  # noqa: E402

SIZE = 3 * CHUNK + 5


def draw(seed):
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


class Recipe(NamedTuple):
    kind: Kind = Kind("bfloat16", ())
    hyper: tuple = (1e-2, (0.9, 0.999), 1e-8, 0.01, (None, None))
    maximize: bool = False
    seed: int | None = 0
    grad_scale: float = 1.0
    num_threads: int = 1


def pieces_of(p, g, moments, bounds):
    def cut(x):
        return [torch.as_tensor(x)[begin:end] for begin, end in bounds]

    state = {role: cut(x) for role, x in zip("mv", moments, strict=True)}
    zeros, offsets = [0] * len(bounds), [begin for begin, _ in bounds]
    return Pieces(cut(p), cut(g), zeros, zeros, offsets, state, zeros)


@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_ranges_have_the_random_numbers_of_the_whole(clip):
    p, g = draw(0), draw(1)
    other = AdamW([p.copy()], lr=1e-2, state_dtype="bfloat16")
    other.step([g * np.float32(clip)])  # exact: a power of two
    moments = [torch.zeros(SIZE, dtype=torch.bfloat16) for _ in "mv"]
    bounds = [(2 * CHUNK, SIZE), (0, CHUNK), (CHUNK, 2 * CHUNK)]
    pieces = pieces_of(p, g, moments, bounds)
    assert step_pieces(EXCHANGE, pieces, Recipe(), clip, False)
    assert not moments[0].any()
    assert step_pieces(EXCHANGE, pieces, Recipe(), clip)
    (saved,) = other.state_dict()["state"].values()
    for role, x in zip("mv", moments, strict=True):
        np.testing.assert_array_equal(x.view(torch.int16).numpy(), saved[role].view(np.int16))


def test_what_is_refused():
    moments = [torch.zeros(512, dtype=torch.bfloat16) for _ in "mv"]
    p, g = torch.zeros(512), torch.ones(512)
    good = pieces_of(p, g, moments, [(0, 256), (256, 512)])
    for offsets in ([1, 0], [-256, 0], [0], [0, 0, 0]):
        with pytest.raises(ValueError, match="offsets must"):
            step_pieces(EXCHANGE, good._replace(offsets=offsets), Recipe())
    with pytest.raises(ValueError, match="lr must"):
        step_pieces(EXCHANGE, good, Recipe(hyper=(-1.0, *Recipe().hyper[1:])))
    gaps = torch.zeros(512, 2)[:, 0]
    for bad in (
        good._replace(params=[p[:256], p[:255]]),
        good._replace(params=[p[:256], gaps[:256]]),
        good._replace(grads=[g[:256], g[:256].double()]),
        good._replace(state=good.state | {"m": [x.float() for x in good.state["m"]]}),
        good._replace(params=[p[:256], torch.zeros(256, device="meta")]),
    ):
        assert step_pieces(EXCHANGE, bad, Recipe()) is False
    assert not p.any()
    assert not moments[0].any()


def test_sums_of_squares():
    grads = [draw(0), draw(1)[: CHUNK + 1]]
    sums = sums_of_squares(EXCHANGE, [torch.from_numpy(g) for g in grads], 2)
    assert sums.shape == (4 + 2,)
    params = [np.zeros_like(g) for g in grads]
    assert norm_of_chunks(sums, 1.0) == AdamW(params, max_grad_norm=1.0).step(grads)
    for bad in (torch.zeros(4, 4)[:, ::2], torch.zeros(2, device="meta"), np.zeros(3)):
        must = r"^grads\[0\] must be flat and on the CPU; got "
        with pytest.raises(TypeError, match=f"{must}{type(bad).__name__}$"):
            sums_of_squares(EXCHANGE, [bad], 1)
