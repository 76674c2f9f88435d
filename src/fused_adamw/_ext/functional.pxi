"""The AdamW step as a function over arrays that the caller keeps.

It is compiled, too: on a small array the path from Python to the kernel is most of the call."""


def fused_adamw(
    params, grads, m, v, t, *,
    lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, num_threads=None,
):
    """One AdamW step in place, in one pass over memory.

    For every element, with ``b1, b2 = betas``::

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        p <- p - lr (weight_decay p + m_hat / (sqrt(v_hat) + eps))
        where m_hat = m / (1 - b1^t),  v_hat = v / (1 - b2^t)

    1 - b^t is rounded once, from its exact value.

    Args:
        params: one array, or nested sequences and mappings of arrays; float32 or float64, in native
            byte order, of any number of dimensions. Updated in place, as ``m`` and ``v`` are: these
            must be writable, contiguous, in the same memory order (C or Fortran), and share no
            memory with any other array of the call.
        grads: the gradients, in the structure of ``params``, of the same shapes and dtypes; only
            read. A gradient whose memory order differs from its parameter's is copied first.
        m: the first moments, as ``grads``; zeros before the first step.
        v: the second moments, as ``m``.
        t: the number of this step, 1 at the first.
        lr: learning rate, 0 or more. Values down to -1e-12 are accepted, as rounding errors of
            schedules that end at 0.
        betas: decay rates of the two moments, each at least 0 and less than 1. They are rounded to
            the arrays' dtype, and everything derived from them follows from the rounded values.
        eps: added to the root of the second moment, 0 or more.
        weight_decay: decoupled from the gradient and multiplied by ``lr``, as in PyTorch and
            optax (Loshchilov & Hutter multiply it by the schedule alone). 0 or more.
        num_threads: at most this many threads, 1 to 1,024. None: as many as OMP_NUM_THREADS says,
            or else as the affinity mask and the cgroup allowed when the package was imported; one
            for a while after a step that had to wait for other processes. A small step runs on the
            calling thread, and so does one for which no thread can be created.

    Returns None. The result is the same to the last bit on every machine and instruction set, for
    every number of threads and every alignment, in every floating-point environment of the calling
    thread, and however the elements are split into tensors; NumPy, evaluating the lines of
    ``csrc/kernels/formula.inc``, gives it too. NaN and infinity follow IEEE 754 and stay in their
    own element; the sign and the payload of a NaN are not part of this. The GIL is released during
    the update.

    Raises:
        TypeError: an argument is of the wrong kind or dtype.
        ValueError: a wrong shape, memory layout, key or value, or arrays that share memory.
            Everything is checked before anything is written: after an error no array has changed.

    References:
        Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980.
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101.

    Example:
        >>> import numpy as np
        >>> w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
        >>> fused_adamw(w, np.array([0.1, -2.0, 0.0]), m, v, t=1)
        >>> w
        array([0.99899, 1.00099, 0.99999])
    """
    cdef long long step = count_of_steps(t)
    cdef TreeSpec spec = TreeSpec.__new__(TreeSpec, params)
    cdef BoundTensors tensors = BoundTensors.__new__(BoundTensors, spec, params, None, (m, v))
    require_kept(spec, "params", params)
    require_kept(spec, "m", m)
    require_kept(spec, "v", v)
    tensors.start_before(step)
    tensors.step(
        grads, [(lr, betas, eps, weight_decay, NO_RATES)], 1.0, None, False, False, num_threads
    )
