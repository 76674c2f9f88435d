"""What the tests of stored state share: parameters of all dtypes, twins, trained optimizers."""

import hashlib
from contextlib import contextmanager

import numpy as np
from arrays import FORCED, dtype_named
from twin_state import TensorTwin, decode_8bit, from_bfloat16, raw

from fused_adamw import AdamW, _core

HYPER = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}
OTHER = {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.5}
SIZES = [(), (1,), (2,), (255,), (256,), (257,), (0,), (511,), (0, 3), (513,), (30, 17)]
LOW_PRECISION = [
    (dtype, state_dtype)
    for dtype in ("float32", "float16", "bfloat16")
    for state_dtype in (None, "float32", "bfloat16", "8bit")
    if (dtype, state_dtype) not in (("float32", None), ("float32", "float32"))
]


def draw(shapes, dtype, seed=0, scale=1.0):
    """Of magnitudes that differ by some decades, as gradients do."""
    rng = np.random.default_rng(seed)
    return [
        np.array(rng.standard_normal(n) * 10 ** rng.uniform(-3, 0, n) * scale, dtype)
        for n in shapes
    ]


def state_of(opt):
    return list(opt.state_dict()["state"].values())


def arrays_of(opt):
    groups = [group["params"] for group in opt.param_groups]
    values = [list(x.values()) if isinstance(x, dict) else x for x in groups]
    return [a for x in values for a in (x if isinstance(x, list) else [x])]


def contents(opt):
    """Everything that an error, or a skipped step, must leave alone, to the bit."""
    state = opt.state_dict()
    entries = [
        [(role, x.tobytes() if isinstance(x, np.ndarray) else x) for role, x in entry.items()]
        for entry in state.pop("state").values()
    ]
    return entries, repr(state), [array.tobytes() for array in arrays_of(opt)]


def digest(opt):
    return hashlib.sha256(repr(contents(opt)).encode()).hexdigest()


def twins_of(arrays, **options):
    return [TensorTwin(array, i, **options) for i, array in enumerate(arrays)]


def assert_twins(opt, twins):
    for array, entry, twin in zip(arrays_of(opt), state_of(opt), twins, strict=True):
        assert entry["step"] == twin.t
        np.testing.assert_array_equal(raw(array), twin.params, strict=True)
        assert set(entry) - {"step", "order"} == set(twin.state)
        for role, values in twin.state.items():
            kept = entry[role] if "order" in entry else raw(entry[role])
            np.testing.assert_array_equal(kept, values, role, strict=True)


@contextmanager
def forced_isa(name):
    """Steps within this block use an instruction set."""
    _core._force_isa(name)
    try:
        yield
    finally:
        _core._force_isa(FORCED)


# ---- trained optimizers

MODEL = [(7, 90), (300,), (), (0, 3)]


def trained(dtype="float32", order="C", steps=3, shapes=MODEL, **options):
    dtype = dtype_named(dtype)
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype)]
    opt = AdamW(params, **HYPER, **options)
    train(opt, range(steps))
    return opt


def params_of(opt):
    return opt.param_groups[0]["params"]


def train(opt, steps):
    params = params_of(opt)
    for t in steps:
        opt.step(draw([p.shape for p in params], params[0].dtype, seed=t))


def overwrite(opt, other):
    """With the parameters of another one."""
    for array, values in zip(params_of(opt), params_of(other), strict=True):
        array[...] = values


def moments(opt):
    """m, v of each tensor in C order, decoded by the twin."""
    found = []
    for p, entry in zip(params_of(opt), state_of(opt), strict=True):
        kept = entry["m"].dtype, entry["v"].dtype
        if "m_scale" in entry:
            values = decode_8bit(entry)
        elif kept == (np.uint16, np.uint16):
            values = [from_bfloat16(entry[role]) for role in ("m", "v")]
        else:
            values = [raw(entry[role]) for role in ("m", "v")]
        order = "C" if p.flags.c_contiguous else "F"
        found.append([x.reshape(p.shape, order=order) for x in values])
    return found


# ---- steps that store a gradient as it is

STILL = {"lr": 0.0, "weight_decay": 0.0}
CARRIED = STILL | {"betas": (0.0, 0.0)}  # m becomes the gradient, v its square


def stored(opt):
    """The state of an optimizer over one array."""
    return opt.state_dict()["state"]["params"]


# ---- conversion

STATE_DTYPES = [None, "float32", "bfloat16", "8bit"]


def loads_unconverted(dtype, before, after, orders):
    """Whether a state loads as it is: float32 parameters' own moments do from any memory order."""
    own = "bfloat16" if dtype == "bfloat16" else "float32"
    same_order = orders[0] == orders[1] or (dtype, before or own) == ("float32", "float32")
    return (before or own) == (after or own) and same_order
