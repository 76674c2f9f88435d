"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

    python tools/lowest_versions.py >lowest.txt
    pip install -c lowest.txt ".[test,torch]"

The requirements of the build are among them. A requirement without a lower bound is an error: it
would be tested with the newest version only.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,-]+\])?(?P<version>[^;]*)")
TOOLS = ("dev", "docs")  # they do not run with the tests


def lowest_versions(pyproject: dict[str, object]) -> Iterator[str]:
    """A line ``name==version`` for each requirement."""
    for requirement in requirements(pyproject):
        found = REQUIREMENT.match(requirement)
        assert found is not None, requirement
        if found["name"] == pyproject["project"]["name"]:  # its own extras
            continue
        bound = re.fullmatch(r"\s*>=\s*([\d.]+)\s*", found["version"])
        if bound is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound")
        yield f"{found['name']}=={bound[1]}"


def requirements(pyproject: dict[str, object]) -> Iterator[str]:
    project = pyproject["project"]
    yield from pyproject["build-system"]["requires"]
    yield from project["dependencies"]
    for extra, listed in project["optional-dependencies"].items():
        if extra not in TOOLS:
            yield from listed


if __name__ == "__main__":
    print(*sorted(set(lowest_versions(tomllib.loads(PYPROJECT.read_text())))), sep="\n")
