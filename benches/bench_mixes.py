"""The mixes of parameter and state formats: bytes, time of a step, share of bandwidth, final loss.

    python benches/bench_mixes.py
    python benches/bench_mixes.py --size 2^14 --size 2^26 --threads 1 --threads 2 --rounds 9
    python benches/bench_mixes.py --mix bfloat16+master/bfloat16 --mix bfloat16/8bit --skip loss
    python benches/bench_mixes.py --table TABLE.md

A mix is named by the dtype of its parameters, with or without master weights, and the format of its
moments. Gradients have the dtype of the parameters. The mixes of a table, on each number of
threads, take turns block by block; where memory does not suffice for all of them they are measured
in groups, each with float32. Next to each step, on the same arrays, a C loop is timed that reads
and writes as many bytes in as many streams: the share of bandwidth is its time divided by that of
the step. It is left out below 2^16 parameters, where memory is not the bottleneck.

The final loss is that of the tiny transformer on the characters of the README: on all of the text,
in nats, after 300 steps; the mean over the seeds. The model is float32; gradients are rounded to
the dtype of the parameters, and the parameters that the model uses are those of the optimizer.
"""

import argparse
import re
from statistics import mean, median
from typing import NamedTuple

from mix_training import final_loss
from option_types import output_file, positive, threads
from tables import table

from fused_adamw import runtime_info
from fused_adamw.bench.environment import (
    BackgroundLoad,
    describe,
    fits_in_memory,
    get_environment,
    installed_versions,
)
from fused_adamw.bench.harness import Comparison, time_block
from fused_adamw.bench.implementations.bandwidth_bound import BANDWIDTH_BOUND
from fused_adamw.bench.mixes import Workload, available_mixes
from fused_adamw.bench.report import format_ratio
from fused_adamw.bench.statistics import ratios
from fused_adamw.bench.workloads import CASES, Case

MIN_PER_THREAD = 2**15  # parameters; with fewer the package takes fewer threads

# ---------------------------------------------------------------------------- options


def parse_options(arguments=None):
    mixes = {mix.name: mix for mix in available_mixes()}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument(
        "--size",
        type=size,
        action="append",
        help=f"2^k, or a case of `fused-adamw bench`: {', '.join(CASES)}; repeatable",
    )
    parser.add_argument("--threads", type=threads, action="append", help="repeatable")
    parser.add_argument("--mix", choices=mixes, action="append", help="repeatable")
    parser.add_argument("--seeds", type=positive, default=5, help="of the losses")
    parser.add_argument("--skip", choices=["speed", "loss"])
    parser.add_argument(
        "--table", type=output_file, metavar="FILE.md", help="also write the tables to this file"
    )
    options = parser.parse_args(arguments)
    most = runtime_info()["num_threads"]
    options.size = options.size or [size(x) for x in ("2^14", "2^24", "2^26", "gpt2-small")]
    options.threads = sorted(set(options.threads or {1, min(2, most), most}))
    options.mixes = [mix for name, mix in mixes.items() if name in (options.mix or mixes)]
    return options


def size(text):
    """The case of that name; 2^k names an array, whatever k is."""
    if text in CASES:
        return CASES[text]
    if match := re.fullmatch(r"2\^(\d{1,2})", text):
        return Case(text, f"one array of {text}", [(2 ** int(match[1]),)])
    raise argparse.ArgumentTypeError(f"must be 2^k or one of {', '.join(CASES)}; got {text}")


# ---------------------------------------------------------------------------- speed


class Timed(NamedTuple):
    """What is timed: a step, or the loop with its loads and stores."""

    kind: str
    mix: str
    threads: int


class Speed(NamedTuple):
    """Medians over the rounds.

    Attributes:
        ns: a parameter.
        relative_time: to float32 on as many threads.
        share: of the speed of the loop; None where that was not timed.
    """

    ns: float
    relative_time: float
    share: float | None


def groups(mixes, baseline, num_parameters, fits=fits_in_memory):
    """Lists of mixes that fit into memory together, each beginning with the baseline; and the mixes
    that do not fit.

    Args:
        mixes: {mix: its bytes}.
        fits: whether there is memory for a number of bytes.
    """

    def needed(group):
        return num_parameters * sum(mixes[mix].bytes_kept for mix in group)

    found, too_large = [[baseline]], []
    for mix in mixes:
        if mix == baseline:
            continue
        if not fits(needed([baseline, mix])):
            too_large.append(mix)
        elif fits(needed([*found[-1], mix])):
            found[-1].append(mix)
        else:
            found.append([baseline, mix])
    return (found if fits(needed([baseline])) else []), too_large


def make_comparison(case, group, mixes, threads):
    """A step of each mix on each number of threads, and its loop; the keys are of ``Timed``."""
    kinds = ["step"]
    if case.num_parameters >= BANDWIDTH_BOUND.min_parameters:
        kinds.append("bound")
    implementations = {
        Timed(kind, mix.name, count): lambda workloads, kind=kind, mix=mix, count=count: getattr(
            workloads[mix], kind
        )(count)
        for count in threads
        for mix in group
        for kind in kinds
    }

    def make_arguments():
        return ({mix: Workload(mix, mixes[mix], case.shapes) for mix in group},)

    return Comparison(case.name, case.title, implementations, make_arguments, case.num_parameters)


