"""Save or load under a limit on memory: ``memory_program.py FILE CASE save|load MIB``.

The limit is that many MiB above what the process uses when parameters and state are there.
"""

import resource
import sys
import tracemalloc

import numpy as np

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

CASES = {  # shape, memory order, and the optimizers that save and load
    "float32": ((1 << 12, 1 << 12), "C", {}, {}),
    "amsgrad": ((1 << 22,), "C", {"amsgrad": True}, {"amsgrad": True}),
    "Fortran": ((1 << 11, 1 << 11), "F", {}, {}),
    "8bit": ((1 << 12, 1 << 12), "C", {"state_dtype": "8bit"}, {"state_dtype": "8bit"}),
    "converted": ((1 << 22,), "C", {"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}),
    "converted from float32": ((1 << 20,), "C", {}, {"state_dtype": "8bit"}),
    "converted and permuted": ((1 << 10, 1 << 11), "F", {}, {"state_dtype": "bfloat16"}),
    "permuted into blocks": ((1 << 10, 1 << 11), "F", {}, {"state_dtype": "8bit"}),
}


def current_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


path, name, action, mib = sys.argv[1:]
shape, order, saved, loaded = CASES[name]
params = np.ones(shape, np.float32, order=order)
optimizer = AdamW(params, num_threads=1, **(saved if action == "save" else loaded))
if action == "save":
    optimizer.step(params.copy("K"))
# Room in the arenas of Python's allocator: whether a run needs another one, of 1 MiB, is chance.
spare = [bytes(400) for _ in range(10_000)][::100]
tracemalloc.start()
limit = current_bytes() + int(float(mib) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
if action == "save":
    save_checkpoint(path, optimizer)
else:
    load_checkpoint(path, optimizer, convert=saved != loaded)
print(tracemalloc.get_traced_memory()[1] / 2**20)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert optimizer.t == 1
assert 0.9 < params.min() == params.max() < 1
