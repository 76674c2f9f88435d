/* Counting checks, guarded memory and random problems. */
#ifndef HARNESS_H
#define HARNESS_H

#include "oracle.h"

extern long num_passed, num_failed;

/* Counts a check; prints the text (printf's) of one that fails. */
int check(int passed, const char *format, ...);

/* Memory that starts (at an odd address) or ends beside a page that cannot be accessed. */
typedef struct {
    unsigned char *data;
    unsigned char *pages;
    size_t num_bytes, num_pages_bytes;
} guarded;

guarded guarded_copy(const void *from, size_t num_bytes, int at_end);

/* Whether the bytes on the other side, which share its pages, are as they were. */
int guarded_is_intact(const guarded *memory);

void guarded_free(guarded *memory);

/* Numbers from 0 to below `bound`, the same in every run. */
uint32_t random_below(uint32_t bound);

/* Allocates the arrays of a problem and fills them with what training may leave there, a few zeros,
 * infinities and NaNs among the gradients. */
void problem_fill(problem *p);
/* Replaces gradients beyond which a sum of squares loses the others: those that are not finite, too. */
void problem_without_large_grads(problem *p);

problem problem_copy(const problem *p);
void problem_free(problem *p);

/* Whether an array has the bits expected; any NaN is as good as another. */
int same_bits(const problem *expected, int role, const void *found);

fused_adamw_tensor tensor_of(const problem *p, void *const *arrays);

#endif
