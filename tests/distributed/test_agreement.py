"""What ranks raise when they disagree, without MPI."""

import pytest

from fused_adamw._distributed.agreement import _raise_difference


class TwoRanks:
    def allgather(self, value):
        return [value, value]


def test_a_difference_that_no_value_shows():
    message = "^the arguments must be the same on all ranks; got different ones$"
    with pytest.raises(RuntimeError, match=message):
        _raise_difference(TwoRanks(), {"t": 1})
