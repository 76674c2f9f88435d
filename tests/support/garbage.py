"""Garbage that is collected at a chosen moment."""

import gc


def collect_after(allocations, garbage, call):
    """Call a function, in which an object is collected after so many allocations."""
    threshold = gc.get_threshold()
    gc.disable()
    gc.freeze()  # what there is takes no part: to look at all of it takes most of a second
    gc.collect()  # empties the free lists: from there, objects come without an allocation
    try:
        dead = garbage()
        dead.itself = dead
        del dead
        gc.set_threshold(allocations)
        gc.enable()
        call()
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
        gc.unfreeze()
        gc.enable()
