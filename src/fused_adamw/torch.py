"""``AdamW``: ``torch.optim.AdamW`` with the kernels of this package, for tensors in host memory."""

import inspect
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from ._core import Lender, Loan, require_seed, resolve_threads
from ._optim.state_formats import layout, require_state_dtype

try:
    TENSORS = Lender(Tensor, torch.nn.Parameter)
except TypeError as error:
    raise ImportError(f"fused_adamw.torch needs PyTorch 2.10 or later ({error})") from None

CHECK_CAPTURE = (  # refuses to be captured in a CUDA graph; the name depends on the version
    getattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", None)
    or torch.optim.Optimizer._cuda_graph_capture_health_check
)


class Gathered(NamedTuple):
    """What one step of a group reads and writes: lists of one length, in the order of torch."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]  # empty without amsgrad
    steps: list[Tensor]

    def only(self, indices: list[int]) -> "Gathered":
        return Gathered(*([tensors[i] for i in indices if tensors] for tensors in self))

    def storages(self) -> set[int]:
        """The memory, not 0, that the tensors are parts of."""
        return {_storage(t) for tensors in self for t in tensors} - {0}


class Plan(NamedTuple):
    """The step of one group: what the loan refuses, or all of it without one, is PyTorch's."""

    group: dict[str, Any]
    gathered: Gathered
    loan: Loan | None
    new_state: dict[Tensor, dict[str, Tensor]]  # of parameters whose first step it is


