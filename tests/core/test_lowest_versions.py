"""The lowest versions that pyproject.toml allows: one for each requirement that the tests have."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_requirement_of_the_tests_has_a_lowest_version():
    command = [sys.executable, ROOT / "tools" / "lowest_versions.py"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [x for name in ("test", "torch", "examples") for x in extras[name]]
    names = {name.split(">=")[0] for name in wanted if not name.startswith(project["name"])}
    assert names
    assert names <= found.keys()
    assert {"Cython", "numpy", "setuptools"} <= found.keys()
