"""What ranks raise when they disagree, without MPI."""

import pickle

import pytest

from fused_adamw._distributed.agreement import MAX_SHOWN, _raise_difference, _raise_first_error
from fused_adamw._distributed.operations import CollectiveOperations


class TwoRanks:
    def allgather(self, value):
        return [value, value]


def test_a_difference_that_no_value_shows():
    message = "^the arguments must be the same on all ranks; got different ones$"
    with pytest.raises(RuntimeError, match=message):
        _raise_difference(TwoRanks(), {"t": 1})


class DifferentRanks:
    def __init__(self, length):
        self.length = length

    def allgather(self, value):
        return [{"seed": "1" * self.length}, {"seed": "2" * self.length}]


def test_long_values_are_cut_off():
    with pytest.raises(ValueError, match=f"got 1{{{MAX_SHOWN}}} on rank 0 and 2{{{MAX_SHOWN}}} on"):
        _raise_difference(DifferentRanks(MAX_SHOWN), {})
    with pytest.raises(ValueError, match=rf"got 1{{{MAX_SHOWN}}}\.\.\. on rank 0"):
        _raise_difference(DifferentRanks(MAX_SHOWN + 1), {})


class SecondRank:
    def allgather(self, value):
        return [None, value]


def test_an_error_without_text_is_named():
    with pytest.raises(MemoryError, match=r"^rank 1: MemoryError$"):
        _raise_first_error(SecondRank(), MemoryError())


def test_a_refused_operation_can_be_pickled():
    """As pools of processes do with errors."""
    operations = CollectiveOperations()
    with (
        operations.run("step"),
        pytest.raises(RuntimeError, match="got load during step") as refused,
        operations.run("load"),
    ):
        pass
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
