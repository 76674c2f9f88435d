/* The tables of formats.h, as callers read them. */
#include "internal.h"

const fused_adamw_element_type fused_adamw_element_types[] = {
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits)                               \
    {#name, sizeof(type), buffer_format, dlpack_code, dlpack_bits, FUSED_ADAMW_##id,       \
     NULL, 0},
    FUSED_ADAMW_COMPUTE_TYPES(ROW)
#undef ROW
#define ROW(id, name, type, buffer_format, dlpack_code, dlpack_bits, master_type, master_name)     \
    {#name,       sizeof(type),        buffer_format, dlpack_code,                                 \
     dlpack_bits, FUSED_ADAMW_FLOAT32, master_name,   sizeof(master_type)},
    FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW
    {NULL, 0, 0, 0, 0, 0, NULL, 0},
};

const fused_adamw_state_format fused_adamw_state_formats[] = {
#define STATE_FORMAT(id, name, m_type, v_type, m_bits, v_bits, block, m_scale, v_scale, amsgrad,   \
                     own)                                                                          \
    {name, m_type, v_type, m_bits, v_bits, block, m_scale, v_scale, amsgrad, own},
#include "kernels/formats/list.inc"
#undef STATE_FORMAT
    {NULL, NULL, NULL, 0, 0, 0, NULL, NULL, 0, 0},
};

const fused_adamw_optional_buffer fused_adamw_optional_buffers[FUSED_ADAMW_NUM_BUFFERS] = {
#define ROW(id, name, option, like_v, from_params, has_decay)                                      \
    {#name, option, like_v, from_params, has_decay},
    FUSED_ADAMW_OPTIONAL_BUFFERS(ROW)
#undef ROW
};
