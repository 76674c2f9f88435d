"""Numbers: checked, and turned into the scalars of a step, which csrc/scalars.c derives."""


cdef extern from "Python.h":
    # On failure the exception is set, and left to the caller: a try block costs more than the call.
    double try_real "PyFloat_AsDouble"(object) noexcept
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1

cdef enum:
    MOST_BITS = 1024  # of an integer within the range of float64


cpdef as_integer(str name, value, str what="an integer", minimum=None):
    """An integer as an int of Python; raise TypeError for anything else, also for a bool, and
    ValueError below ``minimum``. ``what``: what is allowed, for the TypeError."""
    number = value if type(value) is int else None
    if number is None:
        try:
            if not isinstance(value, (bool, np.bool_)):  # the index of np.True_ is 1 in NumPy 2.0
                number = int(PyNumber_Index(value))
        except TypeError:
            pass
    if number is None:
        raise TypeError(f"{name} must be {what}; got {shown(value)}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be {minimum} or more; got {shown(number)}")
    return number


cpdef printable_integer(str name, value):
    """``as_integer``; raise ValueError, too, for one with more digits than belong in a message."""
    cdef int overflow
    number = as_integer(name, value)
    PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow != 0 and number.bit_length() > MOST_BITS:
        raise ValueError(f"{name} must be within the range of float64; got a number beyond it")
    return number


cdef object np_generic = np.generic


cdef bint only_converts(value) except -1:
    """Whether a value converts to a float without being a real number: an array or a scalar of
    NumPy that holds text or complex numbers, for instance."""
    if not isinstance(value, np_ndarray) and not isinstance(value, np_generic):
        return False
    kind, scalar = value.dtype.kind, value.dtype.type
    # Types of ml_dtypes, such as bfloat16, have the kind of np.void. True counts as 1.
    return kind not in "iufb" and (kind != "V" or issubclass(scalar, np.void))


cdef int raise_no_real_number(str name, value) except -1:
    found = written(value)
    found = shown(value) if found is None else f"{found} ({type(value).__name__})"
    raise TypeError(f"{name} must be a real number; got {found}")


cdef double real(str name, value) except? -1:
    if type(value) is not float and type(value) is not int and only_converts(value):
        raise_no_real_number(name, value)
    cdef double number = try_real(value)
    if number == -1 and PyErr_Occurred():
        if PyErr_ExceptionMatches(OverflowError):
            PyErr_Clear()
            raise ValueError(f"{name} must be within the range of float64; got a number beyond it")
        if not PyErr_ExceptionMatches((TypeError, ValueError)):
            return -1
        PyErr_Clear()
        raise_no_real_number(name, value)
    return number


cdef double number_or_zero(str name, value) except? -1:
    """0 stands for None. False is refused: it would mean that the option is off."""
    if value is None:
        return 0
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number or None; got {shown(value)}")
    return real(name, value)


cdef double finite(str name, value) except? -1:
    cdef double number = real(name, value)
    if not isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {shown(value)}")
    return number


cdef double positive_or_none(str name, value) except? -1:
    """0 stands for None."""
    if value is None:
        return 0
    cdef double number = number_or_zero(name, value)
    if not (number > 0 and isfinite(number)):
        raise ValueError(f"{name} must be a finite number above 0; got {shown(value)}")
    return number


cdef long long count_of_steps(t) except -1:
    cdef int overflow
    cdef long long steps = PyLong_AsLongLongAndOverflow(printable_integer("t", t), &overflow)
    if overflow != 0 or steps < 1:
        raise ValueError(f"t must be the number of this step: 1, 2, 3, ...; got {t}")
    return steps


cdef uint32_t seed_of(seed, str name="seed") except? 0:
    """``seed``: an integer from 0 to 2^32 - 1; None rounds to the nearest."""
    if seed is None:
        return 0
    number = printable_integer(name, seed)
    if not 0 <= number < 2**32:
        raise ValueError(f"{name} must be None or from 0 to 2**32 - 1; got {number}")
    return number


def check_decay(str name, value):
    """A decay rate as a number of Python; raise TypeError or ValueError for one that is not None or
    in [0, 1)."""
    if not 0 <= number_or_zero(name, value) < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1; got {shown(value)}")
    return None if value is None else as_number(name, value)


def check_norm(str name, value):
    """A norm as a number of Python; raise TypeError or ValueError for one that is not None or a
    finite number above 0."""
    positive_or_none(name, value)
    return None if value is None else as_number(name, value)


def check_seed(str name, seed):
    """A seed as an int of Python; raise what a step with it would raise."""
    seed_of(seed, name)
    return None if seed is None else as_integer(name, seed)


def clip_factor(norm, max_grad_norm):
    """The factor that clips gradients of this global norm; 1 where ``max_grad_norm`` is None."""
    return fused_adamw_clip_factor(norm, positive_or_none("max_grad_norm", max_grad_norm))


cdef inline int require_hyper(hyper) except -1:
    if type(hyper) is not tuple or len(<tuple>hyper) != 5:
        raise TypeError(f"hypers must be tuples of 5 items; got {shown(hyper)}")
    rates = (<tuple>hyper)[4]
    if type(rates) is not tuple or len(<tuple>rates) != FUSED_ADAMW_NUM_BUFFERS:
        raise TypeError(
            f"hypers must end with {FUSED_ADAMW_NUM_BUFFERS} decay rates or None; got "
            f"{shown(rates)}"
        )
    return 0


