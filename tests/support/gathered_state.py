"""Gathered state dicts in optimizers of other kinds: what each rank of a group does."""

import copy
import warnings

import sharded_training
import torch
from sharded_training import OPTIONS, Model, draw, full_state, whole
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

FROM_TORCH = "torch"
KINDS = OPTIONS | {
    FROM_TORCH: (torch.float32, {}),
    "float32": (torch.float32, {"state_dtype": "float32"}),
    "bfloat16": (torch.float32, {"state_dtype": "bfloat16"}),
    "float16_master": (torch.float16, {"master_weights": True}),
}


KEPT = ("master", "ema")  # the same in all formats


def made(mesh, kind, divided):
    """A model, on the ranks or whole on each, and an optimizer of it."""
    torch.manual_seed(0)
    dtype, options = KINDS[kind]
    model = Model().to(dtype)
    if divided:
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW if kind == FROM_TORCH else sharded_training.AdamW
    return model, optimizer(model.parameters(), lr=1e-2, **options)


def set_gradients(params, seed):
    """The same on all ranks."""
    for i, p in enumerate(params):
        grad = draw(p.shape, 100 * seed + i, p.dtype)
        is_divided = isinstance(p, DTensor)
        p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if is_divided else grad


def take_steps(model, opt, first, last):
    for step in range(first, last):
        set_gradients(model.parameters(), step)
        opt.step()


def moments(model, opt):
    """The whole moments of each parameter, in float32."""
    own = opt.state_dict() if type(opt) is torch.optim.AdamW else opt.state_dict(format="torch")
    entries = own["state"].values()
    return {
        name: {k: whole(entry[k]).float().clone() for k in ("step", "exp_avg", "exp_avg_sq")}
        for (name, _), entry in zip(model.named_parameters(), entries, strict=True)
    }


def exchange(mesh, pairs, broadcast):
    """For each (kind, divided, kind, divided): moments saved and loaded, or what each rank raised.
    With ``broadcast`` only rank 0 has the state dict."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    found = {}
    for pair in pairs:
        model, opt = made(mesh, *pair[:2])
        take_steps(model, opt, 0, 2)
        saved = copy.deepcopy(full_state(model, opt))
        if broadcast and mesh.get_rank() > 0:
            saved = {}
        other, new = made(mesh, *pair[2:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # converted
            message = refusal(set_optimizer_state_dict, other, new, saved, options=options)
        messages = [None] * mesh.size()
        torch.distributed.all_gather_object(messages, message)
        if any(messages):
            found[pair] = messages
        else:
            found[pair] = moments(model, opt), moments(other, new)
            take_steps(other, new, 2, 3)
    return found


def broadcast_into_cells(mesh, columns, source):
    """Of a weight of this many columns, whose state is saved by an optimizer of the kind ``source``
    and broadcast to one with state in 8 bits: the message of each rank, or the moments saved and
    loaded."""
    pairs = []
    for kind in (source, "8bit"):
        torch.manual_seed(0)
        model = torch.nn.Linear(columns, 8, bias=False)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW if kind == FROM_TORCH else sharded_training.AdamW
        pairs.append((model, optimizer(model.parameters(), lr=1e-2, **KINDS[kind][1])))
    (model, opt), (other, new) = pairs
    take_steps(model, opt, 0, 2)
    saved = copy.deepcopy(full_state(model, opt))
    wide = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # converted
        message = refusal(
            set_optimizer_state_dict,
            other,
            new,
            saved if mesh.get_rank() == 0 else {},
            options=wide,
        )
    messages = [None] * mesh.size()
    torch.distributed.all_gather_object(messages, message)
    return messages if any(messages) else (moments(model, opt), moments(other, new))


def broadcast_all_into_cells(mesh, cases):
    return {case: broadcast_into_cells(mesh, *case) for case in cases}


def reset_counts(mesh, all_options):
    """The count after a load of the optimizer's own state dict with counts of 0, by options."""
    found = []
    for options in all_options:
        p = torch.nn.Parameter(draw((300,), 1))
        opt = sharded_training.AdamW([p], lr=1e-2, **options)
        set_gradients([p], 3)
        opt.step()
        saved = opt.state_dict()
        saved["state"][0]["step"] = torch.tensor(0.0)
        opt.load_state_dict(saved)
        found.append(int(opt.state[p]["step"]))
    return found


def whole_entry(opt):
    """The state of the first parameter, with moments in its dtype."""
    moments, own = opt.state_dict(format="torch")["state"][0], opt.state_dict()["state"][0]
    entry = moments | {name: x for name, x in own.items() if name in KEPT}
    return {name: whole(x).clone() for name, x in entry.items()}


