"""Instruction sets and threads: what a step runs on."""


cdef int number_of_threads(str value) except -1:
    """How many threads OMP_NUM_THREADS asks for: 4, or 4,2 for nested regions; 0 for none. OpenMP
    ignores what is no such list of positive integers."""
    numbers = value.split(",")
    for number in numbers:
        number = number.strip().removeprefix("+")
        if not (number.isascii() and number.isdecimal() and number.strip("0")):
            return 0
    digits = numbers[0].strip().lstrip("+0")
    found = int(digits) if len(digits) <= 4 else 0
    return found if found <= FUSED_ADAMW_MAX_THREADS else 0


# Read once: the C library takes both as arguments. OMP_NUM_THREADS is the user's choice; without it
# OpenMP knows the affinity mask but no cgroup. A quota of 0 is none.
cdef object FORCED_ISA = os.environ.get("FUSED_ADAMW_ISA") or None
cdef int ASKED_THREADS = number_of_threads(os.environ.get("OMP_NUM_THREADS", ""))
cdef int CPU_QUOTA = 0 if ASKED_THREADS else min(cpu_quota() or 0, FUSED_ADAMW_MAX_THREADS)
cdef const fused_adamw_isa *SELECTED = NULL  # found at the first call

fused_adamw_init()


def available_isas():
    """The instruction sets that can run here, widest first."""
    names = []
    cdef int index = 0
    cdef const fused_adamw_isa *isa = fused_adamw_isa_at(0)
    while isa != NULL:
        if fused_adamw_isa_available(isa):
            names.append(text(fused_adamw_isa_name(isa)))
        index += 1
        isa = fused_adamw_isa_at(index)
    return names


def selected_isa():
    """The instruction set that steps use."""
    return text(fused_adamw_isa_name(find_isa()))


def threading_library():
    """Which library provides the threads of this build; None where there are only the callers'."""
    cdef const char *name = fused_adamw_threading()
    return None if name == NULL else text(name)


def default_num_threads():
    """The threads of a large step that is asked for no number: those that OMP_NUM_THREADS says, or
    else the processors that the affinity mask and the cgroup allowed at the import. (The mask is
    read once: to ask for it takes as long as a small step.)"""
    return fused_adamw_default_threads(ASKED_THREADS, CPU_QUOTA)


def environment_sets_threads():
    """Whether OMP_NUM_THREADS sets the number of threads."""
    return ASKED_THREADS > 0


cpdef int check_num_threads(num_threads) except -1:
    """The number of threads that ``num_threads`` stands for; None is the default."""
    if num_threads is None:
        return fused_adamw_default_threads(ASKED_THREADS, CPU_QUOTA)
    threads = printable_integer("num_threads", num_threads)
    if not 1 <= threads <= FUSED_ADAMW_MAX_THREADS:
        raise ValueError(f"num_threads must be from 1 to {FUSED_ADAMW_MAX_THREADS}; got {threads}")
    return threads


cdef const fused_adamw_isa *find_isa() except NULL:
    global SELECTED
    cdef bytes name
    if SELECTED == NULL and FORCED_ISA is None:
        SELECTED = fused_adamw_find_isa(NULL)
    elif SELECTED == NULL:
        name = os.fsencode(FORCED_ISA)
        SELECTED = fused_adamw_find_isa(name)
    if SELECTED == NULL:
        raise ValueError(
            "the environment variable FUSED_ADAMW_ISA must be one of "
            f"{', '.join(available_isas())}; got {FORCED_ISA!r}"
        )
    return SELECTED


def _force_isa(str name):
    """For tests: use an instruction set, one of ``available_isas()``; None for the default."""
    global FORCED_ISA, SELECTED
    FORCED_ISA, SELECTED = name, NULL
    find_isa()
