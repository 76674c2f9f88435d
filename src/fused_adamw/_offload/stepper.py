"""What is done with a bundle that has arrived in host memory."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import CHUNK, step_pieces, sums_of_squares
from .._torch.dispatch import EXCHANGE
from .._torch.state import Kind, state_names
from .host_state import new_state
from .jobs import Bundle, Piece, SumJob, UpdateJob
from .recipe import Recipe
from .ring import Slot


class Pieces(NamedTuple):
    """What ``step_pieces`` steps: lists of one length."""

    params: list[Tensor]
    grads: list[Tensor]
    steps: list[int]
    indices: list[int]
    offsets: list[int]
    state: dict[str, list[Tensor]]
    firsts: list[int]


def add_squares(bundle: Bundle) -> None:
    """Put the sums of squares of the gradients in their places."""
    jobs = [piece.job for piece in bundle.pieces if isinstance(piece.job, SumJob)]
    grads = [piece.of(bundle.slot.grads) for piece in bundle.pieces]
    found = sums_of_squares(EXCHANGE, grads, jobs[0].num_threads)
    at = 0
    for piece, job in zip(bundle.pieces, jobs, strict=True):
        first, count = piece.begin // CHUNK, -(-(piece.end - piece.begin) // CHUNK)
        job.sums[first : first + count] = found[at : at + count]
        at += count


def update(bundle: Bundle) -> None:
    """Update the parameters where they are, in the slot, and their state."""
    pieces = Pieces([], [], [], [], [], {}, [])
    for piece in bundle.pieces:
        job = _update_of(piece)
        params = piece.of(bundle.slot.params)
        if job.fresh or job.unverified:
            job.host_state.start_part(params, piece.begin, piece.end, job.fresh, job.unverified)
        pieces.params.append(params)
        pieces.grads.append(piece.of(bundle.slot.grads))
        pieces.steps.append(job.t)
        pieces.indices.append(job.host_state.index)
        pieces.offsets.append(piece.begin)
        pieces.firsts.append(job.host_state.first)
        for role in state_names(*job.host_state.kind):
            part = job.host_state.part(role, piece.begin, piece.end)
            pieces.state.setdefault(role, []).append(part)
    job = _update_of(bundle.pieces[0])
    if not step_pieces(EXCHANGE, pieces, job.recipe, job.clip):
        raise RuntimeError(f"the kernels do not support the pieces of parameters {pieces.indices}")


def copies_to_host(pieces: list[Piece], slot: Slot) -> list[tuple[Tensor, Tensor]]:
    """Gradients, and for updates parameters too: the host keeps no parameters."""
    pairs = [(piece.of(slot.grads), piece.grad()) for piece in pieces]
    if isinstance(pieces[0].job, UpdateJob):
        pairs += [(piece.of(slot.params), piece.params()) for piece in pieces]
    return pairs


def copies_to_device(bundle: Bundle) -> list[tuple[Tensor, Tensor]]:
    return [(piece.params(), piece.of(bundle.slot.params)) for piece in bundle.pieces]


def is_update(bundle: Bundle) -> bool:
    return isinstance(bundle.pieces[0].job, UpdateJob)


@lru_cache(maxsize=64)
def _sample(dtype: torch.dtype, kind: Kind) -> Pieces:
    """A parameter of one element."""
    p = torch.zeros(1, dtype=dtype, device="cpu")
    state = new_state(p, kind)
    arrays = {role: [state[name]] for role, name in state_names(*kind).items()}
    return Pieces([p], [torch.zeros_like(p)], [0], [0], [0], arrays, [0])


def rehearse(dtype: torch.dtype, recipe: Recipe, t: float) -> None:
    """Raise what the update of such a parameter after ``t`` steps would raise."""
    if not (t >= 0 and t.is_integer()):
        raise TypeError(f"the number of steps of a parameter must be a whole number; got {t}")
    sample = _sample(dtype, recipe.kind)._replace(steps=[int(t)])
    if not step_pieces(EXCHANGE, sample, recipe, run=False):
        raise TypeError(f"{dtype} parameters do not support moments in {recipe.kind.format}")


def _update_of(piece: Piece) -> UpdateJob:
    assert isinstance(piece.job, UpdateJob)
    return piece.job
