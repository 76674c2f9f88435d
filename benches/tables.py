"""The results of the benches, as Markdown tables that are readable in a terminal too."""

from fused_adamw.bench.environment import (
    BackgroundLoad,
    describe,
    get_environment,
    installed_versions,
)
from fused_adamw.bench.harness import choose_samples
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.bandwidth_bound import BANDWIDTH_BOUND
from fused_adamw.bench.report import COLUMNS, format_row
from fused_adamw.bench.statistics import summarize

OURS = "fused_adamw"  # the baseline of every comparison, whatever step of ours that is


class Results:
    """What was measured; ``loader`` knows what was unavailable."""

    def __init__(self, loader):
        self.loader = loader
        self.background = BackgroundLoad()
        self.blocks = {}  # {comparison: {implementation: {round: seconds}}}
        self.rows = {}  # {title: [{column: text}]}
        self.current = None  # the comparison whose arrays are in memory

    def time_block(self, benchmark, comparison, turn, implementation):
        """Time one block; nothing is recorded where benchmarks are disabled."""
        if self.current is not comparison:
            if self.current is not None:
                self.current.release()
            self.current = comparison
        step = comparison.step(implementation)
        samples, iterations = choose_samples(step)
        benchmark.pedantic(step, rounds=samples, iterations=iterations)
        if benchmark.enabled:
            blocks = self.blocks.setdefault(comparison, {})
            blocks.setdefault(implementation, {})[turn] = benchmark.stats.stats.median

    def add_row(self, title, **columns):
        self.rows.setdefault(title, []).append(columns)

    def markdown(self):
        packages = {"numpy": None}
        for implementation in IMPLEMENTATIONS.values():
            packages |= dict.fromkeys(implementation.packages)
        versions = installed_versions(packages)
        header = describe(get_environment(), self.background.share(), versions)
        parts = [f"- {line}" for line in header]
        columns = [column.replace("\n", " ") for column in COLUMNS]
        for comparison, blocks in self.blocks.items():
            statistics = summarize(comparison, blocks, OURS, BANDWIDTH_BOUND.name)
            rows = [format_row(item, OURS) for item in statistics]
            parts += ["", f"### {comparison.title}", "", *table(columns, rows)]
        for title, rows in self.rows.items():
            texts = [list(row.values()) for row in rows]
            parts += ["", f"### {title}", "", *table(list(rows[0]), texts)]
        unavailable = self.loader.unavailable.items()
        parts += ["", *(f"Unavailable: {name}; {reason}" for name, reason in unavailable)]
        return "\n".join(parts)


def table(columns, rows):
    """Lines of Markdown, padded; the first column is text, the others are numbers."""
    rows = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(f"{x:{'>' if i else '<'}{widths[i]}}" for i, x in enumerate(row)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]
