"""The tables of the C library, read once: element types, state formats, optional buffers; and the
roles of state arrays."""

BLOCK = FUSED_ADAMW_BLOCK
"""Elements that are converted to float32 at a time. The scales of a state format apply to this many
elements, or to a divisor of it."""

CHUNK = FUSED_ADAMW_CHUNK
"""Elements of one partial sum of the gradient norm; shards begin at multiples."""

MIN_ELEMENTS_PER_THREAD = FUSED_ADAMW_MIN_ELEMENTS_PER_THREAD
"""Fewer elements than this do not pay for another thread."""


class ElementType(NamedTuple):
    """A row of the element types: of parameters and gradients."""

    name: str
    itemsize: int
    compute: str  # the compute type, float32 or float64
    master: str   # storage type of master weights; "" where there are none


class StateFormat(NamedTuple):
    """A row of the state formats: how the moments are stored."""

    name: str
    m: str           # storage types of the arrays
    v: str
    m_bits: int      # an element
    v_bits: int
    block: int       # elements that share a scale; 1 where there are no scales
    m_scale: str     # storage types; "" where there are no scales
    v_scale: str
    amsgrad: bool    # whether it can store more buffers like v
    own: bool        # whether it is for parameters of its own type only


class OptionalBuffer(NamedTuple):
    """A row of the optional buffers: an array of the state that an option needs."""

    name: str            # its role
    option: str
    like_v: bool         # stored as the state format stores v; else in the compute type
    from_params: bool    # starts as the parameters; else as zeros
    has_decay: bool      # the option is a decay rate; else a flag


cdef str text(const char *string):
    return "" if string == NULL else string.decode()


def element_types():
    """The element types that parameters and gradients may have, in the order of C's table."""
    rows = []
    cdef const fused_adamw_element_type *row = fused_adamw_element_types
    while row.name != NULL:
        compute = text(fused_adamw_element_types[row.compute].name)
        rows.append(ElementType(text(row.name), row.size, compute, text(row.master_type)))
        row += 1
    return rows


def state_formats():
    """The formats in which moments may be stored, in the order of C's table."""
    rows = []
    cdef const fused_adamw_state_format *row = fused_adamw_state_formats
    while row.name != NULL:
        rows.append(StateFormat(
            text(row.name), text(row.m_type), text(row.v_type), row.m_bits, row.v_bits, row.block,
            text(row.m_scale_type), text(row.v_scale_type), row.amsgrad != 0, row.own != 0,
        ))
        row += 1
    return rows


def optional_buffers():
    """The arrays that the state may have for an option, in the order of C's table."""
    rows = []
    cdef int k
    cdef const fused_adamw_optional_buffer *row
    for k in range(FUSED_ADAMW_NUM_BUFFERS):
        row = &fused_adamw_optional_buffers[k]
        rows.append(OptionalBuffer(
            text(row.name), text(row.option), row.like_v != 0, row.from_params != 0,
            row.has_decay != 0,
        ))
    return rows


cdef object name_of = attrgetter("name")
cdef list OPTIONAL_BUFFERS = optional_buffers()
cdef list ELEMENT_TYPES = list(map(name_of, element_types()))
cdef dict FORMAT_INDEX = {row.name: i for i, row in enumerate(state_formats())}


cdef int format_index(name) except -1:
    index = FORMAT_INDEX.get(name)
    if index is None:
        raise ValueError(f"state format must be one of {list(FORMAT_INDEX)}; got {name!r}")
    return index


cdef inline int plain_format(int element_type) noexcept:
    """The format of moments that have the dtype of their parameters; -1 where none has it."""
    if element_type == FUSED_ADAMW_FLOAT32:
        return FUSED_ADAMW_STATE_FLOAT32
    return FUSED_ADAMW_STATE_FLOAT64 if element_type == FUSED_ADAMW_FLOAT64 else -1


