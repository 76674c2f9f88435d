"""The parts of a benchmark's report, as the console prints them."""

from rich.console import RenderableType

from ..bench.report import Heading, Paragraph, Part
from .console import benchmark_table, heading, paragraph


def render(part: Part) -> RenderableType:
    """Return a part of the report for the console."""
    match part:
        case Heading(text):
            return heading(text)
        case Paragraph(text):
            return paragraph(f"{text}\n")
        case _:
            return benchmark_table(*part)
