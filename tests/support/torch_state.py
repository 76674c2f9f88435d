"""Training with quantized state, for PyTorch."""

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from fused_adamw import AdamW as ForNumPy  # noqa: E402
from fused_adamw.torch import AdamW  # noqa: E402

SHAPES = [(40, 7), (300,), (), (0, 3), (1, 257), (2, 3, 4, 5)]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STATE_DTYPES = ["float32", "bfloat16", "8bit"]


def draw(seed, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in SHAPES]


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(x) for x in draw(0, dtype)]


def set_gradients(params, seed, scale=0.1):
    for p, g in zip(params, draw(seed, params[0].dtype, scale), strict=True):
        p.grad = g


def train(params, opt, steps, first=1):
    for seed in range(first, first + steps):
        set_gradients(params, seed)
        opt.step()


def trained(dtype=torch.float32, steps=3, **options):
    params = parameters(dtype)
    opt = AdamW(params, lr=1e-2, **options)
    train(params, opt, steps)
    return params, opt


def resumed(params, opt, through, **options):
    """The parameters and their optimizer again: both copied or pickled together, or copies of the
    parameters and an optimizer with these options that has loaded a state dict."""
    if through == "deepcopy":
        return copy.deepcopy((params, opt))
    if through == "pickle":
        return pickle.loads(pickle.dumps((params, opt)))
    saved = copy.deepcopy(opt.state_dict())
    if through == "file":
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
    params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    opt = AdamW(params, **options)
    opt.load_state_dict(saved, convert=False)
    return params, opt


def trained_beside_numpy(dtype, **options):
    """Parameters and their optimizer after five steps, in the third of which a parameter has no
    gradient; and the one for NumPy that has taken the same steps, with the same bits."""
    params = parameters(dtype)
    arrays = [as_array(p) for p in params]
    opt, other = AdamW(params, **options), ForNumPy(arrays, **options)
    for step in range(1, 6):
        set_gradients(params, step)
        grads = [as_array(p.grad) for p in params]
        if step == 3:
            params[1].grad = grads[1] = None
        opt.step()
        other.step(grads)
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_array_equal(as_array(p), array)
    return params, opt, other


def as_array(tensor):
    """The same bits in NumPy."""
    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy().copy()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return tensor.view(torch.uint16).numpy().copy().view(ml_dtypes.bfloat16)


def assert_equal_tensors(these, those):
    for a, b in zip(these, those, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def params_and_state(opt):
    """The tensors of parameters and state, in the order of the groups."""
    params = [p for group in opt.param_groups for p in group["params"]]
    return [x for p in params for x in (p.detach(), *opt.state[p].values())]


def by_index(saved):
    """A state dict with numbers in place of names, as optimizers have it."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [
        {**group, "params": [number[name] for name in group["params"]]}
        for group in saved["param_groups"]
    ]
    return {
        "state": {number[name]: state for name, state in saved["state"].items()},
        "param_groups": groups,
    }
