"""Chooses the text of a section by the type of its numbers."""

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import RenderableType

from ...explain.adamw import AdamWUpdates
from ...explain.backward import Backward
from ...explain.forward import Forward
from ...explain.parameters import Parameters
from ...explain.rates import Rates
from ...explain.scale import Scale
from .adamw import adamw_text
from .backward import backward_text
from .forward import forward_text
from .parameters import parameters_text
from .rates import rates_text
from .scale import scale_text

TEXTS: dict[type, Callable[[Any], Iterator[RenderableType]]] = {
    AdamWUpdates: adamw_text,
    Rates: rates_text,
    Parameters: parameters_text,
    Forward: forward_text,
    Backward: backward_text,
    Scale: scale_text,
}


def render(result: Any) -> Iterator[RenderableType]:
    """Yield what to print of a section."""
    return TEXTS[type(result)](result)