# The format of moments that are stored as their parameters are, by element type.
cdef int[FUSED_ADAMW_NUM_ELEMENT_TYPES] OWN_FORMAT
for _type, _name in enumerate(ELEMENT_TYPES):
    OWN_FORMAT[<int>_type] = FORMAT_INDEX[_name]


cdef inline bint is_compatible(int element_type, int state_format) noexcept:
    """float64 parameters have moments of float64; formats of one type of parameters go with no
    others."""
    if fused_adamw_state_formats[state_format].own:
        return state_format == OWN_FORMAT[element_type]
    return element_type != FUSED_ADAMW_FLOAT64


# ---- roles: the arrays that may be kept for a tensor


cdef enum Role:
    PARAMS
    M
    V
    M_SCALE
    V_SCALE
    MASTER
    OPTIONAL  # the first of the optional buffers

cdef enum:
    ROLES = <int>OPTIONAL + FUSED_ADAMW_NUM_BUFFERS

cdef tuple ROLE_NAMES = (
    "params", "m", "v", "m_scale", "v_scale", "master", *map(name_of, OPTIONAL_BUFFERS)
)
cdef dict ROLE_INDEX = {name: role for role, name in enumerate(ROLE_NAMES)}


cdef inline void **role_pointer(fused_adamw_tensor *tensor, int role) noexcept:
    """Where a tensor points to the array of a role."""
    if role == PARAMS:
        return &tensor.params
    if role == M:
        return &tensor.m
    if role == V:
        return &tensor.v
    if role == M_SCALE:
        return &tensor.m_scale
    if role == V_SCALE:
        return &tensor.v_scale
    if role == MASTER:
        return &tensor.master
    return &tensor.buffers[role - <int>OPTIONAL]


cdef inline bint is_like_v(int role) noexcept:
    """Whether a role's array is stored as the state format stores v."""
    return role == V or (
        role >= <int>OPTIONAL and fused_adamw_optional_buffers[role - <int>OPTIONAL].like_v
    )


cdef const char *storage_type_name(int role, int element_type, int state_format) noexcept:
    """The type in which a role's array is stored; NULL where the format has no such array."""
    cdef const fused_adamw_state_format *row = &fused_adamw_state_formats[state_format]
    if role == M:
        return row.m_type
    if is_like_v(role):
        return row.v_type
    if role == M_SCALE:
        return row.m_scale_type
    if role == V_SCALE:
        return row.v_scale_type
    if role == MASTER:
        return fused_adamw_element_types[element_type].master_type
    if role != PARAMS:
        element_type = fused_adamw_element_types[element_type].compute
    return fused_adamw_element_types[element_type].name


cdef enum:
    DLPACK_INT = 0
    DLPACK_UINT = 1
    DLPACK_FLOAT = 2
    DLPACK_BFLOAT = 4


cdef struct StorageType:
    # The dtype of a stored array, as DLPack numbers it.
    int code
    int bits


cdef StorageType storage_of(const char *name):
    """The DLPack dtype of a storage type: "float32", "bfloat16", "int8", "uint32", ..."""
    digits = name.decode().lstrip("abcdefghijklmnopqrstuvwxyz")
    kind = name.decode()[:-len(digits)]
    kinds = {"int": DLPACK_INT, "uint": DLPACK_UINT, "float": DLPACK_FLOAT, "bfloat": DLPACK_BFLOAT}
    return StorageType(kinds[kind], int(digits))


cdef int state_role(name) except -1:
    """The role of a state array."""
    role = ROLE_INDEX.get(name) if isinstance(name, str) else None
    if not role:  # none, or that of the parameters
        raise ValueError(f"state arrays must be named {list(ROLE_NAMES[1:])}; got {name!r}")
    return role


cdef unsigned int roles_of(fused_adamw_tensor *tensor) noexcept:
    """The roles that a tensor has arrays of, as bits."""
    cdef unsigned int found = 0
    cdef int role
    for role in range(<int>ROLES):
        if role_pointer(tensor, role)[0] != NULL:
            found |= 1 << role
    return found


