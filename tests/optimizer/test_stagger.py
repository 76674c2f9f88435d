"""Large arrays of a tensor's state begin at different offsets in a page."""

from itertools import combinations

import numpy as np
import pytest
from arrays import dtype_named

from fused_adamw import AdamW

SIZE = 1 << 25  # glibc maps each array of 32 MiB and more, whatever was freed before
PAGE, LINE = 4096, 64
MIXES = [
    ("float32", {"amsgrad": True, "ema_decay": 0.5}),
    ("float32", {"state_dtype": "8bit"}),
    ("bfloat16", {"master_weights": True, "ema_decay": 0.5}),
    ("bfloat16", {"master_weights": True, "state_dtype": "float32"}),
]


def assert_apart(addresses):
    """Each a cache line or more from the others, as far as the offset in a page goes."""
    assert len(addresses) >= 2
    for a, b in combinations(addresses, 2):
        assert LINE <= (a - b) % PAGE <= PAGE - LINE


def large(sizes):
    """The addresses of those of a mebibyte and more."""
    return [address for address, nbytes in sizes if nbytes >= 1 << 20]


@pytest.mark.parametrize(("dtype", "options"), MIXES)
def test_of_numpy(dtype, options):
    param = np.ones((SIZE // 4, 4), dtype_named(dtype), order="F")
    arrays = AdamW(param, **options)._state[0].arrays
    assert_apart(large((x.ctypes.data, x.nbytes) for x in arrays.values()))
    assert all(x.flags.f_contiguous for x in arrays.values())


@pytest.mark.parametrize(("dtype", "options"), MIXES)
def test_of_torch(dtype, options):
    torch = pytest.importorskip("torch")
    from fused_adamw.torch import AdamW as TorchAdamW

    values = torch.ones(4, SIZE // 4, dtype=getattr(torch, dtype)).t()
    param = torch.nn.Parameter(values)
    param.grad = torch.ones_like(values)
    opt = TorchAdamW([param], **options)
    opt.step()
    arrays = [x for name, x in opt.state[param].items() if name != "step"]
    assert_apart(large((x.data_ptr(), x.nbytes) for x in arrays))
    assert {x.stride() for x in arrays if x.shape == param.shape} == {param.stride()}
    kept = sum(x.untyped_storage().nbytes() for x in arrays)
    assert opt.state_nbytes <= kept <= 1.001 * opt.state_nbytes


def test_small_arrays_take_no_more_than_their_elements():
    opt = AdamW(np.ones(1 << 10, np.float32))
    for array in opt._state[0].arrays.values():
        base = array if array.base is None else array.base
        assert base.nbytes == array.nbytes
