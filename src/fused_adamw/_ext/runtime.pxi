"""What runs a step: instruction sets and threads."""

cdef enum:
    MAX_THREADS = 1024  # beyond this a slip is likelier than such a machine

cdef object FORCED_ISA = os.environ.get("FUSED_ADAMW_ISA") or None
# OMP_NUM_THREADS is the user's word. Without it OpenMP knows the affinity mask but no cgroup.
cdef int CPU_QUOTA = (not os.environ.get("OMP_NUM_THREADS") and cpu_quota()) or MAX_THREADS

fused_adamw_init()


def available_isas():
    """The instruction sets that can run here, widest first."""
    names = []
    cdef const fused_adamw_isa *row = fused_adamw_isas
    while row.name != NULL:
        if row.supported():
            names.append(row.name.decode())
        row += 1
    return names


def selected_isa():
    """The instruction set of a call that names none."""
    return find_isa(None).name.decode()


def has_openmp():
    """Whether this build has OpenMP."""
    return fused_adamw_has_openmp() != 0


cpdef int resolve_threads(num_threads) except -1:
    """The number of threads that ``num_threads`` stands for; None is the default."""
    if num_threads is None:
        return min(fused_adamw_max_threads(), CPU_QUOTA)
    threads = integer("num_threads", num_threads)
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"num_threads is {threads}; expected 1 to {MAX_THREADS}")
    return threads


cdef const fused_adamw_isa *find_isa(isa) except NULL:
    cdef const fused_adamw_isa *row = fused_adamw_isas
    cdef object name = FORCED_ISA if isa is None else isa
    while row.name != NULL:
        if row.supported() and (name is None or row.name.decode() == name):
            return row
        row += 1
    argument = "the environment variable FUSED_ADAMW_ISA" if isa is None else "isa"
    raise ValueError(
        f"{argument} is {name!r}; available on this machine: {', '.join(available_isas())}"
    )
