"""The chart of a benchmark: what is visible on it."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from fused_adamw.bench.report import Chart, Line, Point, Role
from fused_adamw.cli import plots


def lines_of(sizes, median, spread):
    """Lines of all roles; the second takes 1.5 times as long as the first, and so on."""
    return [
        Line(
            role.name,
            role,
            [
                Point(n, median * 1.5**i, median * 1.5**i / spread, median * 1.5**i * spread)
                for n in sizes
            ],
        )
        for i, role in enumerate(Role)
    ]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The axes of a chart that was drawn and saved."""

    def save(lines):
        figures = []
        original = Figure.savefig

        def savefig(figure, *arguments, **options):
            figures.append(figure)
            original(figure, *arguments, **options)

        monkeypatch.setattr(Figure, "savefig", savefig)
        plots.save_benchmark_plot(tmp_path / "chart.png", Chart(lines, "title", "caption"))
        assert (tmp_path / "chart.png").stat().st_size > 1000
        (axes,) = figures[0].axes
        return axes

    return save


@pytest.mark.parametrize("size", [1, 2**31])
@pytest.mark.parametrize("median", [1e-3, 1e5])
@pytest.mark.parametrize("spread", [1.0, 1.2])
def test_one_size_is_in_the_middle(draw, size, median, spread):
    """Matplotlib cannot scale a logarithmic axis to one value."""
    axes = draw(lines_of([size], median, spread))
    left, right = axes.get_xlim()
    assert left * right == pytest.approx(size**2)
    assert 2 < right / left < 10
    bottom, top = axes.get_ylim()
    smallest, largest = median / spread, median * 1.5 ** (len(Role) - 1) * spread
    assert smallest / 2 < bottom < smallest
    assert largest < top < largest * 2
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [size]


def test_one_size_has_a_mark_for_each_line(draw):
    axes = draw(lines_of([2**16], 2.0, 1.1))
    data = [container.lines[0] for container in axes.containers]
    assert len(data) == len(Role)
    assert all(line.get_marker() not in ("", "None", None) for line in data)


def test_several_sizes_are_lines_from_side_to_side(draw):
    axes = draw(lines_of([2**16, 2**20, 2**24], 2.0, 1.1))
    left, right = axes.get_xlim()
    assert 2**14 < left < 2**16
    assert 2**24 < right < 2**26
