"""Files are little-endian, whatever the byte order of the machine that writes or reads them.

Where elements pass between memory and a file, the code is made to take memory for memory of the
other byte order. It then writes the bytes of each element in the opposite order, and reads so.
"""

import sys

import numpy as np
import pytest
from checkpoints import contents, draw, header_and_data, trained

from fused_adamw import AdamW
from fused_adamw._io import safetensors_stream
from fused_adamw.checkpoint import load_checkpoint, read_arrays, save_checkpoint

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "F16": 2, "BF16": 2}
ARRAYS = {"losses": draw(7, np.float64), "flags": np.array([True, False]), "n": np.arange(3)}
OPTIONS = {
    "plain": {},
    "8bit": {"state_dtype": "8bit"},
    "bfloat16": {"state_dtype": "bfloat16"},
    "all": {"amsgrad": True, "ema_decay": 0.9},
    "masters": {"master_weights": True},
    "masters, 8bit": {"master_weights": True, "state_dtype": "8bit"},
}


def params(options, order="C"):
    dtype = np.float16 if "master_weights" in options else np.float32
    return {
        "matrix": np.array(draw((30, 20), dtype, 1), order=order),
        "vector": draw(600, dtype, 2),
        "scalar": draw((), dtype, 3),
    }


@pytest.fixture
def other_order(monkeypatch):
    """Makes the code take memory for memory of the other byte order, as long as it is called so."""

    def switch(on=True):
        monkeypatch.setattr(
            safetensors_stream, "IN_MEMORY_ORDER", (sys.byteorder == "little") != on
        )

    return switch


def swapped(path):
    """The data of a file with the bytes of every element in the other order."""
    header, data = header_and_data(path)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            size = ITEM_BYTES.get(entry["dtype"], 1)
            items = [data[at : at + size][::-1] for at in range(begin, end, size)]
            found[name] = b"".join(items)
    return found


def tensors_of(path):
    header, data = header_and_data(path)
    return {
        name: data[slice(*entry["data_offsets"])]
        for name, entry in header.items()
        if name != "__metadata__"
    }


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_element_is_written_in_the_order_of_files(tmp_path, other_order, options, order):
    """What the other machine writes of the same bytes in memory is each element swapped."""
    optimizer = trained(params(options, order), **options)
    own, other = tmp_path / "own", tmp_path / "other"
    save_checkpoint(own, optimizer, arrays=ARRAYS)
    before = contents(optimizer)
    other_order()
    save_checkpoint(other, optimizer, arrays=ARRAYS)
    assert contents(optimizer) == before
    assert tensors_of(other) == swapped(own) != tensors_of(own)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_element_is_read_in_the_order_of_files(path, other_order, options, order):
    optimizer = trained(params(options, order), **options)
    other_order()
    save_checkpoint(path, optimizer, extra={"a": 1}, arrays=ARRAYS)
    loaded = AdamW(params(options, order), **options)
    assert load_checkpoint(path, loaded) == {"a": 1}
    assert contents(loaded) == contents(optimizer)
    for name, array in read_arrays(path).items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)


@pytest.mark.parametrize(("saved", "own"), [("C", "C"), ("C", "F"), ("F", "C")])
@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16"])
def test_conversion_reads_in_the_order_of_files(path, other_order, state_dtype, saved, own):
    optimizer = trained(params({}, saved), state_dtype=state_dtype)
    loaded, other = AdamW(params({}, own)), AdamW(params({}, own))
    save_checkpoint(path, optimizer)
    with pytest.warns(UserWarning, match="was converted"):
        load_checkpoint(path, other)
    other_order()
    save_checkpoint(path, optimizer)
    with pytest.warns(UserWarning, match="was converted"):
        load_checkpoint(path, loaded)
    assert contents(loaded) == contents(other)


def test_a_file_of_the_other_order_with_its_own_checksums_reads_as_other_numbers(path, other_order):
    """The bytes of a file have one meaning; nothing is guessed from their values."""
    optimizer = trained({"w": np.arange(1, 4, dtype=np.float32)}, steps=1)
    other_order()
    save_checkpoint(path, optimizer)
    other_order(False)
    loaded = AdamW({"w": np.zeros(3, np.float32)})
    load_checkpoint(path, loaded)
    found = loaded.param_groups[0]["params"]["w"]
    np.testing.assert_array_equal(found, optimizer.param_groups[0]["params"]["w"].byteswap())


def test_bytes_of_a_file(path):
    """Spelled out, since the imitation above knows only one machine."""
    w = np.array([1.0, -2.0, 0.15625], np.float32)
    save_checkpoint(path, AdamW({"w": w}), arrays={"n": np.array([1, -2], np.int64)})
    tensors = tensors_of(path)
    assert tensors["params/w"] == bytes.fromhex("0000803f 000000c0 0000203e")
    assert tensors["extra/n"] == bytes.fromhex("0100000000000000 feffffffffffffff")
