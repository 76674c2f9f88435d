"""What the tests of the rules of docs/architecture.md share: the sources, what is broken."""

import re
from functools import cache
from itertools import chain

import pytest
from source_scan import CYTHON, PYTHON, C, files, functions, messages

PYTHON_FILES = files("src", suffixes=PYTHON)
CYTHON_FILES = files("src", suffixes=CYTHON)
STUBS = files("src", suffixes={".pyi"})
C_FILES = files("csrc", "src", suffixes=C)
SOURCES = [*PYTHON_FILES, *STUBS, *CYTHON_FILES, *C_FILES]
IMPLEMENTATIONS = "bench/implementations/"


def fail_on(broken, rule):
    if broken:
        listed = "\n  ".join(map(str, broken))
        pytest.fail(f"{rule}. Not so in {len(broken)} place(s):\n  {listed}", pytrace=False)


def without_exceptions(broken, exceptions):
    """`broken`: {place: what is wrong}. What remains, and exceptions that nothing needs."""
    remaining = [f"{place}: {wrong}" for place, wrong in broken.items() if place not in exceptions]
    return remaining + [
        f"{place}: is no longer an exception" for place in exceptions.keys() - broken
    ]


@cache
def all_functions():
    return [function for path in SOURCES if path.suffix != ".pyi" for function in functions(path)]


@cache
def all_messages():
    """Those of errors that users see, without those that only pass on another text."""
    found = chain.from_iterable(messages(path) for path in PYTHON_FILES + CYTHON_FILES)
    return [
        message
        for message in found
        if message.error != "AssertionError" and re.search("[a-z]", message.text, re.I)
    ]
