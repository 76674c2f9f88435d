"""The rules of docs/architecture.md, checked on the text of the sources; nothing is imported.

Each rule lists every place that breaks it. An exception is one line with its reason, and fails too
once nothing needs it.
"""

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from itertools import chain

import pytest
from source_scan import (
    CYTHON,
    PACKAGE,
    PYTHON,
    ROOT,
    C,
    docstring_nodes,
    files,
    functions,
    imports,
    list_comprehensions,
    messages,
    parsed,
    read,
    short,
)

PYTHON_FILES = files("src", suffixes=PYTHON)
CYTHON_FILES = files("src", suffixes=CYTHON)
STUBS = files("src", suffixes={".pyi"})
C_FILES = files("csrc", "src", suffixes=C)
SOURCES = [*PYTHON_FILES, *STUBS, *CYTHON_FILES, *C_FILES]


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


def test_the_scanners_find_the_sources():
    """Against rules that hold because nothing was looked at."""
    assert len(PYTHON_FILES) > 20
    assert len(CYTHON_FILES) > 5
    assert len(C_FILES) > 5
    named = {function.where.rpartition(":")[2] for function in all_functions()}
    assert {"AdamW.step", "fused_adamw_step", "fused_adamw", "KERNEL", "matrices_only"} <= named
    assert len(all_messages()) > 100


# ---------------------------------------------------------------------------- layers

