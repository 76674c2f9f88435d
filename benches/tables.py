"""What the benches measured, as Markdown tables that read well in a terminal too."""

from fused_adamw.bench.environment import installed, lines, machine, other_work, processor_ticks
from fused_adamw.bench.harness import plan
from fused_adamw.bench.implementations import MISSING, OURS
from fused_adamw.bench.statistics import COLUMNS, figures

PACKAGES = ("numpy", "torch", "numba", "jax", "optax", "bitsandbytes", "torchao", "ml_dtypes")


class Results:
    def __init__(self):
        self.start = processor_ticks()
        self.blocks = {}  # contest: {contender: {round: seconds}}
        self.rows = {}  # title: [{column: text}]

    def time_block(self, benchmark, contest, turn, contender):
        """The median seconds a step over a block of samples; none where benchmarks are disabled."""
        step = contest.step(contender)
        samples, iterations = plan(step)
        benchmark.pedantic(step, rounds=samples, iterations=iterations)
        if benchmark.enabled:
            of_contest = self.blocks.setdefault(contest, {})
            of_contest.setdefault(contender, {})[turn] = benchmark.stats.stats.median

    def add_row(self, title, **columns):
        self.rows.setdefault(title, []).append(columns)

    def markdown(self):
        header = lines(machine(), other_work(self.start), installed(PACKAGES))
        parts = [f"- {line}" for line in header]
        for contest, blocks in self.blocks.items():
            rows = [found.cells(OURS) for found in figures(contest, blocks, OURS)]
            parts += ["", f"### {contest.title}", "", *table(COLUMNS, rows)]
        for title, rows in self.rows.items():
            texts = [list(row.values()) for row in rows]
            parts += ["", f"### {title}", "", *table(list(rows[0]), texts)]
        parts += ["", *(f"Left out: {name}; {remedy}" for name, remedy in MISSING.items())]
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
