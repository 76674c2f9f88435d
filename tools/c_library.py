"""The sources of the C library and of its tests, and the warnings that are errors in them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc").glob("*.c"))
TESTS = sorted((ROOT / "csrc" / "tests").glob("*.c"))
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
