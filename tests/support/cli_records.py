"""What commands print: the keys of the records of `train --json`; lines in their order."""

RUN_KEYS = {
    "optimizer",
    "lr",
    "parameters",
    "steps",
    "initial_loss",
    "final_loss",
    "initial_perplexity",
    "final_perplexity",
    "seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "diverged",
    "losses",
    "gradient_norms",
    "learning_rates",
}
HELD_OUT_KEYS = {"initial_held_out_loss", "final_held_out_loss"}
RECORD_KEYS = RUN_KEYS | {
    "config",
    "resumed_from",
    "reference_step_seconds",
    "predictions",
    "interrupted",
}


def assert_in_order(expected, lines):
    """The lines are among those printed, in this order."""
    remaining = iter(lines)
    for line in expected:
        assert line in remaining, f"{line!r} is missing, or out of order"


def without_seconds(record):
    return {name: value for name, value in record.items() if not name.endswith("seconds")}
