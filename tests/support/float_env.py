"""Floating-point environments: what fegetenv and fesetenv read and write, as fenv_t has it."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest

# The offset of the control register in fenv_t (of glibc and of macOS), and its bits.
REGISTERS = {
    "x86_64": (28, {"flush": 0x8040, "up": 0x4000, "down": 0x2000, "to zero": 0x6000}),
    "aarch64": (0, {"flush": 1 << 24, "up": 1 << 22, "down": 2 << 22, "to zero": 3 << 22}),
}
MASKS = {"x86_64": 0x0680, "aarch64": 0}  # of invalid operation, division by zero and overflow
MACHINE = os.uname().machine if hasattr(os, "uname") else ""
MODES = ["flush", "up", "down", "to zero"]

needs_fenv = pytest.mark.skipif(
    not sys.platform.startswith("linux") or MACHINE not in REGISTERS, reason="no known fenv_t"
)


def read():
    environment = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(environment)
    offset = REGISTERS[MACHINE][0]
    return environment, int.from_bytes(environment[offset : offset + 4], sys.byteorder)


def control():
    """The bits that say how to compute, without the status flags of x86."""
    return read()[1] & (0xFFC0 if MACHINE == "x86_64" else 0xFFFFFFFF)


@contextmanager
def float_env(mode):
    """This thread computes in a mode, which what runs in it must not change; "trap" sends SIGFPE
    where an operation is invalid, divides by zero or overflows."""
    before, found = read()
    changed = ctypes.create_string_buffer(before.raw, 64)
    offset, bits = REGISTERS[MACHINE]
    wanted = found & ~MASKS[MACHINE] if mode == "trap" else found | bits[mode]
    changed[offset : offset + 4] = wanted.to_bytes(4, sys.byteorder)
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetenv(changed) == 0
    entered = control()
    try:
        yield
        left = control()
    finally:
        libm.fesetenv(before)
    assert left == entered
