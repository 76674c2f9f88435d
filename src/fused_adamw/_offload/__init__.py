"""Parameters on an accelerator whose optimizer state is in host memory; see ``offload.py``.

A parameter's state in host memory is its ``HostState``. A step copies gradients and parameters, a
``Bundle`` at a time, to a slot of a ``Ring`` in pinned memory; the functions of ``stepper`` update
them there, and the parameters are copied back. The ``Pump`` is the thread in which this happens. It
knows devices only as a ``Lane``.
"""
