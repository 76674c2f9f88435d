"""Fixtures of the tests with PyTorch."""

import pytest


@pytest.fixture(params=[None, True], ids=["fused=None", "fused=True"])
def fused(request):
    return request.param


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """Of DTensors, with one rank."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch_ranks import only_rank

    with only_rank(tmp_path_factory.mktemp("rank")):
        yield init_device_mesh("cpu", (1,))
