"""Files, functions and lists of parameters are short."""

from source_rules import SOURCES, all_functions, fail_on, without_exceptions
from source_scan import read, short

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
