"""The optimizers that AdamW is compared with: plain SGD, and AdamW in pure Python."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._optim.schedule_arguments import check_rate
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

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """

    def __init__(self, parameters: Parameters, lr: float, weight_decay: float) -> None:
        _check_parameters(parameters)
        self.parameters = parameters
        self.m = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.v = {name: [0.0] * parameter.size for name, parameter in parameters.items()}
        self.t = 0
        self.lr = check_rate("lr", lr)
        self.weight_decay = check_rate("weight_decay", weight_decay)

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place with gradients of the same names and shapes.

        Raises:
            TypeError: a gradient is not an array of float32 or float64, with nothing changed.
            ValueError: the names or a shape differ, with nothing changed.
        """
        _check_gradients(self.parameters, grads)
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

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """

    def __init__(self, parameters: Parameters, lr: float) -> None:
        _check_parameters(parameters)
        self.parameters = parameters
        self.lr = check_rate("lr", lr)

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place with gradients of the same names and shapes.

        Raises:
            TypeError: a gradient is not an array of float32 or float64, with nothing changed.
            ValueError: the names or a shape differ, with nothing changed.
        """
        _check_gradients(self.parameters, grads)
        for name, parameter in self.parameters.items():
            parameter -= self.lr * grads[name]


def _check_parameters(parameters: Parameters) -> None:
    """Raise TypeError or ValueError unless these are arrays that can be updated in place."""
    _check_arrays("parameters", parameters)
    for name, parameter in parameters.items():
        if not parameter.flags.writeable:
            raise ValueError(
                f"parameters[{name!r}] must be writable, since it is updated in place; got a "
                "read-only array"
            )


def _check_gradients(parameters: Parameters, grads: Parameters) -> None:
    """Raise TypeError or ValueError unless these are arrays with the names and the shapes of the
    parameters."""
    _check_arrays("grads", grads)
    if grads.keys() != parameters.keys():
        raise ValueError(f"grads must have the names {[*parameters]}; got {[*grads]}")
    for name, parameter in parameters.items():
        if grads[name].shape != parameter.shape:
            raise ValueError(
                f"grads[{name!r}] must have shape {parameter.shape}; got {grads[name].shape}"
            )


def _check_arrays(argument: str, arrays: Any) -> None:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{argument} must be a mapping of arrays; got {type(arrays).__name__}")
    for name, array in arrays.items():
        dtype = getattr(array, "dtype", None)
        is_plain = isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
        if not is_plain or dtype not in (np.float32, np.float64):
            found = f"dtype {dtype}" if is_plain else type(array).__name__
            raise TypeError(
                f"{argument}[{name!r}] must be a NumPy array of float32 or float64; got {found}"
            )