def load_placed_otherwise(mesh, pairs):
    """By the kinds of two optimizers and by a placement: the whole state of a parameter with that
    placement, and of one divided by rows that has loaded it. Each rank has as many elements of the
    one as of the other, or all."""
    found = {}
    for pair in pairs:
        for placement in (Shard(1), Replicate()):
            opts = []
            for kind, placed in zip(pair, (placement, Shard(0)), strict=True):
                dtype, options = KINDS[kind]
                p = torch.nn.Parameter(distribute_tensor(draw((8, 512), 1, dtype), mesh, [placed]))
                opts.append(sharded_training.AdamW([p], lr=1e-2, **options))
                set_gradients([p], 3)
            opts[0].step()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # converted
                opts[1].load_state_dict(copy.deepcopy(opts[0].state_dict()))
            entries = [whole_entry(opt) for opt in opts]
            opts[1].step()
            found[pair, str(placement)] = *entries, opts[1].last_path[0].path
    return found


def load_replicated_scales(mesh):
    """The scales of the blocks of this rank, before and after a load of a state dict in which each
    rank has all of them."""
    p = torch.nn.Parameter(distribute_tensor(draw((8, 512), 1), mesh, [Shard(0)]))
    opt = sharded_training.AdamW([p], lr=1e-2, state_dtype="8bit")
    set_gradients([p], 3)
    opt.step()
    names = [name for name in opt.state[p] if name.endswith("_scale")]
    before = [opt.state[p][name].clone() for name in names]
    saved = opt.state_dict()
    entry = saved["state"][0]
    whole_scales = {name: entry[name].redistribute(placements=[Replicate()]) for name in names}
    saved["state"][0] = entry | whole_scales
    opt.load_state_dict(saved)
    return [(x, opt.state[p][name].clone()) for x, name in zip(before, names, strict=True)]


def refusal(call, *arguments, **options):
    """The message of a ValueError; None where the call returns."""
    try:
        call(*arguments, **options)
    except ValueError as error:
        return str(error)
    return None


def set_before_the_weights(mesh, kinds):
    """By kind, and by whether it is divided: the parameters after a step, where the state of
    PyTorch's class was set before the weights were."""
    found = {}
    for kind in kinds:
        for divided in (False, True):
            source, theirs = made(mesh, FROM_TORCH, divided)
            source.to(KINDS[kind][0])
            theirs.param_groups[0]["eps"] = 1e-3  # 1e-8 is 0 in float16
            take_steps(source, theirs, 0, 2)
            saved = copy.deepcopy(full_state(source, theirs))
            model, opt = made(mesh, kind, divided)
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(5.0)
            set_optimizer_state_dict(
                model, opt, saved, options=StateDictOptions(full_state_dict=True)
            )
            with torch.no_grad():
                for p, q in zip(model.parameters(), source.parameters(), strict=True):
                    p.copy_(q)
            take_steps(model, opt, 2, 3)
            averages = [whole(entry["ema"]) for entry in opt.state.values() if "ema" in entry]
            found[kind, divided] = [whole(p).detach() for p in model.parameters()] + averages
    return found


def save_a_mixed_group(mesh, kinds):
    """By kind, and by what comes first: the state of a DTensor and of a plain tensor of one dtype,
    after a step, and of a copy that continued from it, after another one."""
    found = {}
    for kind in kinds:
        dtype, options = KINDS[kind]
        for divided_first in (False, True):
            divided = distribute_tensor(draw((6, 100), 1, dtype), mesh, [Shard(0)])
            params = [torch.nn.Parameter(x) for x in (divided, draw((300,), 2, dtype))]
            params = params if divided_first else params[::-1]
            opt = sharded_training.AdamW(params, lr=1e-2, **options)
            set_gradients(params, 3)
            opt.step()
            saved, before = copy.deepcopy(opt.state_dict()), [p.detach().clone() for p in params]
            set_gradients(params, 4)
            opt.step()
            expected = copy.deepcopy(opt.state_dict()["state"])
            with torch.no_grad():
                for p, x in zip(params, before, strict=True):
                    p.copy_(x)
            again = sharded_training.AdamW(params, lr=1e-2, **options)
            again.load_state_dict(saved)
            set_gradients(params, 4)
            again.step()
            found[kind, divided_first] = [
                {i: {k: whole(x) for k, x in entry.items()} for i, entry in state.items()}
                for state in (expected, again.state_dict()["state"])
            ]
    return found
