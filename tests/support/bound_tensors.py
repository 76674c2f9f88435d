"""Tensors as the extension binds them, and what it steps them by."""

from types import SimpleNamespace

import numpy as np

from fused_adamw._core import BoundTensors, TreeSpec

HYPER = (1e-3, (0.9, 0.999), 1e-8, 0.01, (None, None))
MOMENTS = {"m": np.zeros(300, np.float32), "v": np.zeros(300, np.float32)}


def state_of(size, format_="float32", **arrays):
    dtypes = {"float32": np.float32, "8bit": np.int8, "bfloat16": np.uint16}
    moments = {role: np.zeros(size, dtypes[format_]) for role in ("m", "v")}
    return SimpleNamespace(format=format_, arrays=moments | arrays)


def bound(sizes=(300, 300), cls=BoundTensors, **arguments):
    params = [np.ones(size, np.float32) for size in sizes]
    arguments = {"state": [state_of(size) for size in sizes]} | arguments
    return cls(TreeSpec(params), params, arguments.pop("state"), **arguments)


def grads(count=2, size=300):
    return [np.ones(size, np.float32) for _ in range(count)]
