"""Gathered state dicts go between optimizers of different kinds on several ranks, or are refused:
no state is lost without a word."""

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from gathered_state import (  # noqa: E402
    FROM_TORCH,
    KEPT,
    broadcast_all_into_cells,
    exchange,
    load_placed_otherwise,
    load_replicated_scales,
    reset_counts,
    save_a_mixed_group,
    set_before_the_weights,
)
from sharded_training import call_all, call_all_offloaded  # noqa: E402
from torch_ranks import needs_gloo, run_ranks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    needs_gloo,
]
CONVERTED = [
    (source, divided, kind, True)
    for source in (FROM_TORCH, "float32", "bfloat16", "8bit")
    for divided in (False, True)
    for kind in ("float32", "bfloat16", "8bit")
] + [("8bit", True, kind, False) for kind in ("float32", "8bit")]
BROADCAST = [  # those that reach all ranks, and those that do not
    *((kind, a, kind, b) for kind in ("float32", "master") for a in (0, 1) for b in (0, 1)),
    ("8bit", False, "8bit", False),
    ("8bit", True, "8bit", True),
    ("8bit", False, "8bit", True),
    ("8bit", True, "8bit", False),
    (FROM_TORCH, False, "8bit", False),
    (FROM_TORCH, False, "8bit", True),
    ("8bit", True, "float32", True),
]
STALE = ["float16_master", "ema", "master"]
CELLS = [(columns, kind) for columns in (256, 320) for kind in ("torch", "float32", "8bit")]
MOVED = [
    *((kind, kind) for kind in ("float32", "float64", "ema", "master", "8bit", "8bit_master")),
    ("float32", "bfloat16"),
    ("float32", "8bit"),
]
RESET = [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}]


@pytest.fixture(scope="module", params=[call_all, call_all_offloaded], ids=["CPU", "off-load"])
def results(request, tmp_path_factory):
    calls = {
        "converted": (exchange, CONVERTED, False),
        "broadcast": (exchange, BROADCAST, True),
        "stale": (set_before_the_weights, STALE),
        "mixed": (save_a_mixed_group, ["float32", "8bit", "8bit_master"]),
        "cells": (broadcast_all_into_cells, CELLS),
        "reset": (reset_counts, RESET),
        "moved": (load_placed_otherwise, MOVED),
        "replicated": (load_replicated_scales,),
    }
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), request.param, calls)


def assert_close(found, expected):
    for name, entry in expected.items():
        assert torch.equal(found[name]["step"], entry["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            x, y = found[name][moment], entry[moment]
            assert y.abs().sum() > 0
            assert (x - y).norm() < 0.02 * y.norm(), (name, moment)


def test_every_format_is_converted_on_every_rank(results):
    for result in results:
        for pair in CONVERTED:
            saved, loaded = result["converted"][pair]
            assert_close(loaded, saved)


def test_a_broadcast_reaches_every_rank_or_is_refused(results):
    refused = set()
    for result in results:
        for pair, found in result["broadcast"].items():
            if isinstance(found, list):
                refused.add(pair)
                assert any("must be saved state on every rank" in x for x in found if x)
            else:
                assert_close(found[1], found[0])
    assert refused == set(BROADCAST[-5:])


def test_a_broadcast_into_copies_of_the_state_is_refused(results):
    """A state dict with scales of cells smaller than blocks has copies, not what is stepped."""
    for result in results:
        for (columns, kind), found in result["cells"].items():
            if kind == "8bit":
                assert_close(found[1], found[0])
            else:
                assert "must be saved state on every rank" in found[1], (columns, kind)


def test_state_of_another_placement(results):
    for result in results:
        for (pair, placement), (saved, loaded, path) in result["moved"].items():
            assert path == "kernels", (pair, placement)
            assert saved.keys() == loaded.keys()
            for name, x in saved.items():
                if pair[1] in ("8bit", "8bit_master", "bfloat16") and name not in KEPT:
                    assert (loaded[name] - x).norm() < 0.05 * x.norm(), (pair, placement, name)
                else:
                    assert torch.equal(loaded[name], x), (pair, placement, name)


def test_scales_that_each_rank_has_whole(results):
    for result in results:
        for saved, loaded in result["replicated"]:
            assert torch.equal(saved, loaded)


def test_counts_of_steps_can_be_reset(results):
    assert all(result["reset"] == [0, 0, 0] for result in results)


def test_what_was_not_saved_starts_from_weights_that_are_set_later(results):
    for kind in STALE:
        for divided in (False, True):
            for x in results[0]["stale"][kind, divided]:
                assert x.float().abs().max() < 4


def test_a_group_of_dtensors_and_plain_tensors_is_saved_and_continued(results):
    for result in results:
        for kind, (expected, continued) in result["mixed"].items():
            for i, entry in expected.items():
                assert entry.keys() == continued[i].keys(), kind
                for name, x in entry.items():
                    assert torch.equal(continued[i][name], x), (kind, name)
