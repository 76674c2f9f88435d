"""Type checkers see every argument of ``fused_adamw.torch.AdamW``."""

import pytest

SCRIPT = """
from fused_adamw.torch import AdamW

AdamW([], learning_rate=0.1)
AdamW([], eps="small")
AdamW([], state_dtype="int4")
AdamW([], ema_decay="slow")
AdamW([], 1e-3, (0.9, 0.99), 1e-8, 0.01, True, maximize=True, fused=True, state_dtype="8bit")
AdamW([], seed=None, ema_decay=0.999)
"""
ERRORS = [  # line of the script, and part of the message
    (4, 'Unexpected keyword argument "learning_rate"'),
    (5, 'Argument "eps"'),
    (6, 'Argument "state_dtype"'),
    (7, 'Argument "ema_decay"'),
]


@pytest.mark.slow
def test_mypy_sees_the_arguments(tmp_path):
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    skip_torch = tmp_path / "mypy.ini"  # which takes minutes
    skip_torch.write_text("[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n")
    options = ["--config-file", str(skip_torch), "--cache-dir", str(tmp_path / "cache")]
    output, _, status = api.run([*options, str(script)])
    errors = [line for line in output.splitlines() if "script.py" in line and "error:" in line]
    assert status == 1
    assert len(errors) == len(ERRORS), output
    for error, (line, message) in zip(errors, ERRORS, strict=True):
        assert f":{line}: " in error
        assert message in error
