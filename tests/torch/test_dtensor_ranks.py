"""DTensors on several ranks: FSDP2, tensor parallelism and distributed checkpoints."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from sharded_comparison import assert_same, assert_within  # noqa: E402
from sharded_training import (  # noqa: E402
    OPTIONS,
    WHOLE_BLOCKS,
    Model,
    call_all,
    exchange_with_plain,
    gathered,
    reshard,
    train,
    train_fsdp,
    train_mixed,
    train_shards,
)
from torch_ranks import needs_gloo, run_ranks  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    needs_gloo,
]
STEPS = 3
NUMBERS = {name: i for i, (name, _) in enumerate(Model().named_parameters())}
ELEMENTWISE = [kind for kind in OPTIONS if not kind.startswith("8bit")]
MIXED = ["float32", "float64", "ema", "master", "8bit"]  # stochastic only in 8 bits
FSDP = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "8bit"}]
SAVED = ["float32", "bfloat16", "master", "8bit"]
RESUMED = ["bfloat16", "8bit"]
EXCHANGED = ["float32", "8bit", "8bit_master"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By number of ranks, what each rank has found. A checkpoint goes from 2 to 1 and to 3."""
    folder = tmp_path_factory.mktemp("ranks")
    calls = {
        2: {
            "shards": (train_shards, list(OPTIONS), STEPS),
            "mixed": (train_mixed, MIXED, STEPS),
            "fsdp": (train_fsdp, FSDP),
            "reshard": (reshard, SAVED, folder, None, "two", (0, 3)),
            "whole": (reshard, RESUMED, folder, None, "whole", (0, 4)),
            "half": (reshard, RESUMED, folder, None, "half", (0, 2)),
            "resumed": (reshard, RESUMED, folder, "half", "resumed", (2, 4)),
            "exchange": (exchange_with_plain, EXCHANGED),
        },
        1: {
            "reshard": (reshard, SAVED, folder, "two", "one", (3, 3)),
            "exchange": (exchange_with_plain, EXCHANGED),
        },
        3: {
            "reshard": (reshard, SAVED, folder, "one", "three", (3, 3)),
            "shards": (train_shards, list(OPTIONS), STEPS),
        },
    }
    return {ranks: run_ranks(ranks, folder, call_all, calls[ranks]) for ranks in (2, 1, 3)}


# ---------------------------------------------------------------------------- steps


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_on_ranks_have_the_bits_of_one_process(results, ranks, kind):
    """Also where they begin within a block, unless its elements share a scale."""
    expected = gathered(*train(kind, STEPS))
    for result in results[ranks]:
        for name in expected if kind in ELEMENTWISE else WHOLE_BLOCKS:
            assert_same(result["shards"][kind][name], expected[name])


@pytest.mark.parametrize("kind", MIXED)
def test_other_placements_beside_plain_tensors(results, kind):
    """Stochastic rounding differs where rows are divided; nothing else does."""
    expected = gathered(*train(kind, STEPS))
    for result in results[2]:
        for name, found in result["mixed"][kind].items():
            if kind == "8bit" and name in ("more_blocks", "parts_of_blocks"):
                p, other = found["param"], expected[name]["param"]
                torch.testing.assert_close(p, other, rtol=0, atol=0.02)
            else:
                assert_same(found, expected[name])


def test_fsdp_has_the_losses_of_pytorch_s_class(results):
    (losses, fallbacks), (others, _) = (result["fsdp"] for result in results[2])
    assert losses == others
    assert fallbacks == 0
    for offload in (False, True):
        expected = losses["torch", offload]
        assert expected[-1] < expected[0]
        np.testing.assert_allclose(losses["{}", offload], expected, rtol=1e-5)
        for options in FSDP[1:]:
            np.testing.assert_allclose(losses[str(options), offload], expected, rtol=0.02)


# ---------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize(("ranks", "before"), [(1, 2), (3, 1)])
def test_resharding(results, ranks, before, kind):
    """8 bits: the same where a row has whole blocks, which is so in one parameter."""
    states = [results[count][0]["reshard"][kind]["state"] for count in (ranks, before)]
    assert states[0].keys() == states[1].keys() == NUMBERS.keys()
    for name in NUMBERS:
        found, expected = (state[name] for state in states)
        assert torch.equal(found["step"], expected["step"])
        if kind == "8bit" and name != "first.weight":
            assert_within(1, found, expected)
        else:
            assert_same(found, expected)


@pytest.mark.parametrize("kind", RESUMED)
def test_resuming_on_as_many_ranks_goes_on_with_the_same_bits(results, kind):
    """The parts of a block are put together again."""
    for result in results[2]:
        for name, expected in result["whole"][kind]["state"].items():
            assert_same(result["resumed"][kind]["state"][name], expected)


@pytest.mark.parametrize("kind", EXCHANGED)
@pytest.mark.parametrize("ranks", [1, 2])
def test_gathered_state_goes_to_and_from_other_tensors(results, ranks, kind):
    for result in results[ranks]:
        first, *others = result["exchange"][kind]
        assert len(others) == 4
        for name, expected in first["state"].items():
            for other in others:
                found = other["state"].get(name) or other["state"][NUMBERS[name]]
                if ranks == 1 or kind == "float32" or name == "first.weight":
                    assert_same(found, expected)
                else:  # with the scales of other blocks, and then of the old ones again
                    assert torch.equal(found["step"], expected["step"])
                    assert_within(2, found, expected)
