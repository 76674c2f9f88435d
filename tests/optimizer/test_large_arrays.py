"""Large arrays of a state lie in huge pages, and narrow ones begin at different offsets."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from arrays import dtype_named

from fused_adamw import AdamW

SIZE = 1 << 25  # glibc maps each array of 32 MiB and more, whatever was freed before
PAGE, LINE = 4096, 64
MIXES = [
    ("float32", {}),
    ("float32", {"amsgrad": True, "ema_decay": 0.5}),
    ("float32", {"state_dtype": "8bit"}),
    ("bfloat16", {"master_weights": True, "ema_decay": 0.5}),
    ("bfloat16", {"master_weights": True, "state_dtype": "float32"}),
]


def assert_placed(arrays):
    """Of arrays, by address, bytes and bytes an element, those of a mebibyte and more: the narrow
    ones begin a cache line or more from one another, as far as the offset in a page goes, and the
    others at one offset."""
    large = [(address, itemsize) for address, nbytes, itemsize in arrays if nbytes >= 1 << 20]
    assert len(large) >= 2
    for a, b in combinations([address for address, itemsize in large if itemsize < 4], 2):
        assert LINE <= (a - b) % PAGE <= PAGE - LINE
    assert len({address % PAGE for address, itemsize in large if itemsize >= 4}) <= 1


@pytest.mark.parametrize(("dtype", "options"), MIXES)
def test_of_numpy(dtype, options):
    param = np.ones((SIZE // 4, 4), dtype_named(dtype), order="F")
    arrays = AdamW(param, **options)._state[0].arrays
    assert_placed((x.ctypes.data, x.nbytes, x.itemsize) for x in arrays.values())
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
    assert_placed((x.data_ptr(), x.nbytes, x.itemsize) for x in arrays)
    assert {x.stride() for x in arrays if x.shape == param.shape} == {param.stride()}
    kept = sum(x.untyped_storage().nbytes() for x in arrays)
    assert opt.state_nbytes <= kept <= 1.001 * opt.state_nbytes


def flags_of_mapping(address):
    """What Linux says of the memory mapping that an address lies in (``man proc``)."""
    lies_in = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            lies_in = start <= address < end
        elif lies_in and name == "VmFlags:":
            return values
    raise AssertionError(f"no mapping has the address {address:#x}")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no transparent huge pages"
)
@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_huge_pages_are_asked_for(package):
    if np.lib.NumpyVersion(np.__version__) < "2.2.0":  # its zeros may be memory of what it asks for
        pytest.skip("NumPy asks for huge pages for zeros from 2.2 on")
    by_numpy = np.zeros(SIZE, np.uint8)
    if "hg" not in flags_of_mapping(by_numpy.ctypes.data + SIZE // 2):
        pytest.skip("NumPy does not ask for huge pages here")
    if package == "numpy":
        opt = AdamW(np.ones(SIZE // 4, np.float32))
        addresses = [x.ctypes.data for x in opt._state[0].arrays.values()]
    else:
        torch = pytest.importorskip("torch")
        from fused_adamw.torch import AdamW as TorchAdamW

        param = torch.nn.Parameter(torch.ones(SIZE // 4))
        param.grad = torch.ones_like(param)
        opt = TorchAdamW([param])
        opt.step()
        state = opt.state[param]
        addresses = [state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()]
    for address in addresses:
        assert "hg" in flags_of_mapping(address + SIZE // 2)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "fused": True}])
@pytest.mark.parametrize("default", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_is_as_of_pytorch(dtype, default, options):
    torch = pytest.importorskip("torch")
    from fused_adamw.torch import AdamW as TorchAdamW

    found = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, default))
    try:
        for cls in (TorchAdamW, torch.optim.AdamW):
            param = torch.nn.Parameter(torch.ones(256, 4096, dtype=getattr(torch, dtype)).t())
            param.grad = torch.ones_like(param)
            opt = cls([param], **options)
            opt.step()
            state = opt.state[param]
            found.append([(name, x.dtype, x.shape, x.stride()) for name, x in state.items()])
    finally:
        torch.set_default_dtype(before)
    assert found[0] == found[1]


@pytest.mark.parametrize(("size", "moved"), [(1 << 10, 0), ((1 << 19) - 1, 0), (1 << 19, 1088)])
def test_narrow_arrays_of_a_mebibyte_and_more_are_moved(size, moved):
    opt = AdamW(np.ones(size, np.float32), state_dtype="bfloat16")
    assert shifts(opt) == [moved, 2 * moved]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_arrays_stay_where_numpy_puts_them(dtype):
    assert shifts(AdamW(np.ones(1 << 20, dtype))) == [0, 0]


def test_of_a_mix_the_narrow_arrays_are_moved():
    params = np.ones(1 << 20, dtype_named("bfloat16"))
    opt = AdamW(params, state_dtype="float32", master_weights=True)
    assert shifts(opt) == [0, 0, 3 * 1088]


def shifts(opt):
    """How many bytes of the memory of each array of the state come before it."""
    arrays = opt._state[0].arrays.values()
    return [0 if x.base is None else x.base.nbytes - x.nbytes for x in arrays]
