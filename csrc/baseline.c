/* The kernels of the baseline: what the compiler may use anyway. */
#define ISA baseline
#define TARGET
#include "kernels/instantiate.inc"
