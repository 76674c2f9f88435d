"""What an ``AdamW`` over a life of steps and changes has to be: the formula in float64."""

import numpy as np


class TensorModel:
    """One tensor. ``moved``: how far it could have moved, which bounds its rounding errors."""

    def __init__(self, param):
        self.dtype = param.dtype.type
        self.p = np.array(param, np.float64)
        self.m, self.v, self.v_max, self.size = (np.zeros_like(self.p) for _ in range(4))
        self.ema, self.moved = self.p.copy(), np.abs(self.p)
        self.t = 0

    def step(self, gradient, lr, betas, eps, weight_decay, options):
        self.t += 1
        b1, b2 = (float(self.dtype(b)) for b in betas)  # as the compute type has them
        self.m = b1 * self.m + (1 - b1) * gradient
        self.v = b2 * self.v + (1 - b2) * gradient**2
        self.v_max = np.maximum(self.v_max, self.v)
        self.size = b1 * self.size + (1 - b1) * np.abs(gradient)  # of m without cancellation
        root = np.sqrt((self.v_max if options["amsgrad"] else self.v) / (1 - b2**self.t))
        rate = lr / (1 - b1**self.t) / (root + eps)
        self.moved = self.moved + lr * weight_decay * np.abs(self.p) + rate * self.size
        self.p = self.p - lr * weight_decay * self.p - rate * self.m
        decay = options["ema_decay"]
        if decay is not None:
            self.ema = decay * self.ema + (1 - decay) * self.p


class Model:
    """All tensors of an optimizer, and its options, group by group."""

    def __init__(self, groups, hypers, options):
        self.tensors = [[TensorModel(p) for p in group] for group in groups]
        self.hypers, self.options, self.t = hypers, options, 0

    def step(self, grads, scale):
        """Return the norm, or None where no option asks for one."""
        clip, skip = self.options["max_grad_norm"], self.options["skip_nonfinite"]
        found = [np.sum(np.square(g)) for group in grads for g in group if g is not None]
        norm = scale * float(np.sqrt(np.sum(found)))
        returned = None if clip is None and not skip else norm
        if skip and not np.isfinite(norm):
            return returned
        if clip is not None:
            scale *= min(1.0, clip / (norm + 1e-6))
        if self.options["maximize"]:
            scale = -scale
        self.t += 1
        for tensors, gradients, hyper in zip(self.tensors, grads, self.hypers, strict=True):
            for tensor, gradient in zip(tensors, gradients, strict=True):
                if gradient is not None:
                    tensor.step(gradient * scale, **hyper, options=self.options)
        return returned

    def all_tensors(self):
        return [tensor for group in self.tensors for tensor in group]
