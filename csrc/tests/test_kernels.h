/* The parts of the test program. */
#ifndef TEST_KERNELS_H
#define TEST_KERNELS_H

#include "harness.h"

void test_scalars(void);
void test_dispatch(void);
void test_codecs(void);
void test_element_types(void);
void test_master_weights(void);
void test_dithers(void);
void test_bias_corrections(void);
void test_offsets(void);
void test_threads_of_a_step(void);
void test_fork(void);
void test_callers(void);

/* Divides a tensor into parts of whole blocks, with an empty one among them. Returns how many. */
ptrdiff_t divide_tensor(const problem *p, const fused_adamw_tensor *whole, int num_parts,
                        fused_adamw_tensor *parts);

#endif
