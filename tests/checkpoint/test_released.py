"""The bits of released versions: files that no test writes, with the inputs that they came from.

Kernels and their twin in NumPy are compared with each other; this finds what changes both.
"""

import json

import numpy as np
import pytest
from arrays import dtype_named
from checkpoints import contents
from released import CASES, FOLDER, SHAPES, steps

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint

FILES = sorted(FOLDER.glob("*/*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def file(request):
    return request.param


class Content:
    """What is in a file, read without the package."""

    def __init__(self, path):
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        self.made_from = json.loads(header.pop("__metadata__")["extra"])
        self.dtype = dtype_named(self.made_from["dtype"])
        data = data[begin:]
        self.tensors = {name: data[slice(*row["data_offsets"])] for name, row in header.items()}

    def given(self, kind):
        return {
            name: np.frombuffer(self.tensors[f"extra/{kind}.{name}"], self.dtype)
            .reshape(shape)
            .copy()
            for name, shape in SHAPES.items()
        }

    def results(self):
        return {name: x for name, x in self.tensors.items() if not name.startswith("extra/")}


def stored(optimizer):
    """What a checkpoint has to contain of an optimizer."""
    found = {f"params/{name}": p for name, p in optimizer.param_groups[0]["params"].items()}
    for name, entry in optimizer.state_dict()["state"].items():
        roles = entry.items()
        found |= {f"{role}/{name}": x for role, x in roles if isinstance(x, np.ndarray)}
    return {name: np.ascontiguousarray(x).tobytes() for name, x in found.items()}


def test_every_format_is_there():
    assert {path.stem for path in FOLDER.glob("0.1.0/*")} == CASES.keys()


def test_the_same_steps_give_the_same_bits(file, isa):
    content = Content(file)
    options = content.made_from["options"]
    optimizer = steps(content.given("start"), content.given("gradient"), options)
    assert stored(optimizer) == content.results()


def test_it_can_be_loaded(file):
    content = Content(file)
    optimizer = AdamW(content.given("start"), **content.made_from["options"])
    assert load_checkpoint(file, optimizer) == content.made_from
    assert stored(optimizer) == content.results()
    again = steps(content.given("start"), content.given("gradient"), content.made_from["options"])
    assert contents(optimizer) == contents(again)
