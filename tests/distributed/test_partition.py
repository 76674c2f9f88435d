"""The partition of the state over ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_adamw._core import BLOCK, CHUNK
from fused_adamw._distributed.partition import partition, slices_by_tensor

TENSORS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 300), st.integers(CHUNK - 1, CHUNK + 1), st.integers(0, 10**6)),
        st.sampled_from(["float16", "float32", "float64"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
@given(TENSORS, st.integers(1, 40), st.sampled_from([8 * CHUNK, 200_000, 1 << 20, 1 << 24]))
def test_each_element_has_one_owner_and_the_shares_are_even(tensors, ranks, bucket_bytes):
    sizes, dtypes = [size for size, _ in tensors], [dtype for _, dtype in tensors]
    seen, owned = [0] * len(sizes), [0] * ranks
    for bucket in partition(sizes, dtypes, ranks, bucket_bytes):
        assert 0 < bucket.nbytes <= bucket_bytes
        assert len(bucket.parts) == ranks
        for rank, part in enumerate(bucket.parts):
            for s in part:
                assert s.rank == rank
                assert dtypes[s.tensor] == bucket.dtype
                assert s.begin == seen[s.tensor] < s.end
                assert s.begin % CHUNK == 0
                seen[s.tensor] = s.end
                owned[rank] += s.size * np.dtype(bucket.dtype).itemsize
    assert seen == sizes
    chunk = CHUNK * max(np.dtype(dtype).itemsize for dtype in dtypes)
    assert max(owned) <= sum(owned) / ranks + chunk


def test_chunks_are_made_of_whole_blocks():
    assert CHUNK % BLOCK == 0


def test_large_tensors_are_not_packed_and_small_ones_share_a_bucket():
    buckets = partition([10, 1 << 20, 20, 30], ["float32"] * 4, 2, 1 << 21)
    assert [bucket.contiguous_range for bucket in buckets] == [
        (1, 0, 1 << 19),
        (1, 1 << 19, 1 << 20),
        None,
    ]
    assert buckets[-1].counts in ([10, 50], [30, 30])
    assert buckets[0].counts == [1 << 18, 1 << 18]
    assert buckets[0].starts == [0, 1 << 18]


def test_the_slices_of_each_tensor():
    buckets = partition([10, 1 << 20, 0], ["float32", "float64", "float32"], 3, 1 << 21)
    found = slices_by_tensor(buckets, 3)
    assert [len(slices) > 0 for slices in found] == [True, True, False]
    for tensor, size in enumerate([10, 1 << 20, 0]):
        ends = [0, *(s.end for s in found[tensor])]
        assert [s.begin for s in found[tensor]] == ends[:-1]
        assert ends[-1] == size
