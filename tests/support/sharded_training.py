"""Training with DTensors: what each rank of a group does, in functions that processes import."""

import copy
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch_state import by_index

from fused_adamw.torch import AdamW

# Of the first dimension 3 ranks get 2, 2 and 1 of 5 rows, and 1, 1 and none of 2.
SHAPES = {
    "whole_blocks": (5, 256),
    "more_blocks": (7, 2, 384),
    "few_rows": (2, 512),
    "parts_of_blocks": (6, 200),
    "small_parts": (5, 3, 3),
    "vector": (300,),
}
WHOLE_BLOCKS = ("whole_blocks", "more_blocks", "few_rows")
OPTIONS = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {"amsgrad": True}),
    "ema": (torch.float32, {"ema_decay": 0.9, "maximize": True}),
    "bfloat16": (torch.bfloat16, {"state_dtype": "bfloat16"}),
    "master": (torch.bfloat16, {"state_dtype": "float32", "master_weights": True}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "8bit_master": (torch.bfloat16, {"state_dtype": "8bit", "master_weights": True, "seed": 7}),
}
BATCH = 12


def draw(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train(kind, steps, place=lambda name, x: x, place_grad=None):
    """Parameters by name after steps with the same gradients everywhere, and their optimizer.
    ``place``: what is made of a whole tensor."""
    dtype, options = OPTIONS[kind]
    params = {
        name: torch.nn.Parameter(place(name, draw(shape, i, dtype)))
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    opt = AdamW(params.items(), lr=1e-2, **options)
    for step in range(1, steps + 1):
        for i, (name, p) in enumerate(params.items()):
            p.grad = (place_grad or place)(name, draw(SHAPES[name], 100 * step + i, dtype))
        opt.step()
    return params, opt


def place_on(mesh, *placements):
    return lambda x: distribute_tensor(x, mesh, placements)


def parameter_on(mesh, shape=(3, 100), placement=None, dtype=torch.float32):
    """Divided by rows unless another placement is given."""
    return torch.nn.Parameter(place_on(mesh, placement or Shard(0))(draw(shape, 1, dtype)))


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def gathered(params, opt):
    """Whole parameters and state, by name."""
    state = opt.state_dict()["state"]
    return {
        name: {"param": whole(p).detach(), **{key: whole(x) for key, x in state[i].items()}}
        for i, (name, p) in enumerate(params.items())
    }


# ---------------------------------------------------------------------------- on each rank


def call_all(mesh, calls):
    """What functions of the mesh return, by name: to start processes once for all of them."""
    return {name: function(mesh, *arguments) for name, (function, *arguments) in calls.items()}


def call_all_offloaded(mesh, calls):
    """The same with the class of ``fused_adamw.offload``, for which the CPU is a device."""
    from offload_for_torch import AdamW as Offloading

    from fused_adamw import offload

    lane = offload.CpuLane(0, 1e-5)
    with (
        offload.simulated(lane, slots=2, slot_bytes=1 << 18),
        patch.dict(globals(), {"AdamW": Offloading}),
    ):
        return call_all(mesh, calls)


def train_shards(mesh, kinds, steps):
    """Rows on ranks, which is what FSDP2 does."""

    def place(_, x):
        return distribute_tensor(x, mesh, [Shard(0)])

    return {kind: gathered(*train(kind, steps, place)) for kind in kinds}


def train_mixed(mesh, kinds, steps):
    """Columns on ranks, whole tensors on each, gradients that are sums over the ranks, and tensors
    that are no DTensors, in one group; and meshes of two dimensions."""
    ranks = mesh.size()
    square = torch.distributed.device_mesh.init_device_mesh("cpu", (ranks, 1))

    def place(name, x):
        if name == "small_parts":
            return x
        if name == "vector":
            return distribute_tensor(x, mesh, [Replicate()])
        if name == "few_rows":
            return distribute_tensor(x, square, [Replicate(), Shard(0)])
        if name == "whole_blocks":
            return distribute_tensor(x, square, [Shard(0), Replicate()])
        return distribute_tensor(x, mesh, [Shard(1)])

    def place_grad(name, x):
        if name != "vector":
            return place(name, x)
        one_of_all = x if mesh.get_rank() == 0 else torch.zeros_like(x)
        return torch.distributed.tensor.DTensor.from_local(one_of_all, mesh, [Partial()])

    return {kind: gathered(*train(kind, steps, place, place_grad)) for kind in kinds}


class Model(torch.nn.Module):
    """With parameters of several kinds of shapes."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(256, 150)
        self.norm = torch.nn.LayerNorm(150)
        self.conv = torch.nn.Conv1d(1, 2, 3)
        self.last = torch.nn.Linear(296, 5)

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x)))
        return self.last(self.conv(x[:, None]).flatten(1)).square().mean()


def sharded_model(mesh, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = Model().to(dtype)
    for layer in model.children():
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def losses_of(model, opt, first, last):
    losses = []
    for step in range(first, last):
        dtype = next(model.parameters()).dtype
        loss = model(draw((BATCH, 256), step % 2, dtype))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        losses.append(loss.item())
    return losses


def count_fallbacks():
    """A list that grows by the parameters that PyTorch steps from now on."""
    from fused_adamw._torch import dispatch

    seen, step_with_torch = [], dispatch.step_with_torch

    def counted(optimizer, group, tensors, fusible):
        seen.extend(tensors.params)
        step_with_torch(optimizer, group, tensors, fusible)

    dispatch.step_with_torch = counted
    return seen


def train_fsdp(mesh, kinds):
    """Losses of FSDP2, by optimizer, and the number of steps of tensors that PyTorch took."""
    seen = count_fallbacks()
    losses = {}
    for offload in (False, True):
        policy = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if offload else {}
        optimizers = {"torch": partial(torch.optim.AdamW, foreach=True)}
        optimizers |= {str(options): partial(AdamW, **options) for options in kinds}
        for name, optimizer in optimizers.items():
            model = sharded_model(mesh, **policy)
            opt = optimizer(model.parameters(), lr=1e-3)
            losses[name, offload] = losses_of(model, opt, 0, 4)
    return losses, len(seen)


def reshard(mesh, kinds, folder, load, save, steps):
    """Load a checkpoint, take steps, and save another; the state, whole."""
    found = {}
    for kind in kinds:
        dtype, options = OPTIONS[kind]
        model = sharded_model(mesh, dtype)
        opt = AdamW(model.parameters(), lr=1e-2, **options)
        if load is not None:
            _load(model, opt, folder / f"{kind}-{load}")
        losses_of(model, opt, *steps)
        model_state, opt_state = get_state_dict(model, opt)
        dcp.save({"model": model_state, "opt": opt_state}, checkpoint_id=folder / f"{kind}-{save}")
        found[kind] = full_state(model, opt)
    return found


def _load(model, opt, path):
    model_state, opt_state = get_state_dict(model, opt)
    dcp.load({"model": model_state, "opt": opt_state}, checkpoint_id=path)
    set_state_dict(model, opt, model_state_dict=model_state, optim_state_dict=opt_state)


def full_state(model, opt):
    options = StateDictOptions(full_state_dict=True)
    return get_optimizer_state_dict(model, opt, options=options)


def continue_training(mesh, kinds):
    """By kind: the whole state after steps, and that of another optimizer, which has taken the last
    of them, after it had loaded the state dict of the first on each rank."""
    found = {}
    for kind in kinds:
        dtype, options = OPTIONS[kind]
        model = sharded_model(mesh, dtype)
        opt = AdamW(model.parameters(), lr=1e-2, **options)
        losses_of(model, opt, 0, 2)
        saved = copy.deepcopy([model.state_dict(), opt.state_dict()])
        losses_of(model, opt, 2, 4)
        other = sharded_model(mesh, dtype)
        again = AdamW(other.parameters(), lr=1e-2, **options)
        other.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        losses_of(other, again, 2, 4)
        found[kind] = full_state(model, opt), full_state(other, again)
    return found


def write_between_steps(mesh):
    """Whether rows on ranks, with master weights, are what whole parameters are, where both are
    written after the second step."""
    q = torch.nn.Parameter(draw((6, 100), 1, torch.bfloat16))
    p = torch.nn.Parameter(distribute_tensor(q.detach().clone(), mesh, [Shard(0)]))
    opts = [AdamW([x], lr=1e-2, state_dtype="float32", master_weights=True) for x in (p, q)]
    for step in range(3):
        q.grad = draw((6, 100), 2 + step, torch.bfloat16)
        p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        for x, opt in zip((p, q), opts, strict=True):
            opt.step()
            if step == 1:
                with torch.no_grad():
                    x.fill_(1.0)
    return torch.equal(p.full_tensor(), q)


def exchange_with_plain(mesh, kinds):
    """For each kind: the state of an optimizer without DTensors, the same after sharded ones have
    loaded it, and after another one has loaded it from them."""
    found = {}
    for kind in kinds:
        dtype, options = OPTIONS[kind]
        states = []
        torch.manual_seed(0)
        model = Model().to(dtype)
        opt = AdamW(model.parameters(), lr=1e-2, **options)
        losses_of(model, opt, 0, 3)
        states.append(full_state(model, opt))
        for broadcast in (False, True):
            sharded = sharded_model(mesh, dtype)
            other = AdamW(sharded.parameters(), lr=1e-2, **options)
            set_optimizer_state_dict(
                sharded,
                other,
                full_state(model, opt),
                options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast),
            )
            states.append(full_state(sharded, other))
            back = AdamW(Model().to(dtype).parameters(), lr=1e-2, **options)
            back.load_state_dict(by_index(full_state(sharded, other)))
            states.append(back.state_dict())
        found[kind] = states
    return found
