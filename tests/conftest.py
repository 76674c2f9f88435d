"""Fixtures of all tests."""

import numpy as np
import pytest
from arrays import ISAS, Tensor


@pytest.fixture(params=ISAS)
def isa(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def tensor():
    return Tensor
