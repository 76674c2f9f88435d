"""Fixtures of the tests with PyTorch."""

import pytest


@pytest.fixture(params=[None, True], ids=["fused=None", "fused=True"])
def fused(request):
    return request.param
