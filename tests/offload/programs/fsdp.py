"""Processes on a mesh of CPUs, off-loaded, beside whole parameters with the same gradients.

Usage: fsdp.py RANK WORLD FILE MODE (a file for the rendezvous; plain, overlapped, clipped or ddp)
"""

import os
import sys

import pytest
import torch
import torch.distributed as dist
from offloading import Net, on_device
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def new_net():
    net = Net(torch.float32)
    net.scale = torch.nn.Parameter(torch.ones(1))  # FSDP refuses scalars
    return net


class Averaged(DistributedDataParallel):
    def __init__(self, net):
        super().__init__(net, find_unused_parameters=True)

    def loss(self, seed):
        return Net.loss(self, seed)


def whole_of(grad):
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def shard(net, world):
    mesh = init_device_mesh("cpu", (world,))
    for module in (net.inner, net.outer, net):
        fully_shard(module, mesh=mesh)
    params = list(net.parameters())
    with pytest.raises(ValueError, match="module must be None"):
        on_device(params, module=net)
    with pytest.raises(ValueError, match="max_grad_norm must be None"):
        on_device(params, max_grad_norm=1.0)
    refuse_added(params[:1], {"module": torch.nn.Linear(2, 2)}, "module must be None")
    refuse_added(params[:1], {"max_grad_norm": 1.0}, "max_grad_norm must be None")


def refuse_added(params, options, match):
    opt = on_device(torch.nn.Linear(2, 2).parameters(), **options)
    with pytest.raises(ValueError, match=match):
        opt.add_param_group({"params": params})
    assert len(opt.param_groups) == 1


def backward(net, opt, step, mode):
    loss = net.loss(100 * step + dist.get_rank())
    if mode == "overlapped":
        with opt.overlapped():
            loss.backward()
    else:
        loss.backward()
    if mode == "clipped":
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)


def main(rank, world, file, mode):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    net, whole = new_net(), new_net()
    if mode == "ddp":
        net = Averaged(net)
    else:
        shard(net, world)
    opt = on_device(net.parameters(), lr=1e-2)
    other = on_device(whole.parameters(), lr=1e-2)
    if mode == "ddp":
        with pytest.raises(RuntimeError, match="averaged over processes"):
            opt.overlapped()
    for step in range(3):
        backward(net, opt, step, mode)
        for p, q in zip(net.parameters(), whole.parameters(), strict=True):
            q.grad = None if p.grad is None else whole_of(p.grad).clone()
        opt.step()
        other.step()
        opt.zero_grad()
    for (name, p), q in zip(net.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(p, DTensor) == (mode != "ddp"), name
        assert torch.equal(whole_of(p.detach()), q), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    # Not through the end of the interpreter, after which a thread of gloo that still releases a
    # tensor aborts the process.
    sys.stdout.flush()
    os._exit(0)
