/* The first step: offsets at sizes that no test can allocate, and bytes that stay as they were. */
#include "../first_touch.h"
#include "test_kernels.h"

#include <string.h>

/* Pages of every byte, from one in the middle of a page to another. */
static void test_bytes_stay(void)
{
#if defined(PAGE)
    static unsigned char found[3 * PAGE], expected[3 * PAGE];
    for (int byte = 0; byte < 256; byte++) {
        memset(found, byte, sizeof found);
        memset(expected, byte, sizeof expected);
        touch_array(found, 16, 50, (ptrdiff_t)sizeof found / 2 - 50);
        check(memcmp(found, expected, sizeof found) == 0, "bytes of %d are touched", byte);
    }
#endif
}

void test_offsets(void)
{
    static const int BITS[] = {4, 8, 16, 32, 64};
    test_bytes_stay();
    for (size_t i = 0; i < sizeof BITS / sizeof *BITS; i++) {
        const int bits = BITS[i];
        for (ptrdiff_t element = 0; element < 20; element++)
            check(byte_offset(element, bits) == element * bits / 8, "offset of element %d of %d bits",
                  (int)element, bits);
        /* As many elements as an array can have: PTRDIFF_MAX bytes. */
        const ptrdiff_t last = bits < 8 ? PTRDIFF_MAX / 8 * 8 : PTRDIFF_MAX / (bits / 8);
        const ptrdiff_t expected = bits < 8 ? last / 8 * bits : last * (bits / 8);
        check(byte_offset(last, bits) == expected, "last offset of elements of %d bits", bits);
    }
}
