"""``DeepSpeedCPUAdam`` of DeepSpeed."""

import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..harness import Prepare
from ..suppress_output import suppress_output
from .base import ADAMW_ARGUMENTS, Implementation
from .storage import FLOAT32_ONLY
from .torch_ import adapt_optimizer, torch_threads

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


@contextmanager
def deepspeed_setup() -> Iterator[None]:
    """Set PyTorch's threads, disable DeepSpeed's logger, and put ninja on the search path.

    ninja is installed beside the Python that runs, whose folder need not be on the path.
    """
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), path))
    try:
        _import_only()
        with torch_threads(), _logger_disabled():
            yield
    finally:
        os.environ["PATH"] = path


def _import_only() -> None:
    """Import DeepSpeed without the environment variable that it sets: with that, each step of
    PyTorch's own optimizers asks a library of NVIDIA for devices, which takes longer than the step
    where there are none."""
    before = os.environ.get(NVML_CHECK)
    import_module("deepspeed")
    os.environ.pop(NVML_CHECK, None)
    if before is not None:
        os.environ[NVML_CHECK] = before


@contextmanager
def _logger_disabled() -> Iterator[None]:
    from deepspeed.utils import logger

    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def load_cpu_adam() -> Prepare:
    """DeepSpeed compiles it when it is first used, which takes about a minute."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder

    CPUAdamBuilder().load()

    def make(leaves: list[Any]) -> Any:
        with suppress_output():
            return DeepSpeedCPUAdam(leaves, **ADAMW_ARGUMENTS, adamw_mode=True)

    return adapt_optimizer(make, int)


DEEPSPEED = Implementation(
    "deepspeed",
    load_cpu_adam,
    ("deepspeed",),
    "pip install deepspeed ninja, and a C++ compiler",
    setup=deepspeed_setup,
    **FLOAT32_ONLY,
)