def measure(comparison, rounds):
    """{what was timed: {round: seconds}}"""
    blocks = {}
    try:
        for _, turn, timed in comparison.blocks(rounds):
            blocks.setdefault(timed, {})[turn] = time_block(comparison.step(timed))
    finally:
        comparison.release()
    return blocks


def speeds(blocks, baseline, num_parameters):
    """{(mix, threads): Speed}"""
    found = {}
    for timed, seconds in blocks.items():
        if timed.kind == "step":
            bound = ratios(blocks.get(timed._replace(kind="bound"), {}), seconds)
            found[timed.mix, timed.threads] = Speed(
                median(seconds.values()) / num_parameters * 1e9,
                median(ratios(seconds, blocks[timed._replace(mix=baseline)])),
                median(bound) if bound else None,
            )
    return found


def useful(threads, num_parameters):
    """The numbers of threads that a step of this size can use; one at least."""
    return [n for n in threads if n * MIN_PER_THREAD <= num_parameters] or [1]


def measure_case(case, mixes, options):
    """{(mix, threads): Speed}, and lines about what was left out."""
    baseline, *_ = available_mixes()
    chosen = {mix: mixes[mix] for mix in dict.fromkeys([baseline, *options.mixes])}
    found, too_large = groups(chosen, baseline, case.num_parameters)
    threads = useful(options.threads, case.num_parameters)
    results = {}
    for group in found:
        blocks = measure(make_comparison(case, group, mixes, threads), options.rounds)
        results = speeds(blocks, baseline.name, case.num_parameters) | results
    skipped = too_large if found else chosen
    lines = [f"{mix.name} in {case.name}: needs more memory than there is" for mix in skipped]
    return results, lines


def speed_table(results, mixes):
    """Columns and rows of a case."""
    threads = sorted({count for _, count in results})
    columns = ["", "bytes moved"]
    for count in threads:
        columns += [f"ns, {count} thr.", "to float32", "of bandwidth"]
    rows = []
    for mix, traffic in mixes.items():
        if (mix.name, threads[0]) in results:
            row = [mix.name, format_bytes(traffic.bytes_moved)]
            for count in threads:
                speed = results[mix.name, count]
                share = "" if speed.share is None else f"{speed.share:.2f}"
                row += [f"{speed.ns:.3f}", format_ratio(speed.relative_time), share]
            rows.append(row)
    return columns, rows


def format_bytes(number):
    return f"{number:.2f}".rstrip("0").rstrip(".")


# ---------------------------------------------------------------------------- all of it


def overview(mixes, by_case, losses):
    """Columns and rows: bytes, time and loss of each mix.

    The times are those of the smallest size on one thread and of each other size on all threads.
    """
    timed = {}
    for position, (case, results) in enumerate(by_case.items()):
        threads = (max if position else min)(count for _, count in results)
        timed[f"ns, {case}, {threads} thr."] = (results, threads)
    columns = ["", "bytes of state", "bytes moved", *timed]
    columns += ["final loss", "least to most"] if losses else []
    rows = []
    for mix, traffic in mixes.items():
        row = [mix.name, format_bytes(traffic.state_bytes), format_bytes(traffic.bytes_moved)]
        for results, threads in timed.values():
            speed = results.get((mix.name, threads))
            row.append(f"{speed.ns:.3f}" if speed else "")
        if losses:
            found = losses[mix]
            row += [f"{mean(found):.4f}", f"{min(found):.4f} to {max(found):.4f}"]
        rows.append(row)
    return columns, rows


def header(background):
    versions = installed_versions(["numpy", "ml_dtypes"])
    return [f"- {line}" for line in describe(get_environment(), background.share(), versions)]


def run(options):
    """Lines of Markdown."""
    background, mixes = BackgroundLoad(), available_mixes()
    parts, skipped, by_case = [], [], {}
    for case in options.size if options.skip != "speed" else ():
        results, lines = measure_case(case, mixes, options)
        skipped += lines
        if results:
            by_case[case.name] = results
            title = f"{case.title}: {case.num_parameters:,} parameters"
            parts += ["", f"### {title}", "", *table(*speed_table(results, mixes))]
    chosen = {mix: mixes[mix] for mix in options.mixes}
    losses = {}
    if options.skip != "loss":
        losses = {mix: [final_loss(mix, seed) for seed in range(options.seeds)] for mix in chosen}
    parts += ["", "### All mixes", "", *table(*overview(chosen, by_case, losses)), "", *skipped]
    return [*header(background), *parts]


def main():
    options = parse_options()
    markdown = "\n".join(run(options)).rstrip()
    print(markdown)
    if options.table:
        options.table.write_text(markdown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
