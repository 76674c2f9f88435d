"""Fixtures of the tests of the core."""

import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arrays(tensor):
    return list(tensor((4, 6), np.float32).arrays)


@pytest.fixture(scope="module")
def setup_py():
    """The names of setup.py, which builds nothing."""
    pytest.importorskip("Cython")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("setuptools.setup", lambda **arguments: None)
        patch.setattr("Cython.Build.cythonize", lambda *args, **kwargs: [])
        return runpy.run_path("setup.py")