LAYERS = [  # from the bottom; a module imports its own layer and those below
    {"_core", "_ext", "_cgroup"},
    {"_distributed", "_io", "_offload", "_optim", "_torch"},
    {"optimizer", "torch", "offload", "sharded", "checkpoint", "schedules", "reference"}
    | {"runtime", "__init__"},
    {"tiny", "bench", "explain"},
    {"cli", "__main__"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def top_of(module):
    """The module or folder right below fused_adamw."""
    return (*module.split("."), "__init__")[1]


def own_imports(path):
    return [x for x in imports(path) if x.module.split(".")[0] == "fused_adamw"]


def test_every_module_has_a_layer():
    tops = {short(path).split("/")[0].removesuffix(".py") for path in PYTHON_FILES}
    fail_on(sorted(tops - LAYER_OF.keys()), "A module of src/fused_adamw is in LAYERS")


def test_imports_point_down():
    broken = []
    for path in PYTHON_FILES + CYTHON_FILES:
        importer = short(path).split("/")[0].removesuffix(".py")
        for where, line, module in own_imports(path):
            if LAYER_OF[top_of(module)] > LAYER_OF[importer]:
                broken.append(f"{where}:{line}: imports {module}")
    fail_on(broken, "Imports point down: cli -> tiny, bench, explain -> public -> private -> _core")


def test_no_module_imports_itself_in_a_circle():
    graph = defaultdict(set)
    for path in PYTHON_FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        graph[module] |= {x.module for x in own_imports(path)} - {module}
    circles, done = [], set()

    def visit(module, path):
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    fail_on(circles, "No circular imports")


def test_private_modules_are_imported_inside_the_package_only():
    private = re.compile(r"^\s*(?:from|import)\s+fused_adamw(?:\.\w+)*\.(?=_[a-z])|"
                         r"^\s*from\s+fused_adamw(?:\.\w+)*\s+import\s+.*\b_[a-z]")  # fmt: skip
    places = ["benches", "examples", "docs", "README.md", "CONTRIBUTING.md"]
    broken = [
        f"{short(path)}:{number}: {line.strip()}"
        for path in files(*places, suffixes={".py", ".md"})
        for number, line in enumerate(read(path).split("\n"), 1)
        if private.match(line)
    ]
    fail_on(broken, "`_x` is imported inside fused_adamw (and by tests) only")


# ---------------------------------------------------------------------------- dependencies

IMPLEMENTATIONS = "bench/implementations/"
IMPORTERS = {  # of each dependency but NumPy: the folder or the files that import it
    "mpi4py": ["_distributed/mpi.py"],
    "torch": ["torch.py", "_torch/", "offload.py", "_offload/", IMPLEMENTATIONS + "torch_.py"],
    "typer": ["cli/"],
    "rich": ["cli/"],
    "matplotlib": ["cli/"],
    "plotly": ["cli/html_report/"],
    "psutil": ["bench/"],
    "cpuinfo": ["bench/"],
    "bitsandbytes": [IMPLEMENTATIONS],
    "deepspeed": [IMPLEMENTATIONS],
    "jax": [IMPLEMENTATIONS],
    "ml_dtypes": ["bench/"],
    "numba": [IMPLEMENTATIONS],
    "optax": [IMPLEMENTATIONS],
    "torchao": [IMPLEMENTATIONS],
}


def test_an_optional_dependency_is_imported_in_one_place():
    broken = []
    for path in PYTHON_FILES:
        for where, line, module in imports(path):
            package = module.split(".")[0]
            if package in sys.stdlib_module_names or package in ("fused_adamw", "numpy"):
                continue
            places = IMPORTERS.get(package, [])
            if not any(where == p or (p.endswith("/") and where.startswith(p)) for p in places):
                allowed = ", ".join(places) or "no file"
                broken.append(f"{where}:{line}: imports {package}, which {allowed} may")
    fail_on(broken, "An optional dependency is imported in one folder or file")


# ---------------------------------------------------------------------------- sizes

MAX_FILE_LINES, MAX_CODE_LINES, MAX_PARAMETERS = 300, 40, 8

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS = {
    # The public signatures spell out every option, for editors and type checkers.
    "optimizer.py:AdamW.__init__": "public constructor",
    "sharded.py:ShardedAdamW.__init__": "public constructor",
    "torch.py:AdamW.__init__": "public constructor",
    "offload.py:AdamW.__init__": "public constructor",
    "_ext/functional.pxi:fused_adamw": "public function, in the order of the formula",
    "reference.py:adamw_update": "the same signature, in pure Python",
    "reference.py:adamw_update_list": "the same signature, in pure Python",
}


def test_files_fit():
    lengths = {short(path): read(path).count("\n") for path in SOURCES}
    broken = {place: f"{lines} lines" for place, lines in lengths.items() if lines > MAX_FILE_LINES}
    fail_on(without_exceptions(broken, LONG_FILES), f"A file has at most {MAX_FILE_LINES} lines")


@cache
def all_functions():
    return [function for path in SOURCES if path.suffix != ".pyi" for function in functions(path)]


def test_functions_fit_on_a_screen():
    broken = {
        f.where: f"{f.code_lines} lines of code (line {f.line})"
        for f in all_functions()
        if f.code_lines > MAX_CODE_LINES
    }
    rule = f"A function has at most {MAX_CODE_LINES} lines of code"
    fail_on(without_exceptions(broken, LONG_FUNCTIONS), rule)


def test_functions_have_few_parameters():
    broken = {
        f.where: f"{f.parameters} parameters (line {f.line})"
        for f in all_functions()
        if f.parameters > MAX_PARAMETERS
    }
    rule = f"A function has at most {MAX_PARAMETERS} parameters"
    fail_on(without_exceptions(broken, MANY_PARAMETERS), rule)


def test_exceptions_of_size_stay_few():
    assert len(LONG_FILES) + len(LONG_FUNCTIONS) <= 5


# ---------------------------------------------------------------------------- constants

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


# ---------------------------------------------------------------------------- vocabulary

WORDS = {  # what is not written: what to write instead
    r"rooms?": "scratch, staging buffer, space",
    r"houses?": "architecture",
    r"lends?|lending|lent|loans?|lenders?": "exports a buffer, DLPackExchange, PreparedStep",
    r"borrow(?:s|ed|ing)?": "acquire",
    r"held": "bound, kept, stored",
    r"races?|races|racing": "benchmark, comparison",
    r"contests?|contenders?": "comparison, implementation",
    r"peers?": "other implementations, other ranks",
    r"limits?": "bandwidth bound, maximum; Limitations as a heading",
    r"strips?": "shard slice",
    r"stretch(?:es)?": "range",
    r"told": "say who learns what",
    r"agreed": "checked on all ranks",
    r"seats?|seated": "slot",
    r"codes": "dtypes, formats, stored values",
    r"anew": "again, from scratch",
    r"behind": "after",
    r"alike": "both, the same",
    r"of another": "different, does not match",
    r"has not(?! (?:yet|been|\w+ed|set|said)\b)": "has no, lacks",
}
BANNED = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(WORDS)})(?![A-Za-z])", re.I)
LEGITIMATE = [  # another meaning of the word, which is the standard term
    (r"\.[lr]?strip\(", "str.strip"),
    (r"race condition|data race", "of threads"),
    (r"held[-_ ]out", "data that is not trained on"),
    (r"\b(?:GIL|lock) (?:is |is not |must be )?held\b", "of a lock"),
    (r"\b(?:exit|error|status|return|quantization) codes\b", "numbers that stand for something"),
    (
        r"RLIMIT\w*|threadpool_limits|OMP_THREAD_LIMIT|omp_get_thread_limit",
        "names of the system and of a library",
    ),
    (r"\b(?:cgroup|time|memory|size|recursion|CPU)[ _]limits?\b", "a maximum"),
]
LEGITIMATE_IN = {  # where a word has a meaning of its own
    ("codes", "csrc/kernels/formats/"): "the integers that a quantized format stores",
    ("codes", "_ext/dlpack_adapter.pxi"): "the type codes of DLPack",
    (
        "codes",
        "_torch/state.py",
    ): "as in csrc/kernels/formats: exp_avg_code",
    ("limit", "_cgroup.py"): "what Linux calls the quota of a control group",
    ("limits", "_cgroup.py"): "the same",
}
ALLOWED = re.compile("|".join(pattern for pattern, _ in LEGITIMATE), re.I)
PROSE = ["src", "csrc", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benches"]
TEXTS = {".py", ".pyi", ".pyx", ".pxi", ".pxd", ".c", ".h", ".inc", ".md"}


def test_the_words_are_those_of_the_field():
    broken = []
    for path in files(*PROSE, "examples", suffixes=TEXTS):
        for number, line in enumerate(read(path).split("\n"), 1):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", ALLOWED.sub("", line))
            for match in BANNED.finditer(words):
                if any(match[0] == w and short(path).startswith(p) for w, p in LEGITIMATE_IN):
                    continue
                instead = next(text for word, text in WORDS.items() if matches(word, match))
                broken.append(f"{short(path)}:{number}: {match[0]!r} ({instead}): {line.strip()}")
    fail_on(broken, "The vocabulary is that of docs/architecture.md")


def matches(word, match):
    return re.match(rf"(?:{word})(?![A-Za-z])", match.string[match.start() :], re.I)


# ---------------------------------------------------------------------------- messages

SHAPES = [  # one of these, with the argument or the file first
    r"\bmust (?:not )?(?:be|have|match|contain|return|share|hold|name|start|end|come|give|fit)\b",
    r"; got \{",
    r"\bcannot\b",
    r"\b(?:does|do) not (?:match|support|exist|contain|have|fit|name|share|agree)\b",
    r"\b(?:is|are) not (?:supported|available|installed|a|an|found|finite|writable)\b",
    r"\b(?:is|are) (?:empty|missing|corrupt|read-only|too \w+)\b",
    r"\b(?:unknown|unexpected|unsupported|requires?|needs?|mixes|differ\w*|overlaps?|missing)\b",
    r"\b(?:already exists|stores|mismatch|has an?|has no|never ends|became|failed)\b",
    r"\b(?:was|were)(?: not)? saved\b|\bthe checkpoint has\b|\bthis (?:optimizer|release)\b",
    r"\bno such\b|\bnot found\b|\bnot implemented\b|\bnot enough\b",
]
OLD_FORMS = r"; expected|\bis of type\b|\bthere is no(?:ne)?\b|\bit is no\b"
# In `FILE is corrupt or not a fused-adamw checkpoint (DETAIL)` the detail has any shape.
DETAILS = (
    "_io/safetensors_stream.py",
    "_io/checkpoint_schema.py",
)
OTHER_SHAPES = {  # "file: text": why it has none of the shapes
    "_distributed/agreement.py: rank {}: {}": "puts the rank before the message of its error",
    "bench/runner.py: case {} {}": "the second part says what the case needs",
}


@cache
def all_messages():
    """Those of errors that users see, without those that only pass on another text."""
    found = chain.from_iterable(messages(path) for path in PYTHON_FILES + CYTHON_FILES)
    return [
        message
        for message in found
        if message.error != "AssertionError" and re.search("[a-z]", message.text, re.I)
    ]


def test_messages_say_what_must_be():
    broken = {
        f"{m.where}: {m.text}": f"line {m.line}"
        for m in all_messages()
        if m.where not in DETAILS
        if re.search(OLD_FORMS, m.text) or not any(re.search(x, m.text, re.I) for x in SHAPES)
    }
    rule = "A message is `<argument> must be <what>; got <what>`, or has another shape of SHAPES"
    fail_on(without_exceptions(broken, OTHER_SHAPES), rule)


WITHOUT_GOT: dict[str, str] = {}  # "file: text": why it does not repeat what it was given


def test_messages_say_what_was_found():
    """What was found follows `must be ...`, or stands before it in parentheses."""
    found = r"must be .*(?:; got |[;:][^;:]*\{)|\(\{\}\) must be"
    broken = {
        f"{m.where}: {m.text}": f"line {m.line}"
        for m in all_messages()
        if "must be" in m.text and not re.search(found, m.text)
    }
    rule = "`<argument> must be <what>` is followed by `; got <what>`"
    fail_on(without_exceptions(broken, WITHOUT_GOT), rule)


# ---------------------------------------------------------------------------- the documents


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_in_the_documents_lead_to_files(document):
    broken = []
    for path in files(document, suffixes={".md"}):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(path)):
            if (ROOT / "docs").exists() and not (path.parent / target).exists():
                broken.append(f"{short(path)}: {target}")
    fail_on(broken, "A link leads to a file of the repository")


# ---------------------------------------------------------------------------- generated code


def test_lists_of_the_extension_module_are_appended_to():
    broken = [
        f"{short(path)}:{line}" for path in CYTHON_FILES for line in list_comprehensions(path)
    ]
    fail_on(broken, "No list comprehension in Cython, which releases an item twice without memory")
