/* The parts of the test program. */
#ifndef TEST_KERNELS_H
#define TEST_KERNELS_H

#include "harness.h"

void test_scalars(void);
void test_dispatch(void);
void test_codecs(void);
void test_fork(void);

#endif