cdef int refuse_rate(Py_ssize_t k, bint expected, rate) except -1:
    what = "a number" if expected else "None"
    raise ValueError(
        f"{OPTIONAL_BUFFERS[k].option} must be {what}, as at construction; got {shown(rate)}"
    )


cdef tuple pair_of(betas):
    """Two objects in order: not those of a set, a mapping or an iterator."""
    try:
        if type(betas) is not tuple and (
            isinstance(betas, Mapping) or not PySequence_Check(betas)
        ):
            raise TypeError
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas must be a pair of numbers; got {shown(betas)}") from None
    return beta1, beta2


def as_pair(betas):
    """The decay rates of both moments as numbers of Python, or raise TypeError."""
    beta1, beta2 = pair_of(betas)
    return as_number("betas[0]", beta1), as_number("betas[1]", beta2)


def as_number(str name, value):
    """A number as an int or a float of Python, or raise TypeError."""
    return value if type(value) is int else real(name, value)


cpdef list hyperparams_at(groups, long long t, tuple rates):
    """One (lr, betas, eps, weight_decay, rates) of step ``t`` for each group: schedules are
    evaluated."""
    cdef list hypers = []
    for group in groups:
        lr = group["lr"]
        if callable(lr):
            lr = lr(t)
        eps = group["eps"]
        if callable(eps):
            eps = eps(t)
        hypers.append((lr, group["betas"], eps, group["weight_decay"], rates))
    return hypers


cdef struct Derived:
    # The scalars of the tensors that agree in all of this.
    Py_ssize_t group
    long long t
    bint decays
    int compute  # the compute type
    fused_adamw_scalars scalars


cdef int derive(
    Derived *derived, Py_ssize_t group, bint decays, int compute, long long t, hyper
) except -1:
    """The scalars of step ``t`` from ``hyper``: lr, betas, eps, weight_decay of a group, and the
    decay rates of the optional buffers."""
    cdef fused_adamw_hyperparams given
    cdef int status, k
    cdef tuple rates
    lr, betas, eps, weight_decay, rates = hyper
    beta1, beta2 = pair_of(betas)
    given.lr = real("lr", lr)
    given.weight_decay = real("weight_decay", weight_decay)
    given.beta1 = real("betas[0]", beta1)
    given.beta2 = real("betas[1]", beta2)
    given.eps = real("eps", eps)
    for k in range(FUSED_ADAMW_NUM_BUFFERS):
        given.buffer_decays[k] = number_or_zero(OPTIONAL_BUFFERS[k].option, rates[k])
    derived.group = group
    derived.t = t
    derived.decays = decays
    derived.compute = compute
    status = fused_adamw_derive_scalars(&given, compute, t, &derived.scalars)
    if status == FUSED_ADAMW_OK and not decays:  # checked all the same
        given.weight_decay = 0
        status = fused_adamw_derive_scalars(&given, compute, t, &derived.scalars)
    if status != FUSED_ADAMW_OK:
        raise_unusable(status, compute, {
            FUSED_ADAMW_BAD_LR: ("lr", lr),
            FUSED_ADAMW_BAD_BETA1: ("betas[0]", beta1),
            FUSED_ADAMW_BAD_BETA2: ("betas[1]", beta2),
            FUSED_ADAMW_BAD_EPS: ("eps", eps),
            FUSED_ADAMW_BAD_WEIGHT_DECAY: ("weight_decay", weight_decay),
            **{
                FUSED_ADAMW_BAD_BUFFER_DECAY + k: (row.option, rate)
                for k, (row, rate) in enumerate(zip(OPTIONAL_BUFFERS, rates))
            },
        })
    return 0


cdef dict DERIVED = {  # what the formula uses instead of a number
    FUSED_ADAMW_BAD_LR: "lr / (1 - betas[0]**t)",
    FUSED_ADAMW_BAD_WEIGHT_DECAY: "lr * weight_decay",
}


cdef int raise_unusable(int status, int compute, dict given) except -1:
    """Raise ValueError for the number that a status of the C library is about."""
    cdef int which = status & ~FUSED_ADAMW_NOT_REPRESENTABLE
    name, value = given[which]
    below_1 = which >= FUSED_ADAMW_BAD_BUFFER_DECAY or which in (
        FUSED_ADAMW_BAD_BETA1, FUSED_ADAMW_BAD_BETA2
    )
    if status & FUSED_ADAMW_NOT_REPRESENTABLE:
        dtype = ELEMENT_TYPES[compute]
        if which in DERIVED:
            raise ValueError(
                f"{DERIVED[which]} must be representable in {dtype}; got {name}={shown(value)}"
            )
        what = f"less than 1 once rounded to {dtype}" if below_1 else f"representable in {dtype}"
    else:
        what = "at least 0 and less than 1" if below_1 else "a finite number, 0 or more"
    raise ValueError(f"{name} must be {what}; got {shown(value)}")


cdef int raise_unusable_scale(int compute, grad_scale) except -1:
    raise ValueError(
        f"grad_scale must be representable in {ELEMENT_TYPES[compute]}; got {shown(grad_scale)}"
    )