cdef int require_roles(int element_type, int state_format, unsigned int found) except -1:
    """A kernel reads all arrays that a state format has."""
    cdef const fused_adamw_state_format *row = &fused_adamw_state_formats[state_format]
    cdef int role
    for role in (M, V, M_SCALE, V_SCALE):
        if not found >> role & 1 and storage_type_name(role, element_type, state_format) != NULL:
            raise ValueError(
                f"state in format {text(row.name)!r} must have an array {ROLE_NAMES[role]!r}; "
                "got none"
            )
    for role in range(<int>OPTIONAL, <int>ROLES):
        if found >> role & 1 and is_like_v(role) and not row.amsgrad:
            raise ValueError(
                f"state in format {text(row.name)!r} must have no {ROLE_NAMES[role]!r}; got one"
            )
    if found >> MASTER & 1 and fused_adamw_element_types[element_type].master_type == NULL:
        raise ValueError(f"state of {ELEMENT_TYPES[element_type]} must have no 'master'; got one")
    return 0


# The storage types of the roles of state by state format, which determines the compute type. No
# bits: the format has no such array. Master weights go by element type instead.
cdef StorageType[FUSED_ADAMW_NUM_STATE_FORMATS][ROLES] STATE_STORAGE
cdef StorageType[FUSED_ADAMW_NUM_ELEMENT_TYPES] MASTER_STORAGE


cdef int read_storage_types() except -1:
    cdef int index, role, compute
    cdef const char *name
    for index in range(FUSED_ADAMW_NUM_STATE_FORMATS):
        compute = FUSED_ADAMW_FLOAT64 if index == FUSED_ADAMW_STATE_FLOAT64 else FUSED_ADAMW_FLOAT32
        for role in range(<int>ROLES):
            name = storage_type_name(role, compute, index)
            STATE_STORAGE[index][role] = StorageType(0, 0) if name == NULL else storage_of(name)
    for index in range(FUSED_ADAMW_NUM_ELEMENT_TYPES):
        name = fused_adamw_element_types[index].master_type
        MASTER_STORAGE[index] = StorageType(0, 0) if name == NULL else storage_of(name)
    return 0

read_storage_types()


cdef inline StorageType stored_type(const fused_adamw_tensor *tensor, int role) noexcept:
    """The storage type of a role's array of a tensor of this element type and state format."""
    if role == MASTER:
        return MASTER_STORAGE[tensor.element_type]
    return STATE_STORAGE[tensor.state_format][role]


cdef inline int bits_per_element(const fused_adamw_tensor *tensor, int role) noexcept:
    """Of a role's array of a tensor of this element type and state format; of scales 0."""
    cdef const fused_adamw_element_type *params = &fused_adamw_element_types[tensor.element_type]
    if role == M:
        return fused_adamw_state_formats[tensor.state_format].m_bits
    if is_like_v(role):
        return fused_adamw_state_formats[tensor.state_format].v_bits
    if role == M_SCALE or role == V_SCALE:
        return 0
    if role == MASTER:
        return 8 * params.master_size
    return 8 * (params.size if role == PARAMS else fused_adamw_element_types[params.compute].size)


cdef Py_ssize_t storage_nbytes(const fused_adamw_tensor *tensor, int role) noexcept:
    """The bytes of a role's array of a tensor of this size, element type and state format."""
    cdef Py_ssize_t size = tensor.size, block
    cdef int bits = bits_per_element(tensor, role)
    if role == M_SCALE or role == V_SCALE:
        block = fused_adamw_state_formats[tensor.state_format].block
        return (size + block - 1) // block * (STATE_STORAGE[tensor.state_format][role].bits // 8)
    return size // 8 * bits + (size % 8 * bits + 7) // 8  # all bits could overflow
