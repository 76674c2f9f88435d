"""A call of ``fused_adamw`` that is refused changes no byte of any array."""

import numpy as np
import pytest

from fused_adamw import fused_adamw

ROLES = ["params", "grads", "m", "v"]


def call(arrays, t=1, **options):
    fused_adamw(*arrays, t, **options)


def assert_refused(arrays, error, *words, t=1, **options):
    """``arrays`` raise ``error`` with all ``words`` in its message, and are as they were."""
    before = [snapshot(structure) for structure in arrays]
    with pytest.raises(error) as caught:
        call(arrays, t, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert [snapshot(structure) for structure in arrays] == before


def snapshot(structure):
    if isinstance(structure, np.ndarray):
        return structure.tobytes()
    if isinstance(structure, dict):
        return {key: snapshot(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [snapshot(value) for value in structure]
    return repr(structure)


def replaced(arrays, role, value):
    return [value if name == role else old for name, old in zip(ROLES, arrays, strict=True)]
