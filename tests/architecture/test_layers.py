"""Imports point down the layers; optional dependencies are imported in one place."""

import re
import sys
from collections import defaultdict

from source_rules import CYTHON_FILES, IMPLEMENTATIONS, PYTHON_FILES, fail_on
from source_scan import PACKAGE, files, imports, read, short

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


# ---- dependencies

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
