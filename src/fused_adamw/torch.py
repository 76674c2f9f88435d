"""``AdamW``: ``torch.optim.AdamW`` with the kernels of this package, for tensors in host memory."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from ._core import Lender, Loan, resolve_threads

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

    Args: those of ``torch.optim.AdamW``.

    Raises: what ``torch.optim.AdamW`` raises; and TypeError or ValueError, with nothing changed in
    the group, where one of its numbers has been set to what the formula does not take: a negative
    ``lr``, for one.
    """

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
            for group in self.param_groups:
                self._update(group, self._gather(group))
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

    def _update(self, group: dict[str, Any], gathered: Gathered) -> None:
        if not _is_ours(group, gathered):
            self._update_as_torch(group, gathered)
            return
        lr = group["lr"]
        hyper = (
            lr.item() if isinstance(lr, Tensor) else lr,
            group["betas"],
            group["eps"],
            group["weight_decay"],
        )
        threads = min(torch.get_num_threads(), resolve_threads(None))
        loan = Loan(TENSORS, *gathered, hyper, group["maximize"], threads)
        refused = set(loan.refused)
        if refused:
            left = gathered.only(loan.refused)
            ours = gathered.only([i for i in range(len(gathered.params)) if i not in refused])
            if not left.storages().isdisjoint(ours.storages()):  # they go in torch's order
                self._update_as_torch(group, gathered)
                return
            self._update_as_torch(group, left)
        self._unscale(grad for i, grad in enumerate(gathered.grads) if i not in refused)
        loan.step()
        torch.autograd.graph.increment_version(gathered.params)

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
