"""Warnings name the line of the user's program."""

from pathlib import Path

import pytest

from fused_adamw._optim import user_warnings

PACKAGE = Path(user_warnings.__file__).parents[1]


@pytest.mark.parametrize(
    ("folder", "passed"),
    [
        (PACKAGE, True),
        (f"{PACKAGE}_project", False),
        ("/lib/torch", True),
        ("/lib/torchtune", False),
    ],
)
def test_the_line_is_not_in_a_folder_that_is_passed_over(folder, passed):
    name = str(Path(folder, "train.py"))
    scope = {"warn_user": user_warnings.warn_user}
    code = "def train():\n    warn_user('attention', through=['/lib/torch'])"
    exec(compile(code, name, "exec"), scope)
    with pytest.warns(UserWarning, match="attention") as caught:
        scope["train"]()
    assert caught[0].filename == (__file__ if passed else name)
