"""Ranks of a gloo group: processes on this machine, which meet in a file."""

import traceback
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


def run_ranks(ranks, folder, function, *arguments):
    """What ``function(mesh, *arguments)`` returns on each rank, in processes of their own.

    ``folder``: a pathlib.Path, in which nothing else is called store."""
    meeting = folder / f"store{len(list(folder.glob('store*')))}"
    mp.spawn(_rank, (ranks, meeting, function, arguments), nprocs=ranks)
    return [torch.load(f"{meeting}.{rank}", weights_only=False) for rank in range(ranks)]


def _rank(rank, ranks, meeting, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(meeting), ranks), rank=rank, world_size=ranks
    )
    try:
        found = function(init_device_mesh("cpu", (ranks,)), *arguments)
        torch.save(found, f"{meeting}.{rank}")
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def only_rank(folder):
    """A group of this process alone."""
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
