"""Parameters on an accelerator whose optimizer state is in host memory; see ``offload.py``.

A parameter's state in host memory is its ``Twin``. A step copies gradients and parameters to pinned
memory, a ``Chunk`` at a time, through the slots of a ``Ring``; the ``stepper`` functions update them
there, and the parameters are copied back. The ``Pump`` is the thread in which this happens. It
knows devices only as a ``Lane``.
"""
