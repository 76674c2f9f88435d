"""Save and load in child processes with little memory: ``low_memory_program.py FILE CASE``.

Prints what became of each: [action, outcome, whether the file is whole, whether memory changed].
"""

import json
import os
import resource
import sys

import numpy as np

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, read_extra, save_checkpoint

CASES = {  # memory order, and the optimizers that save and load
    "float32": ("C", {}, {}),
    "Fortran": ("F", {}, {}),
    "converted": ("F", {"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}),
    "permuted into blocks": ("F", {}, {"state_dtype": "8bit"}),
}
STEP = 1 << 18  # bytes: from one amount of free memory to the next


def make(order, options):
    params = {"w": np.ones((512, 1024), np.float32, order=order)}
    return AdamW(params, num_threads=1, **options)


def contents(optimizer):
    state = [x.tobytes() for part in optimizer._state for x in part.arrays.values()]
    return optimizer.t, optimizer._arrays[0].tobytes(), state


def limit_memory(free):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + free, resource.RLIM_INFINITY))


def attempt(action, optimizer, free):
    """The outcome, and whether memory changed, in a process with that much free memory."""
    before = contents(optimizer)
    limit_memory(free)
    try:
        if action == "save":
            save_checkpoint(path, optimizer, extra={"free": free})
        else:
            load_checkpoint(path, optimizer, convert=True)
        outcome = "done"
    except BaseException as error:
        outcome = type(error).__name__
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return outcome, contents(optimizer) != before


def in_a_child(*arguments):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(attempt(*arguments)).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.wait()
    return json.loads(text) if status == 0 else [f"status {status}", None]


path, case = sys.argv[1:]
order, saved, loaded = CASES[case]
saver, loader = make(order, saved), make(order, loaded)
saver.step({"w": np.ones((512, 1024), np.float32, order=order)})
save_checkpoint(path, saver, extra={"free": -1})
last = -1
for free in range(0, 9 << 20, STEP):
    outcome, has_changed = in_a_child("save", saver, free)
    last = free if outcome == "done" else last
    load_checkpoint(path, make(order, saved))  # verifies it
    is_whole = read_extra(path) == {"free": last} and len(os.listdir(os.path.dirname(path))) == 1
    print(json.dumps(["save", outcome, is_whole, has_changed]))
    outcome, has_changed = in_a_child("load", loader, free)
    print(json.dumps(["load", outcome, True, has_changed]))
