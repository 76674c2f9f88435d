"""The tutorials of docs/, run without Jupyter."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"  # not in every source distribution
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::[^\n]*\n)*)\n?(.*?)^```$", re.S | re.M)


def code_of(notebook):
    """The code of each cell that is executed."""
    cells = CELL.findall(notebook.read_text(encoding="utf-8"))
    return [code for options, code in cells if "skip-execution" not in options]


def printed_by(notebook):
    """What the cells print, run one after another in one namespace; they may also raise."""
    printed, names = io.StringIO(), {}
    with redirect_stdout(printed):
        for code in code_of(notebook):
            exec(compile(code, str(notebook), "exec"), names)
    return printed.getvalue()
