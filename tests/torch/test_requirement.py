"""Importing the classes for PyTorch where it is missing or too old."""

import tomllib
from pathlib import Path

import pytest
from processes import run_python

pytest.importorskip("torch", minversion="2.10")

from fused_adamw._torch.requirement import LOWEST

pytestmark = pytest.mark.slow

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
MODULES = ["fused_adamw.torch", "fused_adamw.offload"]
INSTALL = 'pip install "fused-adamw[torch]"'
WITHOUT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
"""
WITH_VERSION = "import torch; torch.__version__ = type(torch.__version__)({version!r})\n"
IMPORT = """
try:
    import {module}
    print("imported")
except ImportError as error:
    print(type(error).__name__, error.name)
    print(error)
"""


def imported(module, before):
    done = run_python(before + IMPORT.format(module=module))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_without_pytorch(module):
    found = imported(module, WITHOUT.format(missing="torch"))
    message = f"optimizers for PyTorch tensors require PyTorch 2.10 or later: {INSTALL}"
    assert found == ["ModuleNotFoundError torch", f"{message} (No module named 'torch')"]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("version", ["1.13.1+cu117", "2.9.1"])
def test_an_older_pytorch(module, version):
    found = imported(module, WITH_VERSION.format(version=version))
    message = f"PyTorch must be 2.10 or later; got {version}: {INSTALL}"
    assert found == ["ImportError torch", message]


@pytest.mark.parametrize("version", ["2.10.0a0+gitabc", "2.100.0.dev20300101", "3.0"])
def test_builds_before_a_release_and_later_ones_will_do(version):
    assert imported("fused_adamw.torch", WITH_VERSION.format(version=version)) == ["imported"]


def test_what_pytorch_lacks_itself_is_its_own_error():
    found = imported("fused_adamw.torch", WITHOUT.format(missing="torch._C"))
    assert found[0] != "ModuleNotFoundError torch"
    assert "fused-adamw[torch]" not in found[1]


@pytest.mark.skipif(not PYPROJECT.exists(), reason="this copy of the tests comes without it")
def test_it_is_the_version_of_the_extra():
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["torch"] == [f"torch>={LOWEST}"]
