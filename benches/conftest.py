"""Options, turns and the tables at the end."""

from pathlib import Path

import pytest
from tables import Results

RESULTS = pytest.StashKey()


def pytest_addoption(parser):
    group = parser.getgroup("fused-adamw")
    group.addoption("--rounds", type=int, default=7, help="turns of each contender (default 7)")
    group.addoption("--table", metavar="FILE.md", help="write the tables to this file too")


def pytest_configure(config):
    config.stash[RESULTS] = Results()


def pytest_generate_tests(metafunc):
    """A bench with a contest runs all contests of its module, block by block."""
    if "contest" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("rounds")
        blocks = [b for contest in metafunc.module.contests() for b in contest.blocks(rounds)]
        ids = [f"{contest.name}-round{turn}-{contender}" for contest, turn, contender in blocks]
        metafunc.parametrize(("contest", "turn", "contender"), blocks, ids=ids)


@pytest.fixture
def results(request):
    return request.config.stash[RESULTS]


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not (results.blocks or results.rows):
        return
    markdown = results.markdown()
    terminalreporter.write_line("\n" + markdown)
    if config.getoption("table"):
        Path(config.getoption("table")).write_text(markdown + "\n", encoding="utf-8")
