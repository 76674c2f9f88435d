"""A plugin of pytest: the tests of ``fused_adamw.torch`` test the class of ``fused_adamw.offload``.

FUSED_ADAMW_SIMULATED=1: with the CPU as a device.
"""

import os

import fused_adamw.torch
from fused_adamw import offload


class AdamW(offload.AdamW):
    """With the defaults of the other class."""

    def __init__(self, *args, state_dtype=None, master_weights=False, **options):
        super().__init__(*args, state_dtype=state_dtype, master_weights=master_weights, **options)


def pytest_configure(config):
    fused_adamw.torch.AdamW = AdamW
    if os.environ.get("FUSED_ADAMW_SIMULATED"):
        lane = offload.CpuLane(0, 1e-5)
        config.simulated = offload.simulated(lane, slots=2, slot_bytes=1 << 18)
        config.simulated.__enter__()
