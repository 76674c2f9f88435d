"""What the documentation says to install before the benches is all that they import."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHES = ROOT / "benches"
PROJECTS = {"sklearn": "scikit-learn"}  # of modules with other names

if not BENCHES.exists():
    pytest.skip("this copy of the tests comes without the benches", allow_module_level=True)


def project_of(requirement):
    return re.match(r"[\w.-]*", requirement)[0].lower().replace("-", "_")


def installed_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (BENCHES / "requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    [extras] = [line for line in requirements if line.startswith(".[")]
    for extra in extras[2:-1].split(","):
        requirements += project["optional-dependencies"][extra]
    return {project_of(x) for x in requirements + project["dependencies"] if x[0] != "."}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted(BENCHES.glob("*.py")), ids=lambda path: path.name)
def test_what_a_bench_imports_is_installed(path):
    local = {x.stem for x in [*BENCHES.glob("*.py"), *(ROOT / "examples").glob("*.py")]}
    found = set(imported_modules(path)) - local - {"fused_adamw"} - sys.stdlib_module_names
    expected = {project_of(PROJECTS.get(name, name)) for name in found}
    assert expected <= installed_projects() | {"pytest"}
