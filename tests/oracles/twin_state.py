"""A step on state in any format in NumPy, from docs/state-formats.md and the comments of
csrc/kernels/formats: the kernels match it bit by bit."""

import math

import numpy as np
from twin import adamw_twin, ema_twin

BLOCK = 256
WEYL = {"v": 0xC13FA9A9, "m": 0x9E3779B9, "params": 0x91E10DA5, "v_max": 0xC13FA9A9}
STRIDE = {"v": 0x9159015A, "m": 0x67332667, "params": 0x8EB44A87, "v_max": 0x9159015A}
ROTATED = {"v": 0, "m": 16, "params": 8, "v_max": 0}
HALF = 1 << 31


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).astype(np.int64)


def floats(bits):
    return np.asarray(bits).astype(np.uint32).view(np.float32)


# ---- random numbers


def hashed(key, index):
    """lowbias32 of key + index."""
    x = (int(key) + np.asarray(index, np.uint64)) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> np.uint64(shift)) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return x ^ x >> np.uint64(16)


def dithers(seed, tensor, size, t):
    """For each role, the dither of each element in step t: 32 bits; None to the nearest."""
    if seed is None:
        return dict.fromkeys(WEYL)
    key = hashed(hashed(hashed(seed, 0), tensor), 0)  # the upper half of every index here is 0
    block, position = np.divmod(np.arange(size), BLOCK)
    random = hashed(key, block).astype(np.int64)
    return {
        role: (
            ((random << by | random >> (32 - by)) + t * WEYL[role] + position * STRIDE[role])
            & 0xFFFFFFFF
        )
        for role, by in ROTATED.items()
    }


# ---- 16 bits


def from_bfloat16(codes):
    return floats(codes.astype(np.int64) << 16)


def to_bfloat16(values, dither, keep_positive=False):
    """Rounded to the nearest, ties to even, without a dither."""
    exact = bits(values)
    if dither is None:
        up = (exact & 0xFFFF) + (exact >> 16 & 1) > 0x8000
    else:
        up = (exact & 0xFFFF) + (dither >> 16) >= 0x10000
    code = np.where(np.isnan(values), exact >> 16 | 0x40, (exact >> 16) + up)
    if keep_positive:
        code = np.where((exact > 0) & (code == 0), 1, code)
    return code.astype(np.uint16)


def join_master(codes, rest):
    """The float32 that a bfloat16 and the 16 bits beyond it are of."""
    exact = from_bfloat16(codes)
    masters = floats(bits(exact) + rest.astype(np.int64))
    return np.where(np.isnan(masters), exact, masters)


def split_master(values):
    """Rounded to the nearest, ties away from zero; and the rest in units of the last place."""
    nan, exact = np.isnan(values), bits(values)
    upper = np.where(nan, exact >> 16 | 0x40, (exact + 0x8000) >> 16)
    return upper.astype(np.uint16), np.where(nan, 0, exact - (upper << 16)).astype(np.int16)


def decode(codes, dtype):
    """Arrays of "float32", "float16" (as they are) or "bfloat16" (as uint16) in float32."""
    return from_bfloat16(codes) if dtype == "bfloat16" else codes.astype(np.float32)


def encode(values, dtype, dither, keep_positive=False):
    if dtype == "bfloat16":
        return to_bfloat16(values, dither, keep_positive)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


# ---- 8 bits


def blocks(size):
    return [slice(i, min(i + BLOCK, size)) for i in range(0, size, BLOCK)]


def roots(codes, v_scale):
    """The s of codes of v in one block."""
    shift, base = int(v_scale) % 32, int(v_scale) // 32 * 32
    codes = np.asarray(codes, np.int64)
    return floats(np.where(codes == 0, 0, base + ((codes - 1) << shift)))


def decode_8bit(state):
    m, v = np.zeros(state["m"].size, np.float32), np.zeros(state["v"].size, np.float32)
    with np.errstate(all="ignore"):
        for b, part in enumerate(blocks(m.size)):
            s, code = roots(state["v"][part], state["v_scale"][b]), state["m"][part]
            v[part] = s * s
            m[part] = state["m_scale"][b] * code.astype(np.float32) * s
    return m, v


def scale_for(s):
    """base and shift of a block with the bits ``s`` of its finite roots above 0."""
    if s.size == 0:
        return 0x1A100000, 20  # all codes are 0
    low, high = int(s.min()), int(s.max())
    for shift in range(5, 21):
        base = low - low % 2**shift
        top = high + -high % 2**shift  # to which the highest may be rounded up
        if top - base <= 253 * 2**shift:
            return base, shift
    return max(base, top - 253 * 2**20), 20


