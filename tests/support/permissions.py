"""Permissions of files that bind root as they bind other users."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest

VERSION = 0x20080522  # of the capabilities of Linux: two words for each set of them
IGNORE_PERMISSIONS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("thread", ctypes.c_int))


class Capabilities(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inherited"))


@contextmanager
def binding_permissions():
    """A block in which this thread may do with files what their permissions say, whoever runs it.

    Skips the test where that is impossible."""
    if os.name == "nt":
        pytest.skip("permissions do not bind in this way on Windows")
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("permissions do not bind root")
    library, header = ctypes.CDLL(None, use_errno=True), Header(VERSION, 0)
    found = (Capabilities * 2)()

    def change(function, ignored):
        found[0].effective = ignored
        if function(ctypes.byref(header), found):
            raise OSError(ctypes.get_errno(), "capabilities cannot be changed")

    change(library.capget, 0)
    before = found[0].effective
    change(library.capset, before & ~IGNORE_PERMISSIONS)
    try:
        yield
    finally:
        change(library.capset, before)
