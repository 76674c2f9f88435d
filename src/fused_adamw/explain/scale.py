"""The same update at scale: named models, the bytes of their state, and the seconds of a step."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from .._optim.mixes import Mix, Traffic, all_mixes
from ..bench.harness import time_block
from ..bench.mixes import Workload, available_mixes
from ..bench.workloads import GPT2_LARGE, GPT2_SMALL, Shapes, count_parameters, gpt2
from ..runtime import runtime_info
from ..tiny.memory import memory_bound

SAMPLE_PARAMETERS = 2**24  # the array on which the bandwidth of every mix is measured
MEASURING_SECONDS = 60.0  # after which no measurement of a whole model begins

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with what is measured next, the number of measurements done, and of all."""


def llama2(layers: int, width: int, kv_width: int, d_ff: int, vocabulary: int = 32000) -> Shapes:
    """The shapes of the tensors of LLaMA 2 (Touvron et al. 2023)."""
    attention: Shapes = [(width, width), (width, kv_width), (width, kv_width), (width, width)]
    block: Shapes = [*attention, *[(width, d_ff)] * 2, (d_ff, width), (width,), (width,)]
    return [(vocabulary, width), *(list(block) * layers), (width,), (vocabulary, width)]


@dataclass(frozen=True)
class NamedModel:
    """A model by name.

    Attributes:
        size: as it is called.
        shapes: of its tensors.
    """

    name: str
    size: str
    shapes: Shapes

    @property
    def parameters(self) -> int:
        """Their number."""
        return count_parameters(self.shapes)


MODELS = (
    NamedModel("GPT-2 Small", "124 million", GPT2_SMALL),
    NamedModel("GPT-2 Large", "774 million", GPT2_LARGE),
    NamedModel("LLaMA 2 70B", "70 billion", llama2(80, 8192, 1024, 28672)),
    NamedModel("GPT-3 175B", "175 billion", gpt2(96, 12288, context=2048)),
)


@dataclass(frozen=True)
class Cost:
    """What a step of a model costs in a mix.

    Attributes:
        mix: name of the mix: parameters, master weights, moments.
        state_bytes: of AdamW's state.
        bytes_moved: read and written by a step.
        seconds: of a step on this machine.
        measured: whether the step was timed; else the seconds follow from `bytes_moved` and a
            measured bandwidth.
    """

    model: str
    mix: str
    state_bytes: int
    bytes_moved: int
    seconds: float
    measured: bool


@dataclass(frozen=True)
class ModelSize:
    """A model in the result."""

    name: str
    size: str
    parameters: int


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second of a step.

    Attributes:
        mix: the mix that is stepped. Where this machine lacks what it needs, as ml_dtypes for
            bfloat16 parameters, `measured` is false and the bandwidth is that of float32.
        parameters: their number.
    """

    mix: str
    bytes_per_second: float
    parameters: int
    measured: bool = True


@dataclass(frozen=True)
class Scale:
    """The section."""

    num_threads: int
    memory_bytes: int  # the most that this process can have
    models: list[ModelSize]
    bandwidths: list[Bandwidth]
    costs: list[Cost]


def explain_scale(on_progress: Progress = lambda *_: None) -> Scale:
    """Compute the section; it times steps for a minute or so.

    The bandwidth of each mix is measured first, on one array, then the models that fit in memory,
    the smallest first, until `MEASURING_SECONDS` have passed: memory that is written for the first
    time can take longer than the steps. What is not timed is computed from the bandwidth of its
    mix, that of the largest model that has been timed.
    """
    traffic = available_mixes()
    mixes = [mix for mix in all_mixes() if mix.compute_dtype == "float32"]
    timer = _Timer({mix: traffic[mix] for mix in mixes if mix in traffic}, on_progress)
    bandwidths, measured = timer.run()
    float32 = next(iter(bandwidths.values()))
    for mix in mixes:
        if mix not in bandwidths:
            bandwidths[mix] = replace(float32, mix=mix.name, measured=False)
    bandwidths = {mix: bandwidths[mix] for mix in mixes}
    return Scale(
        timer.threads,
        memory_bound(),
        [ModelSize(model.name, model.size, model.parameters) for model in MODELS],
        list(bandwidths.values()),
        [cost for model in MODELS for cost in _costs(model, bandwidths, measured)],
    )


Measured: TypeAlias = dict[tuple[Mix, str], float]
"""Seconds of a step by mix and name of the model."""


class _Timer:
    def __init__(self, mixes: Mapping[Mix, Traffic], on_progress: Progress) -> None:
        self.mixes, self.on_progress = mixes, on_progress
        self.threads = runtime_info()["num_threads"]

    def run(self) -> tuple[dict[Mix, Bandwidth], Measured]:
        jobs = self._jobs()
        total = len(self.mixes) + len(jobs)
        bandwidths: dict[Mix, Bandwidth] = {}
        for done, mix in enumerate(self.mixes):
            self.on_progress(mix.name, done, total)
            _, bandwidths[mix] = self._time(mix, [(SAMPLE_PARAMETERS,)])
        measured: Measured = {}
        end = perf_counter() + MEASURING_SECONDS
        for done, (mix, model) in enumerate(jobs, start=len(self.mixes)):
            if perf_counter() > end:
                break
            self.on_progress(f"{model.name}, {mix.name}", done, total)
            measured[mix, model.name], bandwidths[mix] = self._time(mix, model.shapes)
        self.on_progress("", total, total)
        return bandwidths, measured

    def _jobs(self) -> list[tuple[Mix, NamedModel]]:
        """Return what fits in memory; the models are in the order of their size."""
        fits = _fits()
        return [
            (mix, model)
            for model in MODELS
            for mix, traffic in self.mixes.items()
            if fits(traffic.bytes_kept * model.parameters)
        ]

    def _time(self, mix: Mix, shapes: Shapes) -> tuple[float, Bandwidth]:
        traffic, parameters = self.mixes[mix], count_parameters(shapes)
        step = Workload(mix, traffic, shapes).step(self.threads)
        step()  # the pages of the state are written for the first time
        seconds = time_block(step)
        rate = traffic.bytes_moved * parameters / seconds
        return seconds, Bandwidth(mix.name, rate, parameters)


def _costs(
    model: NamedModel, bandwidths: Mapping[Mix, Bandwidth], measured: Measured
) -> Iterator[Cost]:
    for mix, bandwidth in bandwidths.items():
        traffic = mix.traffic(model.shapes)
        state, moved = traffic.total_state, traffic.total_moved
        seconds = measured.get((mix, model.name))
        if seconds is None:
            computed = moved / bandwidth.bytes_per_second
            yield Cost(model.name, mix.name, state, moved, computed, measured=False)
        else:
            yield Cost(model.name, mix.name, state, moved, seconds, measured=True)


def _fits() -> Callable[[float], bool]:
    """Return whether there is memory for a number of bytes."""
    try:
        from ..bench.environment import fits_in_memory
    except ModuleNotFoundError:  # psutil is in the extra [bench]
        return lambda nbytes: nbytes < memory_bound() / 2
    return fits_in_memory
