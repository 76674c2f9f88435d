"""What is done with a chunk that has arrived in host memory."""

from functools import lru_cache

import torch
from torch import Tensor

from .._core import CHUNK, PreparedStep, sums_of_squares
from .._torch.dispatch import EXCHANGE
from .._torch.state import GroupTensors, state_names
from .chunk import Chunk, Piece, SumJob, UpdateJob
from .recipe import Recipe
from .ring import Slot
from .twin import new_state


def add_squares(chunk: Chunk) -> None:
    """Put the sums of squares of the gradients in their places."""
    jobs = [piece.job for piece in chunk.pieces if isinstance(piece.job, SumJob)]
    grads = [piece.of(chunk.slot.grads) for piece in chunk.pieces]
    found = sums_of_squares(EXCHANGE, grads, jobs[0].num_threads)
    at = 0
    for piece, job in zip(chunk.pieces, jobs, strict=True):
        first, count = piece.begin // CHUNK, -(-(piece.end - piece.begin) // CHUNK)
        job.sums[first : first + count] = found[at : at + count]
        at += count


def update(chunk: Chunk) -> None:
    """Update the parameters where they are, in the slot, and their twins."""
    tensors, indices, offsets = GroupTensors([], [], [], {}), [], []
    for piece in chunk.pieces:
        job = _update_of(piece)
        params = piece.of(chunk.slot.params)
        if job.fresh:
            job.twin.start_part(params, piece.begin, piece.end, job.fresh)
        tensors.params.append(params)
        tensors.grads.append(piece.of(chunk.slot.grads))
        tensors.steps.append(torch.tensor(job.t, dtype=torch.float64))
        for role in state_names(*job.twin.kind):
            part = job.twin.part(role, piece.begin, piece.end)
            tensors.state.setdefault(role, []).append(part)
        indices.append(job.twin.index)
        offsets.append(piece.begin)
    job = _update_of(chunk.pieces[0])
    prepared = _prepare(tensors, job.recipe, job.clip, indices, offsets)
    if prepared.unsupported:
        raise RuntimeError(f"parameters {indices} cannot be updated: the kernels refused a chunk")
    prepared.step()


def copies_to_host(pieces: list[Piece], slot: Slot) -> list[tuple[Tensor, Tensor]]:
    """Gradients, and for updates parameters too: the host keeps no parameters."""
    pairs = [(piece.of(slot.grads), piece.grad()) for piece in pieces]
    if isinstance(pieces[0].job, UpdateJob):
        pairs += [(piece.of(slot.params), piece.params()) for piece in pieces]
    return pairs


def copies_to_device(chunk: Chunk) -> list[tuple[Tensor, Tensor]]:
    return [(piece.params(), piece.of(chunk.slot.params)) for piece in chunk.pieces]


def is_update(chunk: Chunk) -> bool:
    return isinstance(chunk.pieces[0].job, UpdateJob)


@lru_cache(maxsize=64)
def _sample(dtype: torch.dtype, recipe: Recipe) -> GroupTensors:
    """A parameter of one element."""
    p = torch.zeros(1, dtype=dtype)
    state = new_state(p, recipe.kind)
    arrays = {role: [state[name]] for role, name in state_names(*recipe.kind).items()}
    return GroupTensors([p], [torch.zeros_like(p)], [torch.zeros(())], arrays)


def rehearse(dtype: torch.dtype, recipe: Recipe, t: float) -> None:
    """Raise what the update of such a parameter after ``t`` steps would raise."""
    sample = _sample(dtype, recipe)
    sample.steps[0].fill_(t)
    if _prepare(sample, recipe, 1.0, [0], [0]).unsupported:
        raise TypeError(
            f"{dtype} parameters cannot have moments in {recipe.kind.format} after {t} steps"
        )


def _prepare(
    tensors: GroupTensors, recipe: Recipe, clip: float, indices: list[int], offsets: list[int]
) -> PreparedStep:
    return PreparedStep(
        EXCHANGE,
        tensors,
        hyper=recipe.hyper,
        maximize=recipe.maximize,
        num_threads=recipe.num_threads,
        state_format=recipe.kind.format,
        grad_scale=recipe.grad_scale,
        param_indices=indices,
        seed=recipe.seed,
        element_offsets=offsets,
        clip=clip,
    )


def _update_of(piece: Piece) -> UpdateJob:
    assert isinstance(piece.job, UpdateJob)
    return piece.job
