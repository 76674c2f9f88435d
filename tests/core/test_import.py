"""Importing the package while something goes wrong."""

import pytest
from processes import run_python

pytestmark = pytest.mark.slow

# NumPy imports inspect too, and is there already where a notebook or a test has imported it.
FAIL = """
import sys
import numpy
for name in [name for name in sys.modules if name == "inspect"]:
    del sys.modules[name]

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "inspect":
            raise {error}("while inspect is imported")

sys.meta_path.insert(0, Interrupted())
try:
    import {module}
except {error} as error:
    print("raised:", error)
sys.meta_path.pop(0)
import {module}
print("imported:", {module}.__name__)
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ImportError", "MemoryError"])
@pytest.mark.parametrize("module", ["fused_adamw", "fused_adamw._core", "fused_adamw.optimizer"])
def test_an_import_of_inspect_that_fails_is_an_exception(module, error):
    """Not a crash: Cython's modules of the limited API import it without a check. The next import
    works."""
    done = run_python(FAIL.format(error=error, module=module))
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.splitlines() == [
        "raised: while inspect is imported",
        f"imported: {module}",
    ]


def test_ctrl_c_while_the_command_starts(tmp_path):
    """A module of that name that is interrupted, before the standard one on the path."""
    (tmp_path / "inspect.py").write_text("raise KeyboardInterrupt\n")
    code = f"""
import sys
import numpy
sys.modules.pop("inspect", None)
sys.path.insert(0, {str(tmp_path)!r})
import fused_adamw
"""
    done = run_python(code)
    status_of_windows = 0xC000013A
    as_python_ends_then = (1, -2, 130, status_of_windows)
    assert done.returncode in as_python_ends_then, (done.returncode, done.stderr)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_package_without_its_metadata():
    """As in a program that PyInstaller has packed."""
    done = run_python("""
import importlib.metadata
importlib.metadata.Distribution.discover = lambda **context: iter(())
import fused_adamw
print(fused_adamw.__version__, fused_adamw.runtime_info()["version"])
""")
    assert done.stdout == "unknown unknown\n", done.stderr
