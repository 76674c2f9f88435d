"""How many threads ranks have that share cores: a part of them, unless OMP_NUM_THREADS says; and
where each has its own."""

import os
import sys

from common import COMM, RANK, RANKS

from fused_adamw._core import default_num_threads
from fused_adamw._distributed.mpi import threads_of_rank

if hasattr(os, "sched_setaffinity"):  # some MPIs give each rank cores of its own
    os.sched_setaffinity(0, range(os.cpu_count()))
found = threads_of_rank(COMM, None)
expected = None if sys.argv[1] == "asked" else max(1, default_num_threads() // RANKS)
assert found == expected, (found, expected)
assert threads_of_rank(COMM, 3) == 3

if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= RANKS:
        os.sched_setaffinity(0, {cores[RANK]})
        assert threads_of_rank(COMM, None) is None
