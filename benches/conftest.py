"""Options, interleaved rounds, and the tables at the end."""

import pytest
from option_types import output_file, positive
from tables import Results

from fused_adamw.bench.implementations import IMPLEMENTATIONS, Loader

RESULTS, LOADER = pytest.StashKey(), pytest.StashKey()

# Scripts of their own, with requirements of their own.
SCRIPTS = ("isas", "mixes", "offload", "page_offsets", "sharded", "threads")
collect_ignore = [f"bench_{name}.py" for name in SCRIPTS]


def pytest_addoption(parser):
    group = parser.getgroup("fused-adamw")
    group.addoption("--rounds", type=positive, default=7, help="rounds of a comparison (default 7)")
    group.addoption(
        "--table", type=output_file, metavar="FILE.md", help="also write the tables to this file"
    )


def pytest_configure(config):
    config.stash[LOADER] = loader = Loader()
    config.add_cleanup(loader.close)
    config.stash[RESULTS] = Results(loader)


def pytest_generate_tests(metafunc):
    """A bench with a comparison runs all comparisons of its module, block by block."""
    config = metafunc.config
    if "comparison" in metafunc.fixturenames:
        comparisons = metafunc.module.comparisons(config.stash[LOADER])
        rounds = config.getoption("rounds")
        blocks = [block for comparison in comparisons for block in comparison.blocks(rounds)]
        ids = [f"{comparison.name}-round{turn}-{name}" for comparison, turn, name in blocks]
        metafunc.parametrize(("comparison", "turn", "implementation"), blocks, ids=ids)


@pytest.fixture
def results(request):
    return request.config.stash[RESULTS]


@pytest.fixture
def available(request):
    """Loads implementations: {name: prepare} of those of the names that are available."""
    loader = request.config.stash[LOADER]
    return lambda *names: {n: p for n in names if (p := loader.load(IMPLEMENTATIONS[n]))}


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not (results.blocks or results.rows):
        return
    markdown = results.markdown()
    terminalreporter.write_line("\n" + markdown)
    if config.getoption("table"):
        config.getoption("table").write_text(markdown + "\n", encoding="utf-8")
