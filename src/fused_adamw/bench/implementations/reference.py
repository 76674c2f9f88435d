"""The definition of the step in pure Python: ``fused_adamw.reference``."""

import itertools
from typing import Any

from ...reference import adamw_update_list
from ..harness import Step
from ..workloads import Arrays
from .base import Implementation


def prepare_lists(*roles: Arrays) -> Step:
    lists: Any = [[array.ravel().tolist() for array in arrays] for arrays in roles]
    count = itertools.count(1)

    def step() -> object:
        t = next(count)
        for i, (p, g, m, v) in enumerate(zip(*lists, strict=True)):
            lists[0][i], lists[2][i], lists[3][i] = adamw_update_list(p, g, m, v, t)
        return lists[0]

    return step


PURE_PYTHON = Implementation("pure-python", lambda: prepare_lists, max_parameters=2**12)
