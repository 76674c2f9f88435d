/* Offsets of the first step, at sizes that no test can allocate. */
#include "../first_touch.h"
#include "test_kernels.h"

void test_offsets(void)
{
    static const int BITS[] = {4, 8, 16, 32, 64};
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