# What state_dict has for the arrays of state.py. PyTorch's own class, which would take codes for
# moments, finds none under their names in 8-bit state and says so.
NAMES_OF = {
    "bfloat16": {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
    "8bit": {
        **{"m": "exp_avg_code", "v": "exp_avg_sq_code"},
        **{"m_scale": "exp_avg_scale", "v_scale": "exp_avg_sq_scale"},
    },
}
DTYPES = {  # bfloat16 and uint32 go by other names in NumPy and in PyTorch
    **{"int8": torch.int8, "uint8": torch.uint8, "uint16": torch.bfloat16},
    **{"float32": torch.float32, "uint32": torch.int32},
}


def _signature(own: Callable[..., Any]) -> inspect.Signature:
    """That of ``torch.optim.AdamW`` in this version, and what ``own`` adds by name."""
    theirs = inspect.signature(torch.optim.AdamW)
    ours = (p for p in inspect.signature(own).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return theirs.replace(parameters=[*theirs.parameters.values(), *ours])


class AdamW(torch.optim.AdamW):
    """A drop-in for ``torch.optim.AdamW`` (Loshchilov & Hutter 2019): its arguments, errors, hooks,
    ``param_groups`` and state, under the same names, so that checkpoints go both ways.

    With ``fused=None`` (the default) or ``fused=True``, the dense float32 and float64 parameters of
    a group that are in host memory are updated in one call, in one pass, in place; nothing is
    copied::

        m <- b1 m + (1 - b1) g                  (exp_avg; with maximize, g is minus the gradient)
        v <- b2 v + (1 - b2) g^2                (exp_avg_sq; with amsgrad, v_hat takes the largest)
        p <- p - lr (weight_decay p + m_hat / (sqrt(v_hat) + eps))
        where m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    The bits are those of ``fused_adamw.fused_adamw``: on every machine, for every number of threads
    (as many as ``torch.get_num_threads()``, and as affinity and cgroup allow). Gradients and state
    have the memory layout of their parameter, which may be any permutation, such as channels_last.

    All else goes PyTorch's own way, or is refused as PyTorch refuses it: ``foreach=True``,
    ``fused=False``, ``capturable`` and ``differentiable``; groups whose weight decay is not
    decoupled; other dtypes, layouts and devices; tensors with gaps or with shared memory; classes
    derived from ``Parameter``; and a step that ``torch.compile`` has compiled. PyTorch's fused
    update, which disregards strides, is then kept from tensors on the CPU that have other strides
    than their state and gradient, or gaps.

    Args: those of ``torch.optim.AdamW``, and
        state_dtype: what the moments are kept in. None: the dtype of their parameter. "bfloat16"
            and "8bit": 4 and 2 bytes a parameter (``fused_adamw.state``), for dense float32,
            bfloat16 and float16 parameters in host memory; computed in float32. In 8 bits
            state has exp_avg_code, exp_avg_scale and the same of exp_avg_sq, and there is no
            amsgrad; PyTorch's class cannot load these. A group may have its own. Where a gradient
            or a parameter has no kernel the step raises TypeError with nothing changed.
            ``load_state_dict`` takes over what was saved, as it was kept.
        seed: of the stochastic rounding of such state and of bfloat16 parameters with it; None
            rounds to the nearest.

    Raises: what ``torch.optim.AdamW`` raises; and TypeError or ValueError, with nothing changed in
    the group, where one of its numbers has been set to what the formula does not take: a negative
    ``lr``, for one.
    """

    def __init__(
        self,
        params: Any,
        *args: Any,
        state_dtype: str | None = None,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        require_state_dtype(state_dtype)
        require_seed(seed)
        super().__init__(params, *args, **options)
        own = {"state_dtype": state_dtype, "seed": seed}
        if state_dtype is not None:
            self.defaults |= own
        for group in self.param_groups:
            if group.get("state_dtype", state_dtype) is not None:
                group |= own | group
            _require_options(group)

    __signature__ = _signature(__init__)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            _require_options(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of ``torch.optim.AdamW``. A ``state_dtype`` is that of the saved groups."""
        hooked: dict[str, Any] = {}

        def before(optimizer: Any, state_dict: dict[str, Any]) -> None:
            for group in state_dict["param_groups"]:
                _require_options(group)
            hooked.update(state_dict)

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(lambda _: self._restore(hooked), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _restore(self, saved: dict[str, Any]) -> None:
        """Put back what PyTorch has made of the parameter's dtype."""
        indices = (i for group in saved["param_groups"] for i in group["params"])
        for group in self.param_groups:
            for p, i in zip(group["params"], indices, strict=False):
                if group.get("state_dtype") is not None:
                    for name, value in saved["state"].get(i, {}).items():
                        if isinstance(value, Tensor) and name != "step":
                            self.state[p][name] = value.to(p.device, copy=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient. ``closure`` evaluates the model anew and
        returns the loss, which is returned then. Where GradScaler found an infinity (``found_inf``)
        nothing changes; where it leaves unscaling to this class, the gradients are unscaled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or not found_inf.item():
            for plan in [self._plan(group) for group in self.param_groups]:
                self._carry_out(plan)
        return loss

    def _gather(self, group: dict[str, Any]) -> Gathered:
        try:
            if not torch.compiler.is_compiling():  # it would trace a state that it has not seen
                return self._gather_known(group)
        except KeyError:  # the first step of a parameter
            pass
        gathered = Gathered([], [], [], [], [], [])
        self._init_group(group, *gathered)
        return gathered

    def _gather_known(self, group: dict[str, Any]) -> Gathered:
        gathered = Gathered([], [], [], [], [], [])
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = gathered
        amsgrad = group["amsgrad"]
        for p in group["params"]:
            grad = p.grad
            if grad is not None:
                state = self.state[p]
                params.append(p)
                grads.append(grad)
                exp_avgs.append(state["exp_avg"])
                exp_avg_sqs.append(state["exp_avg_sq"])
                if amsgrad:
                    max_exp_avg_sqs.append(state["max_exp_avg_sq"])
                steps.append(state["step"])
        return gathered

    def _plan(self, group: dict[str, Any]) -> Plan:
        if group.get("state_dtype") is not None:
            return self._plan_compressed(group)
        gathered = self._gather(group)
        if not _is_ours(group, gathered):
            return Plan(group, gathered, None, {})
        loan = Loan(TENSORS, *gathered, _hyper(group), group["maximize"], _threads())
        if loan.refused:
            ours, theirs = _parted(gathered, loan.refused)
            if not ours.storages().isdisjoint(theirs.storages()):  # these go in PyTorch's order
                return Plan(group, gathered, None, {})
        return Plan(group, gathered, loan, {})

    def _plan_compressed(self, group: dict[str, Any]) -> Plan:
        """State in fewer bits is ours alone: what there is no kernel for is refused."""
        _require_options(group)
        if torch.compiler.is_compiling():
            raise RuntimeError(f"state_dtype is {group['state_dtype']!r}; there it cannot compile")
        before = takewhile(lambda other: other is not group, self.param_groups)
        numbered = enumerate(group["params"], sum(len(other["params"]) for other in before))
        stepped = [(place, p) for place, p in numbered if p.grad is not None]
        places, params = [place for place, _ in stepped], [p for _, p in stepped]
        new = {p: _new_state(p, group) for p in params if not self.state.get(p)}
        entries = [new.get(p) or self.state[p] for p in params]
        names = NAMES_OF[group["state_dtype"]]
        gathered = Gathered(
            params,
            [p.grad for p in params],
            [entry[names["m"]] for entry in entries],
            [entry[names["v"]] for entry in entries],
            [entry[names["v_max"]] for entry in entries] if group["amsgrad"] else [],
            [entry["step"] for entry in entries],
        )
        grad_scale = getattr(self, "grad_scale", None)
        loan = Loan(
            TENSORS,
            *gathered,
            _hyper(group),
            group["maximize"],
            _threads(),
            group["state_dtype"],
            [entry.get("exp_avg_scale") for entry in entries],
            [entry.get("exp_avg_sq_scale") for entry in entries],
            places,
            group.get("seed", self.defaults.get("seed", 0)),
            1.0 if grad_scale is None else 1 / grad_scale.item(),
        )
        refused = [places[i] for i in loan.refused]
        refused += [place for place, p in stepped if p.is_neg() or p.grad.is_neg()]
        if refused:
            raise TypeError(
                f"state_dtype is {group['state_dtype']!r}, for dense parameters of float32, "
                "bfloat16 or float16 in host memory, with gradients and state of their dtype and "
                f"layout and memory of their own; it does not go with the parameters {refused}"
            )
        return Plan(group, gathered, loan, new)

    def _carry_out(self, plan: Plan) -> None:
        group, gathered, loan, new_state = plan
        self.state.update(new_state)
        if loan is None:
            self._update_as_torch(group, gathered)
            return
        ours = gathered
        if loan.refused:
            ours, theirs = _parted(gathered, loan.refused)
            self._update_as_torch(group, theirs)
        compressed = group.get("state_dtype") is not None
        if not compressed:
            self._unscale(ours.grads)
        loan.step()
        if compressed:  # the step has unscaled, in float32
            self._unscale(ours.grads)
        torch.autograd.graph.increment_version(ours.params)

    def _update_as_torch(self, group: dict[str, Any], gathered: Gathered) -> None:
        if not gathered.params:
            return
        CHECK_CAPTURE(self)
        self._init_group(group, [], [], [], [], [], [])  # refuses sparse gradients
        everything = range(len(gathered.params))
        fusible = [bool(group["fused"]) and _is_fusible(gathered, i) for i in everything]
        fused = gathered.only([i for i in everything if fusible[i]])
        others = gathered.only([i for i in everything if not fusible[i]])
        scale = getattr(self, "grad_scale", None)  # of float16, in more precision than it has
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            _adam(group, fused, foreach=False, fused=True, grad_scale=scale)
            self._unscale(others.grads)
            if group["fused"]:
                _adam(group, others, foreach=False, fused=False)
            else:
                _adam(group, others, foreach=group["foreach"], fused=group["fused"])

    def _unscale(self, grads: Iterable[Tensor]) -> None:
        """In place, as PyTorch's fused update does."""
        grad_scale = getattr(self, "grad_scale", None)
        if grad_scale is not None:
            factor = grad_scale.item()
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                for grad in grads:
                    grad.div_(factor)


def _storage(tensor: Tensor) -> int:
    """Where the memory begins that the tensor is a part of; 0 where it has none of its own."""
    try:
        address: int = tensor.untyped_storage().data_ptr()
        return address
    except RuntimeError:  # such as of a sparse tensor
        return 0


def _is_ours(group: dict[str, Any], gathered: Gathered) -> bool:
    """Whether a group is for our kernels, as far as its options say. A view that negates lends the
    memory of what it negates."""
    if group["fused"] is False or (group["fused"] is None and group["foreach"]):
        return False
    if group["capturable"] or group["differentiable"] or not group["decoupled_weight_decay"]:
        return False
    if torch.compiler.is_compiling():
        return False
    return not (any(map(Tensor.is_neg, gathered.params)) or any(map(Tensor.is_neg, gathered.grads)))


def _hyper(group: dict[str, Any]) -> tuple[float, tuple[float, float], float, float]:
    lr = group["lr"]
    rate = lr.item() if isinstance(lr, Tensor) else lr
    return rate, group["betas"], group["eps"], group["weight_decay"]


def _threads() -> int:
    threads: int = min(torch.get_num_threads(), resolve_threads(None))
    return threads


def _parted(gathered: Gathered, refused: list[int]) -> tuple[Gathered, Gathered]:
    """What a loan takes, and what it refuses."""
    ours = set(range(len(gathered.params))).difference(refused)
    return gathered.only(sorted(ours)), gathered.only(refused)


def _new_state(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """As ``fused_adamw.state`` has it, with moments in the shape of the parameter."""
    state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32)}
    arrays = layout(group["state_dtype"], p.numel(), group["amsgrad"], master=False)
    for role, (dtype, size) in arrays.items():
        name, of_torch = NAMES_OF[group["state_dtype"]][role], DTYPES[dtype.__name__]
        if role in ("m_scale", "v_scale"):
            state[name] = torch.zeros(size, dtype=of_torch)
        else:
            state[name] = torch.zeros_like(p, dtype=of_torch)
    return state


def _require_options(group: dict[str, Any]) -> None:
    """Raise what is wrong with a ``state_dtype``, or does not go with it."""
    state_dtype = group.get("state_dtype")
    require_state_dtype(state_dtype, group["amsgrad"])
    require_seed(group.get("seed"))
    if state_dtype is None:
        return
    for name in ("foreach", "capturable", "differentiable"):
        if group[name]:
            raise ValueError(f"{name} is {group[name]}; with a state_dtype expected False")
    for name in ("fused", "decoupled_weight_decay"):
        if group[name] is False:
            raise ValueError(f"{name} is False; with a state_dtype expected True")


def _is_fusible(gathered: Gathered, i: int) -> bool:
    """Whether PyTorch's fused update may have it: on the CPU it disregards strides."""
    p = gathered.params[i]
    if p.device.type != "cpu":
        return True
    strides = {_strides(tensors[i]) for tensors in gathered[:5] if tensors}
    return strides == {_strides(torch.empty_like(p, device="meta"))}  # as p has, if it is dense


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those that have a meaning."""
    return tuple(s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def _adam(group: dict[str, Any], gathered: Gathered, **how: Any) -> None:
    if not gathered.params:
        return
    beta1, beta2 = group["betas"]
    adam(
        *gathered,
        **how,
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        has_complex=any(map(torch.is_complex, gathered.params)),
        decoupled_weight_decay=group["decoupled_weight_decay"],
        amsgrad=group["amsgrad"],
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
