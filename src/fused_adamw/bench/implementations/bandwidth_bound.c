/* The memory-bandwidth bound of a step: the same loads (four arrays) and stores (three of them) and
 * almost no arithmetic. With zero = 0 the arrays keep their values, which the compiler cannot know. */
#include <stddef.h>
#include <stdint.h>

#define BANDWIDTH_BOUND(name, real)                                                              \
    void name(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,      \
              ptrdiff_t size, int num_threads, real zero)                                        \
    {                                                                                            \
        _Pragma("omp parallel for simd num_threads(num_threads) schedule(static)")               \
        for (ptrdiff_t i = 0; i < size; i++) {                                                   \
            const real change = zero * g[i];                                                     \
            p[i] += change;                                                                      \
            m[i] += change;                                                                      \
            v[i] += change;                                                                      \
        }                                                                                        \
    }

BANDWIDTH_BOUND(bandwidth_bound_float32, float)
BANDWIDTH_BOUND(bandwidth_bound_float64, double)

/* ---- the same for arrays of any widths, such as those of a step on 16-bit parameters */

/* An array of `nbytes` bytes that a step reads, or reads and writes. */
struct stream {
    unsigned char *bytes;
    ptrdiff_t nbytes;
    ptrdiff_t bytes_per_block;
    int32_t is_written;
};

/* A block is done in parts, so that memory is asked for all streams at a time, as in a step. */
#define PARTS 8
#define LANES 32 /* bytes of a vector; those of a part, where an item is one byte */

static inline void touch(unsigned char *bytes, ptrdiff_t length, int is_written,
                         unsigned char *restrict mask, unsigned char zero)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= length; i += LANES)
        for (int j = 0; j < LANES; j++)
            if (is_written)
                bytes[i + j] ^= mask[j];
            else
                mask[j] ^= zero & bytes[i + j];
    for (int j = 0; i + j < length; j++)
        if (is_written)
            bytes[i + j] ^= mask[j];
        else
            mask[j] ^= zero & bytes[i + j];
}

/* With lengths that the compiler knows for the usual widths, and a loop for the rest. */
static inline void touch_stream(unsigned char *bytes, ptrdiff_t length, int is_written,
                                unsigned char *restrict mask, unsigned char zero)
{
    switch (length) {
    case LANES:
        touch(bytes, LANES, is_written, mask, zero);
        break;
    case 2 * LANES:
        touch(bytes, 2 * LANES, is_written, mask, zero);
        break;
    case 4 * LANES:
        touch(bytes, 4 * LANES, is_written, mask, zero);
        break;
    default:
        touch(bytes, length, is_written, mask, zero);
    }
}

static void touch_part(const struct stream *streams, int count, ptrdiff_t block, int part,
                       unsigned char zero)
{
    unsigned char mask[LANES] = {0};
    for (int i = 0; i < count; i++) {
        const struct stream s = streams[i];
        const ptrdiff_t from = s.bytes_per_block * part / PARTS;
        const ptrdiff_t begin = block * s.bytes_per_block + from, left = s.nbytes - begin;
        const ptrdiff_t whole = s.bytes_per_block * (part + 1) / PARTS - from;
        const ptrdiff_t length = left < whole ? left : whole;
        if (s.is_written)
            touch_stream(s.bytes + begin, length, 1, mask, zero);
        else
            touch_stream(s.bytes + begin, length, 0, mask, zero);
    }
}

void bandwidth_bound_streams(const struct stream *streams, int count, ptrdiff_t num_blocks,
                             int num_threads, unsigned char zero)
{
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (ptrdiff_t block = 0; block < num_blocks; block++)
        for (int part = 0; part < PARTS; part++)
            touch_part(streams, count, block, part, zero);
}
