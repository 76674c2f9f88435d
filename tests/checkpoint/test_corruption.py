"""Damaged and foreign files change nothing."""

import json
import random

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import (
    FORMAT,
    contents,
    draw,
    mapping,
    metadata_of,
    nothing_changes,
    refuses,
    rewrite,
    trained,
)

from fused_adamw import AdamW
from fused_adamw.checkpoint import (
    CheckpointError,
    CorruptCheckpointError,
    NewerCheckpointError,
    load_checkpoint,
    read_extra,
    read_step,
    save_checkpoint,
)


@pytest.mark.slow
def test_every_bit_flipped(path, small):
    optimizer, _ = small
    whole, before = path.read_bytes(), contents(optimizer)
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255, 0):
                file.seek(position)
                file.write(bytes([byte ^ mask]))
                assert mask == 0 or refuses(path, optimizer), (position, mask)
            assert contents(optimizer) == before
    assert path.read_bytes() == whole
    load_checkpoint(path, optimizer)


@pytest.mark.slow
def test_every_length(path, small):
    optimizer, _ = small
    whole, before = path.read_bytes(), contents(optimizer)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refuses(path, optimizer), length
        assert contents(optimizer) == before
    path.write_bytes(whole + b"\0")
    assert refuses(path, optimizer)
    assert contents(optimizer) == before


@pytest.mark.slow
def test_random_damage(path, small):
    """Bytes and blocks overwritten: refused, or, as where a blank becomes a tab, of one meaning."""
    optimizer, source = small
    whole, before = path.read_bytes(), contents(optimizer)
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        start = rng.randrange(len(whole))
        size = rng.choice([1, 1, 2, 3, 8, 100])
        damaged[start : start + size] = rng.choice(
            [rng.randbytes(size), bytes(size), b"\t" * size, b"9" * size, b'"' * size, b""]
        )
        path.write_bytes(damaged)
        if refuses(path, optimizer):
            assert contents(optimizer) == before
        else:
            assert contents(optimizer) == contents(source)
            optimizer = AdamW({"w": draw((1, 3), seed=7), "b": draw(1, np.float64, 8)})


ARRAY = {"w": np.zeros(3)}
OTHER_FILES = {
    "empty": b"",
    "zeros": b"\0" * 100,
    "ones": b"\xff" * 100,
    "text": b"not a checkpoint at all",
    "object": b"\x02" + b"\0" * 7 + b"{}",
    "list": b"\x02" + b"\0" * 7 + b"[]",
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "safetensors": safetensors.numpy.save(ARRAY),
    "of PyTorch": safetensors.numpy.save(ARRAY, {"format": "pt"}),
    "of no version": safetensors.numpy.save(ARRAY, {"format": FORMAT, "version": "x"}),
    "without parameters": safetensors.numpy.save(ARRAY, {"format": FORMAT, "version": "1"}),
}


REASONS = {
    "empty": r"\(EOFError: the file ends too early\)$",
    "text": r"\(header length \d+ exceeds the file size 23\)$",
    "of PyTorch": r"\(its format is 'pt'\)$",
    "without parameters": r"\(KeyError: 'checksum'\)$",
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files(path, kind):
    path.write_bytes(OTHER_FILES[kind])
    optimizer, reason = trained(mapping()), REASONS.get(kind, "")
    expected = f"is corrupt or not a fused-adamw checkpoint {reason}"
    with nothing_changes(optimizer, CorruptCheckpointError, expected):
        load_checkpoint(path, optimizer)


def test_a_checksum_covers_what_it_should(path, small):
    """The other tests of damage might pass for the parser's sake: here the file is well formed."""
    optimizer, source = small
    tensors, metadata = safetensors.numpy.load(path.read_bytes()), metadata_of(path)
    other_shape = {
        **tensors,
        **{f"{role}/w": tensors[f"{role}/w"].reshape(3, 1) for role in ("params", "m", "v")},
    }
    swapped = {**tensors, "m/w": tensors["v/w"], "v/w": tensors["m/w"]}
    other_t = metadata["optimizer"].replace('"t": 2', '"t": 3')
    assert other_t != metadata["optimizer"]
    for changed in (
        (tensors, metadata | {"extra": "{}"}),
        (tensors, metadata | {"optimizer": other_t}),
        (tensors, metadata | {"another": ""}),
        (swapped, metadata),
        (other_shape, metadata),
        ({**tensors, "m/w": tensors["m/w"].view(np.int32)}, metadata),
    ):
        path.write_bytes(safetensors.numpy.save(*changed))
        with nothing_changes(optimizer, CorruptCheckpointError, "checksum mismatch"):
            load_checkpoint(path, optimizer)
    # It is the change that is refused, not the way of making it.
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    load_checkpoint(path, optimizer)
    assert contents(optimizer) == contents(source)


def test_another_format(path, small):
    rewrite(path, format="another")
    with nothing_changes(small[0], CorruptCheckpointError, "its format is 'another'"):
        load_checkpoint(path, small[0])


@pytest.mark.parametrize("version", ["2", "10"])
def test_newer_version(path, small, version):
    rewrite(path, version=version)
    with nothing_changes(small[0], NewerCheckpointError, f"version {version}"):
        load_checkpoint(path, small[0])


def test_newer_version_of_unknown_contents(path, small):
    data = safetensors.numpy.save({"a": np.zeros(2)}, {"format": FORMAT, "version": "2"})
    path.write_bytes(data.replace(b'"F64"', b'"I64"'))
    with nothing_changes(small[0], NewerCheckpointError):
        load_checkpoint(path, small[0])


def test_tensors_that_overlap(path):
    """With the same data, so that all checksums are right."""
    save_checkpoint(path, AdamW({"w": draw(3)}))  # moments are 0
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["v/w"]["data_offsets"] = header["m/w"]["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(start - 8)
    path.write_bytes(data[:8] + text + data[start:])
    optimizer = trained({"w": draw(3)})
    with nothing_changes(optimizer, CorruptCheckpointError, "overlaps another one or leaves a gap"):
        load_checkpoint(path, optimizer)


@pytest.mark.parametrize("key", ["extra", "optimizer"])
@pytest.mark.parametrize("text", ["", "[", "null", "5", "[]", "[" * 100_000, '{"t": 1e400}'])
def test_metadata_that_is_no_json_object(path, small, key, text):
    """Sealed with the right checksums, so that all else is as it should be."""
    if (key, text[:2]) == ("extra", '{"'):
        pytest.skip("a JSON object")
    rewrite(path, **{key: text})
    with nothing_changes(small[0], CheckpointError):
        load_checkpoint(path, small[0])
    with pytest.raises(CheckpointError):
        read_extra(path) if key == "extra" else read_step(path)
