"""Steps of ranges of PyTorch's tensors, and the norm of gradients in ranges."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw import AdamW  # noqa: E402
from fused_adamw._core import CHUNK, PreparedStep, norm_of_chunks, sums_of_squares  # noqa: E402
from fused_adamw._torch.dispatch import EXCHANGE  # noqa: E402
from fused_adamw._torch.state import GroupTensors  # noqa: E402

HYPER = (1e-2, (0.9, 0.999), 1e-8, 0.01, (None, None))
SIZE = 3 * CHUNK + 5


def draw(seed):
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def prepared(tensors, **options):
    return PreparedStep(EXCHANGE, tensors, hyper=HYPER, maximize=False, num_threads=1, **options)


@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_ranges_have_the_random_numbers_of_the_whole(clip):
    p, g = draw(0), draw(1)
    other = AdamW([p.copy()], lr=1e-2, state_dtype="bfloat16")
    other.step([g * np.float32(clip)])  # exact: a power of two
    moments = [torch.zeros(SIZE, dtype=torch.bfloat16) for _ in "mv"]
    bounds = [(2 * CHUNK, SIZE), (0, CHUNK), (CHUNK, 2 * CHUNK)]
    cut = lambda x: [torch.as_tensor(x)[begin:end] for begin, end in bounds]  # noqa: E731
    state = {role: cut(x) for role, x in zip("mv", moments, strict=True)}
    tensors = GroupTensors(cut(p), cut(g), [torch.tensor(0.0) for _ in bounds], state)
    offsets = [begin for begin, _ in bounds]
    options = {"state_format": "bfloat16", "param_indices": [0] * 3, "seed": 0}
    prepared(tensors, element_offsets=offsets, clip=clip, **options).step()
    (saved,) = other.state_dict()["state"].values()
    for role, x in zip("mv", moments, strict=True):
        np.testing.assert_array_equal(x.view(torch.int16).numpy(), saved[role].view(np.int16))


@pytest.mark.parametrize("offsets", [[1], [-256], [0, 256]])
def test_offsets_that_are_refused(offsets):
    zeros = [torch.zeros(256)]
    state = {"m": [torch.zeros(256)], "v": [torch.zeros(256)]}
    tensors = GroupTensors(zeros, [torch.ones(256)], [torch.tensor(0.0)], state)
    with pytest.raises(ValueError, match="element_offsets must"):
        prepared(tensors, element_offsets=offsets)
    assert not zeros[0].any()


def test_sums_of_squares():
    grads = [draw(0), draw(1)[: CHUNK + 1]]
    sums = sums_of_squares(EXCHANGE, [torch.from_numpy(g) for g in grads], 2)
    assert sums.shape == (4 + 2,)
    params = [np.zeros_like(g) for g in grads]
    assert norm_of_chunks(sums, 1.0) == AdamW(params, max_grad_norm=1.0).step(grads)
    for bad in (torch.zeros(4, 4)[:, ::2], torch.zeros(2, device="meta"), np.zeros(3)):
        with pytest.raises(TypeError, match=r"grads\[0\] must be dense"):
            sums_of_squares(EXCHANGE, [bad], 1)
