"""Garbage that is collected at a chosen moment."""

import gc


def collect_after(allocations, garbage, call):
    """Call a function, in which an object is collected after so many allocations."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        dead = garbage()
        dead.itself = dead
        del dead
        gc.set_threshold(allocations)
        gc.enable()
        call()
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
        gc.collect()
