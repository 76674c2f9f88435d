"""Implementations take turns, share their arguments, and are compared within rounds."""

import os

import pytest

from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.statistics import summarize
from fused_adamw.bench.suppress_output import suppress_output
from fused_adamw.bench.workloads import CASES, gpt2


def test_implementations_take_turns():
    comparison = Comparison("x", "x", dict.fromkeys("abc"), tuple, 1)
    blocks = list(comparison.blocks(3))
    assert all(block[0] is comparison for block in blocks)
    assert [turn for _, turn, _ in blocks] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "".join(name for _, _, name in blocks) == "abcbcacab"


def test_arguments_are_made_once_and_released():
    made, prepared = [], []

    def make_arguments():
        made.append(0)
        return (len(made),)

    def prepare(argument):
        prepared.append(argument)
        return lambda: argument

    comparison = Comparison("x", "x", {"a": prepare, "b": prepare}, make_arguments, 1)
    assert made == []
    assert [comparison.step(name)() for name in "aba"] == [1, 1, 1]
    assert (len(made), prepared) == (1, [1, 1])
    comparison.release()
    assert (comparison._arguments, comparison._steps) == (None, {})
    assert comparison.step("b")() == 2


def test_statistics_compare_within_rounds():
    names = ("ours", "other", "bound", "absent")
    comparison = Comparison("x", "x", dict.fromkeys(names), tuple, 100, 2800)
    blocks = {
        "ours": {0: 1e-6, 1: 3e-6, 2: 2e-6},
        "other": {0: 4e-6, 1: 6e-6, 2: 2e-6},
        "bound": {0: 1e-6, 1: 1e-6, 2: 1e-6},
    }
    ours, other, bound = summarize(comparison, blocks, "ours", "bound")
    assert ours.relative_time == (1, (1, 1))
    assert other.relative_time == (2, (1.5, 3))  # of 4, 2 and 1
    assert other.seconds.median == 4e-6
    assert other.seconds.quartiles == pytest.approx((3e-6, 5e-6))
    assert other.ns_per_parameter == pytest.approx(40)
    assert other.gb_per_s == pytest.approx(0.7)
    assert other.share_of_bound == pytest.approx(0.25)
    assert (bound.share_of_bound, bound.rounds) == (1, 3)


def test_the_sizes_of_gpt2():
    assert (CASES["gpt2-small"].num_parameters, len(gpt2(12, 768))) == (124_439_808, 148)
    assert (CASES["gpt2-large"].num_parameters, len(gpt2(36, 1280))) == (774_030_080, 436)
    assert CASES["tiny-transformer"].num_parameters == 3456


@pytest.mark.skipif(os.name == "nt", reason="Windows has no echo program")
def test_suppressed_output_includes_that_of_children(capfd):
    with suppress_output():
        print("python")
        os.system("echo child; echo error >&2")
    os.system("echo after")
    assert capfd.readouterr() == ("after\n", "")
