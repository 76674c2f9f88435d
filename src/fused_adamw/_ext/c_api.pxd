"""The C library, as csrc/fused_adamw.h declares it."""

from libc.stdint cimport int64_t, uint32_t


cdef extern from "fused_adamw.h" nogil:
    enum:
        FUSED_ADAMW_FLOAT32
        FUSED_ADAMW_FLOAT64
        FUSED_ADAMW_NUM_ELEMENT_TYPES

    enum:
        FUSED_ADAMW_STATE_FLOAT32
        FUSED_ADAMW_STATE_FLOAT64
        FUSED_ADAMW_NUM_STATE_FORMATS

    enum:
        FUSED_ADAMW_NUM_BUFFERS

    enum:
        FUSED_ADAMW_BLOCK
        FUSED_ADAMW_CHUNK
        FUSED_ADAMW_MIN_ELEMENTS_PER_THREAD
        FUSED_ADAMW_MAX_THREADS

    enum:
        FUSED_ADAMW_OK
        FUSED_ADAMW_BAD_LR
        FUSED_ADAMW_BAD_BETA1
        FUSED_ADAMW_BAD_BETA2
        FUSED_ADAMW_BAD_EPS
        FUSED_ADAMW_BAD_WEIGHT_DECAY
        FUSED_ADAMW_BAD_GRAD_SCALE
        FUSED_ADAMW_BAD_BUFFER_DECAY
        FUSED_ADAMW_NOT_REPRESENTABLE

    ctypedef struct fused_adamw_element_type:
        const char *name
        int size
        char buffer_format
        int dlpack_code
        int dlpack_bits
        int compute
        const char *master_type
        int master_size

    const fused_adamw_element_type *fused_adamw_element_types

    ctypedef struct fused_adamw_state_format:
        const char *name
        const char *m_type
        const char *v_type
        int m_bits
        int v_bits
        int block
        const char *m_scale_type
        const char *v_scale_type
        int amsgrad
        int own

    const fused_adamw_state_format *fused_adamw_state_formats

    ctypedef struct fused_adamw_optional_buffer:
        const char *name
        const char *option
        int like_v
        int from_params
        int has_decay

    const fused_adamw_optional_buffer *fused_adamw_optional_buffers

    ctypedef struct fused_adamw_hyperparams:
        double lr
        double beta1
        double beta2
        double eps
        double weight_decay
        double buffer_decays[FUSED_ADAMW_NUM_BUFFERS]

    ctypedef struct fused_adamw_scalars:
        pass

    ctypedef struct fused_adamw_tensor:
        void *params
        const void *grads
        void *m
        void *v
        void *m_scale
        void *v_scale
        void *master
        void *buffers[FUSED_ADAMW_NUM_BUFFERS]
        ptrdiff_t size
        int element_type
        int state_format
        int has_wide_grads
        uint32_t rng_key
        ptrdiff_t element_offset
        const fused_adamw_scalars *scalars

    ctypedef struct fused_adamw_isa:
        pass

    int fused_adamw_derive_scalars(
        const fused_adamw_hyperparams *hyperparams, int element_type, int64_t t,
        fused_adamw_scalars *scalars)
    int fused_adamw_finish_scalars(
        fused_adamw_scalars *scalars, double grad_scale, double factor, int stochastic)
    uint32_t fused_adamw_rng_key(uint32_t seed, ptrdiff_t param_index)
    double fused_adamw_clip_factor(double norm, double max_norm)

    void fused_adamw_init()
    const fused_adamw_isa *fused_adamw_isa_at(int index)
    const char *fused_adamw_isa_name(const fused_adamw_isa *isa)
    int fused_adamw_isa_available(const fused_adamw_isa *isa)
    const fused_adamw_isa *fused_adamw_find_isa(const char *name)
    const char *fused_adamw_threading()
    int fused_adamw_default_threads(int asked, int quota)
    int fused_adamw_useful_threads(
        const fused_adamw_tensor *tensors, ptrdiff_t count, int num_threads)

    void fused_adamw_step(
        const fused_adamw_isa *isa, const fused_adamw_tensor *tensors, ptrdiff_t count,
        int num_threads)
    ptrdiff_t fused_adamw_num_chunks(const fused_adamw_tensor *tensors, ptrdiff_t count)
    void fused_adamw_sum_squares(
        const fused_adamw_isa *isa, const fused_adamw_tensor *tensors, ptrdiff_t count,
        int num_threads, double *partial_sums)
    double fused_adamw_norm(const double *partial_sums, ptrdiff_t count, double grad_scale)
    void fused_adamw_decode_state(
        const fused_adamw_isa *isa, const fused_adamw_tensor *tensor,
        const fused_adamw_tensor *moments)
    void fused_adamw_encode_state(
        const fused_adamw_isa *isa, const fused_adamw_tensor *tensor,
        const fused_adamw_tensor *moments)
