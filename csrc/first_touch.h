/* Page faults of state that has never been written.
 *
 * Linux gives memory that is read before it was ever written a shared page of zeros, and exchanges it
 * for a page of its own when it is written: two page faults each, and on older kernels small pages
 * in place of a huge one. A step reads its state before it writes it. The first step therefore
 * writes one byte of each page beforehand, as it was. */
#ifndef FUSED_ADAMW_FIRST_TOUCH_H
#define FUSED_ADAMW_FIRST_TOUCH_H

#include "internal.h"

/* The bytes before an element of an array. Their product with 8 need not be a ptrdiff_t: an array may
 * take half of the address space. */
static inline ptrdiff_t byte_offset(ptrdiff_t element, int bits)
{
    return element / 8 * bits + element % 8 * bits / 8;
}

#if defined(__linux__) && defined(__GNUC__)

/* Bytes of the smallest page. */
#define PAGE 4096

/* Compilers may turn other operations that change nothing into loads, but not this one. */
static void write_as_it_was(unsigned char *byte)
{
    unsigned char zero = 0;
    __atomic_compare_exchange_n(byte, &zero, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* The elements [begin, end) of an array, or of NULL. */
static void touch_array(void *array, int bits, ptrdiff_t begin, ptrdiff_t end)
{
    if (array == NULL)
        return;
    unsigned char *byte = (unsigned char *)array + byte_offset(begin, bits);
    unsigned char *const stop = (unsigned char *)array + byte_offset(end, bits);
    while (byte < stop) {
        write_as_it_was(byte);
        byte += PAGE - (uintptr_t)byte % PAGE;
    }
}

/* All that may start as zeros, but for scales, which are few. */
static inline void touch_state(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end)
{
    const fused_adamw_state_format *format = &fused_adamw_state_formats[tensor->state_format];
    const int master_size = fused_adamw_element_types[tensor->element_type].master_size;
    touch_array(tensor->m, format->m_bits, begin, end);
    touch_array(tensor->v, format->v_bits, begin, end);
    touch_array(tensor->master, 8 * master_size, begin, end);
    for (int i = 0; i < FUSED_ADAMW_NUM_BUFFERS; i++)
        if (fused_adamw_optional_buffers[i].like_v)
            touch_array(tensor->buffers[i], format->v_bits, begin, end);
}

#else

static inline void touch_state(const fused_adamw_tensor *tensor, ptrdiff_t begin, ptrdiff_t end)
{
    (void)tensor, (void)begin, (void)end;
}

#endif

#endif
