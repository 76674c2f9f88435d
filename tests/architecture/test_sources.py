"""The scanners find the sources; Cython code has no list comprehensions; a name is one class."""

import re
from collections import defaultdict

from source_rules import C_FILES, CYTHON_FILES, PYTHON_FILES, all_functions, all_messages, fail_on
from source_scan import ROOT, list_comprehensions, read, short

EXT = ROOT / "src" / "fused_adamw" / "_ext"


def test_the_scanners_find_the_sources():
    """Against rules that hold because nothing was looked at."""
    assert len(PYTHON_FILES) > 20
    assert len(CYTHON_FILES) > 5
    assert len(C_FILES) > 5
    named = {function.where.rpartition(":")[2] for function in all_functions()}
    assert {"AdamW.step", "fused_adamw_step", "fused_adamw", "KERNEL", "matrices_only"} <= named
    assert len(all_messages()) > 100


def test_lists_of_the_extension_module_are_appended_to():
    broken = [
        f"{short(path)}:{line}" for path in CYTHON_FILES for line in list_comprehensions(path)
    ]
    fail_on(broken, "No list comprehension in Cython, which releases an item twice without memory")


def test_a_class_has_a_name_of_its_own():
    """But for the class of each framework, which has the name of that of PyTorch."""
    found = defaultdict(list)
    for path in PYTHON_FILES + CYTHON_FILES:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^(?:cdef )?class (\w+)", text, re.MULTILINE):
            found[name].append(short(path))
    assert len(found.pop("AdamW")) == 3
    broken = [f"{name}: {', '.join(paths)}" for name, paths in found.items() if len(paths) > 1]
    fail_on(broken, "The name of a class has one meaning")


def test_the_files_of_the_extension_module_are_listed_in_the_order_of_inclusion():
    text = read(EXT / "core.pyx")
    included = re.findall(r'^include "(\w+\.pxi)"$', text, re.MULTILINE)
    assert included == re.findall(r"^    (\w+\.pxi)  ", text, re.MULTILINE)
    assert sorted(included) == sorted(path.name for path in EXT.glob("*.pxi"))


def test_whether_pytorch_compiles_is_asked_in_one_file():
    """By one function of PyTorch's, as there are several, which differ while it exports a model."""
    asked = {
        (short(path), name)
        for path in PYTHON_FILES
        for name in re.findall(r"is_(?:dynamo_)?compiling\b", path.read_text(encoding="utf-8"))
    }
    assert asked == {("_torch/hooks.py", "is_dynamo_compiling")}
