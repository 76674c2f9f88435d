/* The tables of element types, state formats and optional buffers, and the names that are made from
 * them.
 *
 * A new element type is four edits: a row below, and how single values are loaded and stored, and
 * master weights split and joined, in kernels/element_types.h. A new state format is two: a file in
 * kernels/formats/, which has its row and its codec, and its line in kernels/formats/list.inc. */
#ifndef FUSED_ADAMW_FORMATS_H
#define FUSED_ADAMW_FORMATS_H

/* Each row: identifier, name, C type, format of Python's buffer protocol (0: none), type code and
 * bits of DLPack (kDLFloat is 2, kDLBfloat is 4). */

/* The compute types, in which the formula is evaluated: a block each in kernels/instantiate.inc. */
#define FUSED_ADAMW_COMPUTE_TYPES(ROW)                                                             \
    ROW(FLOAT32, float32, float, 'f', 2, 32)                                                       \
    ROW(FLOAT64, float64, double, 'd', 2, 64)

/* Types that are stored only: they are converted to float32 and back. Two more columns: how what
 * master weights have beyond the parameters is stored, as a C type and by name. */
#define FUSED_ADAMW_STORAGE_TYPES(ROW)                                                             \
    ROW(BFLOAT16, bfloat16, uint16_t, 0, 4, 16, int16_t, "int16")                                  \
    ROW(FLOAT16, float16, uint16_t, 'e', 2, 16, float, "float32")

/* FUSED_ADAMW_FLOAT32, ... */
enum {
#define ROW(id, name, ...) FUSED_ADAMW_##id,
    FUSED_ADAMW_COMPUTE_TYPES(ROW) FUSED_ADAMW_STORAGE_TYPES(ROW)
#undef ROW
        FUSED_ADAMW_NUM_ELEMENT_TYPES
};

/* FUSED_ADAMW_STATE_FLOAT32, ... */
enum {
#define STATE_FORMAT(id, ...) FUSED_ADAMW_STATE_##id,
#include "kernels/formats/list.inc"
#undef STATE_FORMAT
    FUSED_ADAMW_NUM_STATE_FORMATS
};

/* What a tensor may have besides its moments, each for an option of the step. Each row: identifier,
 * name, the option; 1 if it is stored as the state format stores v, 0 if in the compute type; 1 if
 * it starts as the parameters, 0 if as zeros; 1 if the option is a decay rate (its d and 1 - d are
 * NAME_decay and NAME_complement in kernels/adamw.inc), 0 if a flag. */
#define FUSED_ADAMW_OPTIONAL_BUFFERS(ROW)                                                          \
    ROW(V_MAX, v_max, "amsgrad", 1, 0, 0) /* the largest v so far */                               \
    ROW(EMA, ema, "ema_decay", 0, 1, 1)   /* a moving average of the weights */

/* FUSED_ADAMW_V_MAX, ... */
enum {
#define ROW(id, name, option, like_v, from_params, has_decay) FUSED_ADAMW_##id,
    FUSED_ADAMW_OPTIONAL_BUFFERS(ROW)
#undef ROW
        FUSED_ADAMW_NUM_BUFFERS
};

#endif
