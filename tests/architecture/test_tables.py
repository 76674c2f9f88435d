"""Constants, formats and options are named in their tables only."""

import ast
import re

from source_rules import (
    C_FILES,
    CYTHON_FILES,
    IMPLEMENTATIONS,
    PYTHON_FILES,
    fail_on,
    without_exceptions,
)
from source_scan import ROOT, docstring_nodes, parsed, read, short

# What csrc defines and `_core` exports: BLOCK, CHUNK, MIN_ELEMENTS_PER_THREAD, and the number of
# steps of the 8-bit scale, which nothing outside of csrc needs.
C_CONSTANTS = {256, 16384, 32768, 253}
SAME_NUMBER: dict[str, str] = {}  # "file:line text": why it is not the constant of C
FORMAT_NAME = re.compile(r"8bit|8BIT")
NAMES_OF_FORMATS = {  # where one may stand, apart from Literal types and docstrings
    IMPLEMENTATIONS: "a row says which of our formats it compares with another library's",
}


def folded(node):
    """The value of a constant integer expression such as 1 << 14; else None."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        left, right = folded(node.left), folded(node.right)
        if left is not None and right is not None:
            if isinstance(node.op, ast.LShift) and right < 64:
                return left << right
            if isinstance(node.op, ast.Pow) and 0 <= right < 64:
                return left**right
            if isinstance(node.op, ast.Mult):
                return left * right
    return None


def test_constants_of_c_are_not_copied():
    broken = {}
    for path in PYTHON_FILES:
        lines = read(path).split("\n")
        for node in ast.walk(parsed(path)):
            if folded(node) in C_CONSTANTS:
                place = f"{short(path)}: {lines[node.lineno - 1].strip()}"
                broken[place] = f"{folded(node)} (line {node.lineno})"
    for path in CYTHON_FILES:
        for number, line in enumerate(read(path).split("\n"), 1):
            code = re.sub(r'#.*|"[^"]*"', "", line)
            if C_CONSTANTS.intersection(map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", code))):
                broken[f"{short(path)}: {line.strip()}"] = f"line {number}"
    rule = "A constant of C is imported from _core, never copied"
    fail_on(without_exceptions(broken, SAME_NUMBER), rule)


def test_formats_are_named_in_their_table_only():
    broken = []
    for path in PYTHON_FILES:
        if any(short(path).startswith(place) for place in NAMES_OF_FORMATS):
            continue
        tree = parsed(path)
        excused = docstring_nodes(tree) | {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal")
            for inner in ast.walk(node)
        }
        broken += [
            f"{short(path)}:{node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in excused
            and FORMAT_NAME.search(node.value)
        ]
    for path in CYTHON_FILES:
        code = re.sub(r'"""(?:[^"]|"(?!""))*"""|#.*', lambda m: "\n" * m[0].count("\n"), read(path))
        broken += [
            f"{short(path)}:{number}: {line.strip()}"
            for number, line in enumerate(code.split("\n"), 1)
            if FORMAT_NAME.search(line)
        ]
    fail_on(broken, "State formats are rows of a table; code asks the row, not for the name")


BUFFER_ROW = re.compile(r'^ +ROW\((\w+), (\w+), "(\w+)", \d, \d, \d\)', re.M)
NAMES_OF_OPTIONS = {  # where an option with a buffer is named: elsewhere code goes through the rows
    "csrc/formats.h": "the table of the buffers",
    "csrc/kernels/adamw.inc": "the formula",
    "_optim/options.py": "the table of the options",
    "optimizer.py": "signature and docstring",
    "_optim/decoded_state.py": "accessors of AdamW",
    "sharded.py": "signature and accessor",
    "torch.py": "signature and docstring",
    "offload.py": "signature and docstring",
    "_torch/fallback.py": "PyTorch's own amsgrad, which its functions are given",
    "_torch/state.py": "the name that PyTorch gives v_max",
}


def test_options_with_a_buffer_are_named_in_few_places():
    """In code without docstrings and comments. (``amsgrad`` is also a column of state formats.)"""
    rows = BUFFER_ROW.findall(read(ROOT / "csrc" / "formats.h"))
    assert len(rows) >= 2
    names = {name for row in rows for name in row} - {"amsgrad"}
    name = re.compile(rf"\b(?:has_|gather_)?(?:{'|'.join(names)})\b")
    library = [path for path in C_FILES if "tests" not in path.parts]
    private = [p for p in PYTHON_FILES if not short(p).startswith(("bench/", "cli/", "tiny/"))]
    broken = {}
    for path in library + private + CYTHON_FILES:
        comments = r'"""(?:[^"]|"(?!""))*"""|#(?!define|if|undef|include).*|/\*(?:[^*]|\*(?!/))*\*/'
        if name.search(re.sub(comments, "", read(path))):
            broken[short(path)] = "names an option or its buffer"
    fail_on(
        without_exceptions(broken, NAMES_OF_OPTIONS), "Options with a buffer are rows of two tables"
    )


def test_c_asks_no_tensor_which_format_it_has():
    broken = [
        f"{short(path)}:{number}: {line.strip()}"
        for path in C_FILES
        if not short(path).startswith(("csrc/formats", "csrc/kernels/formats/", "csrc/tests/"))
        for number, line in enumerate(read(path).split("\n"), 1)
        if re.search(r"([=!]=|case) *FUSED_ADAMW_(STATE_|8BIT)(?!##)", line)
    ]
    fail_on(broken, "A state format is a row and a file: no comparison with its number elsewhere")
