"""Stochastic rounding: the random numbers behind it follow from seed, tensor, index and step."""

cdef enum:
    TO_NEAREST = 0x80000000u  # the dither that does it: half of the interval

# Irrational parts of 2^32, by which the dither of v, m and params moves on in each step: powers of
# the golden ratio and of the plastic number (Roberts 2018), whose multiples fill it evenly.
cdef uint32_t[3] WEYL = [0xC13FA9A9u, 0x9E3779B9u, 0x91E10DA5u]


cdef int set_dither(Workspace *space, bint stochastic) except -1:
    cdef Py_ssize_t k
    cdef int role
    cdef Derived *derived
    for k in range(space.kinds):
        derived = &space.derived[k]
        derived.scalars.stochastic = stochastic
        for role in range(3):
            derived.scalars.dither[role] = (
                <uint32_t>derived.t * WEYL[role] if stochastic else TO_NEAREST
            )
    return 0


cdef uint32_t key_of(uint32_t seed, Py_ssize_t tensor) noexcept:
    """Of the random numbers of one tensor: its place among all makes it another's."""
    return random_bits(random_bits(seed, 0), <uint32_t>tensor)


cdef uint32_t seed_of(seed) except? 0:
    """``seed``: an integer from 0 to 2^32 - 1; None rounds to the nearest."""
    if seed is None:
        return 0
    number = integer("seed", seed)
    if not 0 <= number < 2**32:
        raise ValueError(f"seed is {number}; expected None, or 0 to 2**32 - 1")
    return number


def require_seed(seed):
    """Raise what a step with this seed would raise."""
    seed_of(seed)
