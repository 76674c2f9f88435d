"""Schedules of every kind, and their rates."""

from fused_adamw.schedules import Constant, CosineDecay, LinearDecay, LinearWarmup

SCHEDULES = [
    Constant(0.3),
    Constant(0.3, 7),
    LinearWarmup(0.3, 7),
    LinearWarmup(0.3, 7, start=0.1),
    LinearDecay(0.3, 7),
    LinearDecay(0.3, 7, end=0.1),
    CosineDecay(0.3, 7),
    CosineDecay(0.3, 7, end=0.1),
    LinearWarmup(0.3, 3).then(CosineDecay(0.3, 4)),
    LinearWarmup(0.3, 3).then(Constant(0.3, 5)).then(LinearDecay(0.3, 4, end=0.1)),
]


def rates(schedule, count):
    return [schedule(t) for t in range(1, count + 1)]
