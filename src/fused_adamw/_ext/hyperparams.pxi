"""Hyper-parameters: checked, and turned into what the formula multiplies and divides by."""


cdef extern from "Python.h":
    # On failure the exception is set, and left to the caller: a try block costs more than the call.
    double try_real "PyFloat_AsDouble"(object) noexcept
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1


cdef integer(str name, value):
    if type(value) is int:
        return value
    try:
        return PyNumber_Index(value)
    except TypeError:
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}); expected an integer"
        ) from None


cdef double real(str name, value) except? -1:
    cdef double number = try_real(value)
    if number == -1 and PyErr_Occurred():
        if not PyErr_ExceptionMatches((TypeError, ValueError, OverflowError)):
            return -1
        PyErr_Clear()
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected a real number")
    return number


cdef double finite(str name, value) except? -1:
    cdef double number = real(name, value)
    if not isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return number


cdef double not_negative(str name, value) except? -1:
    cdef double number = real(name, value)
    if not (number >= 0 and isfinite(number)):
        raise ValueError(f"{name} is {value!r}; expected a finite number, 0 or more")
    return number


cdef double positive_or_none(str name, value) except? -1:
    """0 stands for None."""
    if value is None:
        return 0
    cdef double number = real(name, value)
    if not (number > 0 and isfinite(number)):
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0")
    return number


cdef long long count_of_steps(t) except -1:
    cdef int overflow
    cdef long long steps = PyLong_AsLongLongAndOverflow(integer("t", t), &overflow)
    if overflow != 0 or steps < 1:
        raise ValueError(f"t is {t}; expected the number of this step: 1, 2, 3, ...")
    return steps


cdef inline int computed_in(int dtype) noexcept:
    """The dtype of the arithmetic on a dtype."""
    return FUSED_ADAMW_FLOAT64 if dtype == FUSED_ADAMW_FLOAT64 else FUSED_ADAMW_FLOAT32


cdef double rounded(int dtype, double value) noexcept:
    """The nearest value of the dtype."""
    if dtype == FUSED_ADAMW_FLOAT32:
        return <float>value
    return value


cdef double rounded_finite(int dtype, double value, str name, given) except? -1:
    cdef double result = rounded(dtype, value)
    if not isfinite(result):
        raise ValueError(f"{name} is {given!r}: too large for {DTYPE_NAMES[dtype]}")
    return result


cdef double rounded_beta(int dtype, str name, value) except? -1:
    cdef double beta = real(name, value)
    if not 0 <= beta < 1:
        raise ValueError(f"{name} is {value!r}; expected 0 <= beta < 1")
    beta = rounded(dtype, beta)
    if beta == 1:
        raise ValueError(f"{name} is {value!r}, which rounds to 1 in {DTYPE_NAMES[dtype]}")
    return beta


cdef int derive(
    Derived *derived, Py_ssize_t group, bint decays, int dtype, long long t, hyper
) except -1:
    """Everything follows in double from the rounded betas, each expression evaluated as Python
    evaluates it, and is then rounded once."""
    lr, betas, eps, weight_decay = hyper
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas is {betas!r}; expected a pair of numbers") from None
    cdef fused_adamw_scalars *scalars = &derived.scalars
    cdef double steps = t
    cdef double rate = not_negative("lr", lr)
    cdef double decay = rate * not_negative("weight_decay", weight_decay)
    cdef double b1 = rounded_beta(dtype, "betas[0]", beta1)
    cdef double b2 = rounded_beta(dtype, "betas[1]", beta2)
    derived.group = group
    derived.decays = decays
    derived.dtype = dtype
    derived.t = t
    scalars.b1 = b1
    scalars.b2 = b2
    scalars.c1 = rounded(dtype, 1 - b1)
    scalars.c2 = rounded(dtype, 1 - b2)
    scalars.step = rounded_finite(dtype, rate / (1 - pow(b1, steps)), "lr", lr)
    scalars.rsqrt_bc2 = rounded(dtype, 1 / sqrt(1 - pow(b2, steps)))
    scalars.decay = rounded_finite(dtype, decay if decays else 0, "weight_decay", weight_decay)
    scalars.eps = rounded_finite(dtype, not_negative("eps", eps), "eps", eps)
    return 0
