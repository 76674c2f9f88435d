"""The optimizers that AdamW is compared with: plain SGD, and AdamW in pure Python."""

import numpy as np

from ..reference import adamw_update_list
from .model import Parameters


class ReferenceAdamW:
    """AdamW in pure Python, one number at a time: `reference.adamw_update` on every parameter.

    The formula, with its sources, is at the top of `fused_adamw.reference`. The moments are
    computed in float64, whatever the dtype of the parameters.

    Args:
        parameters: float32 or float64 arrays by name, of any shapes, updated in place.
        lr: learning rate.
        weight_decay: decoupled weight decay.

    Attributes:
        m, v: the moments by name, each a flat list with an entry per element of the parameter.
        t: number of steps taken.
    """

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        self.parameters = parameters
        self.m = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.v = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.t = 0
        self.lr = lr
        self.weight_decay = weight_decay

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place with gradients of the same names and shapes.

        Raises:
            ValueError: the names or a shape differ, with nothing changed.
        """
        _require_like(self.parameters, grads)
        self.t += 1
        for name, parameter in self.parameters.items():
            theta, self.m[name], self.v[name] = adamw_update_list(
                parameter.ravel().tolist(),
                grads[name].ravel().tolist(),
                self.m[name],
                self.v[name],
                self.t,
                lr=self.lr,
                wd=self.weight_decay,
            )
            parameter[...] = np.reshape(theta, parameter.shape)


class SGD:
    """Plain gradient descent, `reference.sgd_update` on whole arrays: one rate, no state::

        theta <- theta - lr g

    Args:
        parameters: float32 or float64 arrays by name, of any shapes, updated in place.
        lr: learning rate.
    """

    def __init__(self, parameters: Parameters, lr: float) -> None:
        self.parameters = parameters
        self.lr = lr

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place with gradients of the same names and shapes.

        Raises:
            ValueError: the names or a shape differ, with nothing changed.
        """
        _require_like(self.parameters, grads)
        for name, parameter in self.parameters.items():
            parameter -= self.lr * grads[name]


def _require_like(parameters: Parameters, grads: Parameters) -> None:
    """Raise ValueError unless gradients have the names and the shapes of the parameters."""
    if grads.keys() != parameters.keys():
        raise ValueError(f"grads must have the names {[*parameters]}; got {[*grads]}")
    for name, parameter in parameters.items():
        if grads[name].shape != parameter.shape:
            raise ValueError(
                f"grads[{name!r}] must have shape {parameter.shape}; got {grads[name].shape}"
            )