def encode_8bit(m, v, dither):
    state = {
        "m": np.zeros(m.size, np.int8),
        "v": np.zeros(m.size, np.uint8),
        "m_scale": np.zeros(-(-m.size // BLOCK), np.float32),
        "v_scale": np.zeros(-(-m.size // BLOCK), np.uint32),
    }
    with np.errstate(all="ignore"):
        for b, part in enumerate(blocks(m.size)):
            of_v = HALF if dither["v"] is None else dither["v"][part]
            of_m = HALF if dither["m"] is None else dither["m"][part]
            s = np.sqrt(v[part])
            finite = (s > 0) & (s < np.inf)
            base, shift = scale_for(bits(s[finite]))
            above = np.maximum(bits(np.where(finite, s, 0)) - base, 0)
            up = above % 2**shift + (of_v >> (32 - shift)) >= 2**shift
            code = np.where(finite, above // 2**shift + up + 1, 0)
            state["v"][part], state["v_scale"][b] = code, base + shift
            raised = floats(np.maximum(bits(s), base))
            ratio = np.where(finite, m[part] / raised, np.float32(0))
            ratio = np.where(np.isfinite(ratio), ratio, np.float32(0))
            largest = np.abs(ratio).max(initial=np.float32(0))
            if largest < np.float32(2.0**-96):
                largest = np.float32(0)
            top = np.float32(127 * 2**24)
            factor = top / largest if largest > 0 else np.float32(0)
            if largest * factor > top:
                factor = np.nextafter(factor, np.float32(0))
            fine = (ratio * factor).astype(np.int64) + (of_m >> 8)
            state["m"][part] = fine // 2**24
            state["m_scale"][b] = largest / np.float32(127)
    return state


# ---- a tensor


def raw(array):
    """Flat in memory order; bfloat16, which NumPy has not, as uint16."""
    flat = array.ravel(order="K")
    return flat.view(np.uint16) if array.dtype.name == "bfloat16" else flat


class TensorTwin:
    """What one tensor of an optimizer has to be after each step: ``params`` and ``state``, flat, in
    memory order, under the names of ``state_dict``."""

    def __init__(
        self,
        array,
        tensor=0,
        state_dtype=None,
        amsgrad=False,
        master_weights=False,
        seed=0,
        ema_decay=None,
    ):
        self.ema_decay = ema_decay
        self.dtype, self.tensor, self.seed, self.t = array.dtype.name, tensor, seed, 0
        self.params = raw(array).copy()
        narrow = self.dtype in ("float16", "bfloat16")
        own = "float32" if self.dtype == "float16" else self.dtype
        self.kept = state_dtype or own
        size, real = array.size, np.float64 if self.kept == "float64" else np.float32
        zeros = np.zeros(size, real)
        self.state = self.encoded(zeros, zeros, zeros if amsgrad else None, dict.fromkeys(WEYL))
        if self.kept == "8bit":
            self.state["v_scale"][:] = 0  # before the first step
        if narrow and master_weights:
            self.state["master"] = (
                np.zeros(size, np.int16)
                if self.dtype == "bfloat16"
                else decode(self.params, self.dtype)
            )
        if ema_decay is not None:
            wide = self.dtype == "float64"
            self.state["ema"] = (self.params if wide else decode(self.params, self.dtype)).copy()

    def encoded(self, m, v, v_max, dither):
        if self.kept == "8bit":
            return encode_8bit(m, v, dither)
        state = {"m": encode(m, self.kept, dither["m"]), "v": encode(v, self.kept, dither["v"], 1)}
        if v_max is not None:
            state["v_max"] = encode(v_max, self.kept, dither["v_max"], 1)
        return state

    def moments(self):
        """m, v and v_max (or None) as the next step reads them."""
        if self.kept == "8bit":
            return *decode_8bit(self.state), None
        if self.kept == "float64":
            return self.state["m"], self.state["v"], self.state.get("v_max")
        roles = (self.state.get(role) for role in ("m", "v", "v_max"))
        return tuple(None if x is None else decode(x, self.kept) for x in roles)

    def step(self, gradient, scale=1.0, **hyper):
        self.t += 1
        m, v, v_max = self.moments()
        master, ema = self.state.get("master"), self.state.get("ema")
        if self.kept == "float64":
            p, g = self.params, raw(gradient)
        else:
            g = decode(raw(gradient), gradient.dtype.name)
            p = decode(self.params, self.dtype) if master is None else self.master()
        p, m, v, *v_max = adamw_twin(p, g, m, v, self.t, **hyper, scale=scale, v_max=v_max)
        dither = dithers(self.seed, self.tensor, p.size, self.t)
        self.state = self.encoded(m, v, v_max[0] if v_max else None, dither)
        if ema is not None:
            self.state["ema"] = ema_twin(ema, p, self.ema_decay)
        if master is not None and self.dtype == "bfloat16":
            self.params, self.state["master"] = split_master(p)
            return
        if master is not None:
            self.state["master"] = p
        of_params = None if master is not None else dither["params"]
        self.params = p if self.kept == "float64" else encode(p, self.dtype, of_params)

    def master(self):
        """The master weights in float32."""
        stored = self.state["master"]
        return join_master(self.params, stored) if self.dtype == "bfloat16" else stored


def norm_of(gradients):
    """The exact norm, correctly rounded but for the root."""
    wide = [decode(raw(g), g.dtype.name) if g.dtype != np.float64 else raw(g) for g in gradients]
    return math.sqrt(math.fsum(float(x) ** 2 for g in wide for x in g))
