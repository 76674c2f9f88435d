"""State of PyTorch's optimizers in another format, as the twin decodes and encodes it."""

import copy

import numpy as np
import pytest
from torch_state import assert_equal_tensors, parameters, train
from twin_state import decode_8bit, encode_8bit, from_bfloat16, to_bfloat16

torch = pytest.importorskip("torch", minversion="2.10")

FORMATS = [None, "float32", "bfloat16", "8bit"]
NEAREST = {"m": None, "v": None}
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def of_pytorch(dtype=torch.float32, steps=3, **options):
    params = parameters(dtype)
    opt = torch.optim.AdamW(params, lr=1e-2, **options)
    train(params, opt, steps)
    return params, opt


def in_memory_order(tensor, order):
    tensor = tensor.detach().permute(order).reshape(-1)
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def dims_in_memory(tensor):
    return sorted(range(tensor.dim()), key=lambda d: -tensor.stride()[d])


def decoded(entry, order):
    """The moments in float32 (or float64), flat, in an order of the dimensions."""
    if "exp_avg_code" in entry:
        arrays = {role: entry[f"{name}_code"] for role, name in MOMENTS.items()}
        own = dims_in_memory(arrays["m"])
        arrays = {role: in_memory_order(x, own) for role, x in arrays.items()}
        for role, name in MOMENTS.items():
            arrays[f"{role}_scale"] = entry[f"{name}_scale"].numpy()
        arrays["v_scale"] = arrays["v_scale"].view(np.uint32)
        shape = [entry["exp_avg_code"].shape[d] for d in own]
        back = np.argsort(own).astype(int)
        return [
            np.transpose(np.transpose(x.reshape(shape), back), order).ravel()
            for x in decode_8bit(arrays)[:2]
        ]
    return [
        from_bfloat16(flat) if flat.dtype == np.uint16 else flat
        for flat in (in_memory_order(entry[name], order) for name in MOMENTS.values())
    ]


def encoded(m, v, state_dtype):
    """By name, flat."""
    if state_dtype == "8bit":
        arrays = encode_8bit(m, v, NEAREST)
        return {
            "exp_avg_code": arrays["m"],
            "exp_avg_sq_code": arrays["v"],
            "exp_avg_scale": arrays["m_scale"],
            "exp_avg_sq_scale": arrays["v_scale"].view(np.int32),
        }
    if state_dtype == "bfloat16":
        m, v = to_bfloat16(m, None), to_bfloat16(v, None, True)
    return {"exp_avg": m.astype(m.dtype), "exp_avg_sq": v}


def assert_stored(opt, params, entries, state_dtype):
    """The state is that of ``entries``, rounded to the nearest."""
    for p, entry in zip(params, entries, strict=True):
        state, order = opt.state[p], dims_in_memory(p)
        expected = encoded(*decoded(entry, order), state_dtype)
        assert set(expected) <= set(state)
        for name, values in expected.items():
            found = state[name]
            assert found.requires_grad is False
            if not name.endswith("_scale"):
                assert (found.shape, found.stride()) == (p.shape, p.stride())
            flat = found.numpy() if name.endswith("_scale") else in_memory_order(found, order)
            np.testing.assert_array_equal(flat, values, strict=True)
        assert state["step"] == entry["step"]


def contents(opt):
    return copy.deepcopy(opt.state_dict())


def assert_unchanged(opt, before):
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for i, entry in before["state"].items():
        assert list(after["state"][i]) == list(entry)
        assert_equal_tensors(after["state"][i].values(), entry.values())
