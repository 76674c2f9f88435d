"""Train, save and load in all formats: ``exchange_checkpoints.py save|load FOLDER``.

Prints a line for each checkpoint with the hashes of what is in memory and of the file. Two machines
that agree print the same lines, whichever of them has written the files.
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, read_arrays, save_checkpoint

OPTIONS: list[dict[str, Any]] = [
    {},
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16"},
    {"amsgrad": True, "ema_decay": 0.9},
    {"master_weights": True},
    {"master_weights": True, "state_dtype": "8bit"},
]
SHAPES = {"matrix": (30, 20), "vector": (600,)}


def make_params(options: dict[str, Any], order: Any) -> dict[str, Any]:
    dtype = np.float16 if "master_weights" in options else np.float32
    return {
        name: np.array(np.random.default_rng(i).standard_normal(shape), dtype, order=order)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def train(optimizer: AdamW, params: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    for _ in range(3):
        grads = {k: rng.standard_normal(x.shape).astype(x.dtype) for k, x in params.items()}
        optimizer.step(grads)


def digest(optimizer: AdamW, params: dict[str, Any]) -> str:
    found = sha256()
    state = optimizer.state_dict()["state"]
    for name in sorted(state):
        for role, value in sorted(state[name].items()):
            found.update(f"{name} {role} ".encode())
            found.update(little_endian(value) if hasattr(value, "dtype") else repr(value).encode())
    for name in sorted(params):
        found.update(little_endian(params[name]))
    return found.hexdigest()


def little_endian(array: Any) -> bytes:
    return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())


def main(mode: str, folder: str) -> None:
    for i, options in enumerate(OPTIONS):
        for order in ("C", "F"):
            path = Path(folder, f"{i}{order}.safetensors")
            params = make_params(options, order)
            optimizer = AdamW(params, **options)
            if mode == "save":
                train(optimizer, params)
                save_checkpoint(path, optimizer, arrays={"n": np.arange(5)})
            else:
                load_checkpoint(path, optimizer)
                assert read_arrays(path)["n"].tolist() == list(range(5))
            print(path.name, digest(optimizer, params), sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
