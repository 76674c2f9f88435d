"""Models that are trained with their optimizer off-loaded, beside the class for NumPy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch_state import as_array  # noqa: E402

from fused_adamw import AdamW as ForNumPy  # noqa: E402
from fused_adamw import offload  # noqa: E402

SMALLEST = 1 << 17  # bytes of a slot: 16,384 elements of 8 bytes


def on_device(params, *, lane_seed=0, slots=2, slot_bytes=SMALLEST, delay=2e-5, **options):
    """An optimizer for which the CPU is a device that copies late."""
    lane = offload.CpuLane(lane_seed, delay)
    with offload.simulated(lane, slots=slots, slot_bytes=slot_bytes):
        return offload.AdamW(params, **options)


def parameter(dtype=torch.bfloat16, shape=(300, 200), seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=numbers).to(dtype))


def set_gradient(p, seed):
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.dtype)


def steps(opt, *params, count=2, first=0):
    for seed in range(first, first + count):
        for p in params:
            set_gradient(p, seed)
        opt.step()


class Beside:
    """The class for NumPy, with the same gradients.

    Args:
        groups: parameters, or groups of them.
        hooked: record gradients when they are final, and not when a step is taken.
        own: options that only this class has, such as num_threads.
    """

    def __init__(self, groups, *, own=None, **options):
        self.groups = [g if isinstance(g, dict) else {"params": g} for g in _as_groups(groups)]
        self.params = [p for group in self.groups for p in group["params"]]
        arrays = [{**g, "params": [as_array(p.cpu()) for p in g["params"]]} for g in self.groups]
        self.arrays = [x for group in arrays for x in group["params"]]
        mix = {"state_dtype": "float32", "master_weights": True}
        self.opt = ForNumPy(arrays, **(mix | options | (own or {})))

    def step(self, grads=None):
        """With the gradients that the parameters have, or those given."""
        grads = [p.grad for p in self.params] if grads is None else grads
        found = iter([None if g is None else as_array(g.cpu()) for g in grads])
        return self.opt.step([[next(found) for _ in g["params"]] for g in self.groups])

    def assert_equal(self, opt):
        """That parameters and state have the same bits."""
        opt.synchronize()
        saved = self.opt.state_dict()["state"]
        for i, (p, array) in enumerate(zip(self.params, self.arrays, strict=True)):
            np.testing.assert_array_equal(as_bytes(p), as_bytes(array), f"parameter {i}")
            entry, own = _item(saved, i), opt.state.get(p, {})
            for role, x in entry.items():
                if role not in ("step", "order") and own:
                    found = as_bytes(own[_name(role, entry)])
                    np.testing.assert_array_equal(found, as_bytes(x), f"{role} of {i}")


def _as_groups(groups):
    groups = list(groups)
    return groups if isinstance(groups[0], dict) else [groups]


def _item(saved, i):
    entries = list(saved.values()) if isinstance(saved, dict) else list(saved)
    return entries[i]


def _name(role, entry):
    name = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}.get(role[:1])
    if role in ("m", "v"):
        return name + ("_code" if "m_scale" in entry else "")
    if role in ("m_scale", "v_scale"):
        return name + "_scale"
    return "max_exp_avg_sq" if role == "v_max" else role


def as_bytes(x):
    """In the order of memory."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.as_strided((x.numel(),), (1,), x.storage_offset())
        kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        x = x.view(kinds[x.element_size()]).numpy()
    return np.frombuffer(np.asarray(x).tobytes("K"), np.uint8)


class Net(torch.nn.Module):
    """With tied, frozen and unused parameters, and some of more elements than a slot has."""

    def __init__(self, dtype=torch.bfloat16, width=24, vocabulary=900, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.norm = torch.nn.LayerNorm(width)
        self.inner = torch.nn.Linear(width, 1500)
        self.outer = torch.nn.Linear(1500, width)
        self.frozen = torch.nn.Linear(width, width).requires_grad_(False)
        self.unused = torch.nn.Parameter(torch.ones(5))
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.outer(torch.relu(self.inner(self.norm(x)))) * self.scale
        return self.head(self.frozen(x))

    def loss(self, seed):
        tokens = torch.randint(900, (2, 9), generator=torch.Generator().manual_seed(seed))
        tokens = tokens.to(next(self.parameters()).device)
        logits = self(tokens[:, :-1]).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Recorder:
    """Copies of gradients as they are when they become final."""

    def __init__(self, params):
        self.params, self.grads = list(params), {}
        for p in self.params:
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._record)

    def _record(self, p):
        self.grads[p] = p.grad.clone()

    def take(self):
        found = [self.grads.get(p) for p in self.params]
        self.grads = {}
        return found
