/*[tg_index] Position `i` of an axis of `size`: negative counts from the end. Out of range sets
 * status to (1, i, axis, size) for the caller to report, and yields a safe 0. */
static inline int64_t tg_index(int64_t i, int64_t size, int64_t axis, int64_t *status)
{
    const int64_t k = i < 0 ? i + size : i;
    if (k >= 0 && k < size)
        return k;
    status[0] = 1;
    status[1] = i;
    status[2] = axis;
    status[3] = size;
    return 0;
}

/*[tg_strayed] Check number `k` found another value than the path has: its first bytes go to status. */
static void tg_strayed(int64_t k, const void *value, int64_t size, int64_t *status)
{
    status[0] = 3;
    status[1] = k;
    status[2] = 0;
    __builtin_memcpy(&status[2], value, size);
}

/*[tg_load_float16] IEEE half to float, exact. */
static inline float tg_load_float16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t rest = h & 0x7fffu;
    union { uint32_t u; float f; } out;
    if (rest >= 0x7c00u) {  /* infinity, NaN */
        out.u = sign | 0x7f800000u | (rest & 0x3ffu) << 13;
    } else if (rest >= 0x400u) {  /* normal: shift the exponent by 127 - 15 */
        out.u = sign | ((rest << 13) + (112u << 23));
    } else {  /* subnormal: a multiple of 2^-24 */
        out.f = (float)rest * 5.9604644775390625e-8f;
        out.u |= sign;
    }
    return out.f;
}

/*[tg_store_float16] Float to IEEE half, to nearest, ties to even. */
static inline uint16_t tg_store_float16(float value)
{
    union { float f; uint32_t u; } in = {value};
    const uint32_t sign = in.u >> 16 & 0x8000u;
    const uint32_t rest = in.u & 0x7fffffffu;
    if (rest > 0x7f800000u)  /* NaN keeps being one */
        return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x47800000u)  /* 65536 and above */
        return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) {  /* below 2^-14: adding 0.5 rounds to a multiple of 2^-24 */
        union { float f; uint32_t u; } sum = {0};
        sum.u = rest;
        sum.f += 0.5f;
        return (uint16_t)(sign | (sum.u - 0x3f000000u));
    }
    const uint32_t odd = rest >> 13 & 1u;
    return (uint16_t)(sign | (rest - (112u << 23) + 0xfffu + odd) >> 13);
}

/*[tg_round_float16] A float rounded to what IEEE half can hold. */
static inline float tg_round_float16(float value)
{
    return tg_load_float16(tg_store_float16(value));
}

/*[tg_load_bfloat16] bfloat16 to float: the upper half of its bits. */
static inline float tg_load_bfloat16(uint16_t b)
{
    union { uint32_t u; float f; } out = {(uint32_t)b << 16};
    return out.f;
}

/*[tg_store_bfloat16] Float to bfloat16, to nearest, ties to even. */
static inline uint16_t tg_store_bfloat16(float value)
{
    union { float f; uint32_t u; } in = {value};
    if ((in.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(in.u >> 16 | 0x40u);
    return (uint16_t)((in.u + 0x7fffu + (in.u >> 16 & 1u)) >> 16);
}

/*[tg_round_bfloat16] A float rounded to what bfloat16 can hold. */
static inline float tg_round_bfloat16(float value)
{
    return tg_load_bfloat16(tg_store_bfloat16(value));
}

/*[tg_gemm_f32] c = a b, row-major, float: m x k times k x n; a or b is read transposed where asked.
 * Through the BLAS that tg_init was given, else by a plain loop. */
typedef void (*tg_sgemm32)(int, int, int, int, int, int, float, const float *, int, const float *, int,
                           float, float *, int);
typedef void (*tg_sgemm64)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t,
                           const float *, int64_t, float, float *, int64_t);

static void tg_gemm_f32(int ta, int tb, int64_t m, int64_t n, int64_t k, const float *restrict a,
                        int64_t lda, const float *restrict b, int64_t ldb, float *restrict c, int64_t ldc)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };  /* the CBLAS standard's numbers */
    const int flip_a = ta ? TRANSPOSED : AS_IS, flip_b = tb ? TRANSPOSED : AS_IS;
    if (tg_blas.sgemm && tg_blas.wide) {
        ((tg_sgemm64)tg_blas.sgemm)(ROW_MAJOR, flip_a, flip_b, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, c, ldc);
        return;
    }
    if (tg_blas.sgemm && m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX) {
        ((tg_sgemm32)tg_blas.sgemm)(ROW_MAJOR, flip_a, flip_b, (int)m, (int)n, (int)k, 1.0f, a, (int)lda,
                                    b, (int)ldb, 0.0f, c, (int)ldc);
        return;
    }
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = 0;
        for (int64_t l = 0; l < k; l++) {
            const float left = ta ? a[l * lda + i] : a[i * lda + l];
            for (int64_t j = 0; j < n; j++)
                c[i * ldc + j] += left * (tb ? b[j * ldb + l] : b[l * ldb + j]);
        }
    }
}

/*[tg_gemm_f64] c = a b, row-major, double: as its float twin. */
typedef void (*tg_dgemm32)(int, int, int, int, int, int, double, const double *, int, const double *,
                           int, double, double *, int);
typedef void (*tg_dgemm64)(int, int, int, int64_t, int64_t, int64_t, double, const double *, int64_t,
                           const double *, int64_t, double, double *, int64_t);

static void tg_gemm_f64(int ta, int tb, int64_t m, int64_t n, int64_t k, const double *restrict a,
                        int64_t lda, const double *restrict b, int64_t ldb, double *restrict c, int64_t ldc)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };
    const int flip_a = ta ? TRANSPOSED : AS_IS, flip_b = tb ? TRANSPOSED : AS_IS;
    if (tg_blas.dgemm && tg_blas.wide) {
        ((tg_dgemm64)tg_blas.dgemm)(ROW_MAJOR, flip_a, flip_b, m, n, k, 1.0, a, lda, b, ldb, 0.0, c, ldc);
        return;
    }
    if (tg_blas.dgemm && m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX) {
        ((tg_dgemm32)tg_blas.dgemm)(ROW_MAJOR, flip_a, flip_b, (int)m, (int)n, (int)k, 1.0, a, (int)lda,
                                    b, (int)ldb, 0.0, c, (int)ldc);
        return;
    }
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = 0;
        for (int64_t l = 0; l < k; l++) {
            const double left = ta ? a[l * lda + i] : a[i * lda + l];
            for (int64_t j = 0; j < n; j++)
                c[i * ldc + j] += left * (tb ? b[j * ldb + l] : b[l * ldb + j]);
        }
    }
}

/*[tg_blas] Matrix products of the BLAS at hand, handed in once after loading:
 * args = {sgemm, dgemm, sgemv, dgemv, bits of its integers}; NULL where there is none. */
static struct {
    void *sgemm, *dgemm;
    int wide;
} tg_blas;

void tg_init(void **args)
{
    tg_blas.sgemm = args[0];
    tg_blas.dgemm = args[1];
    tg_blas.wide = (intptr_t)args[4] == 64;
}

/*[tg_threads] How many threads a parallel loop may use: a cell of the caller. */
static const int *tg_threads;

void tg_init_threads(const int *count)
{
    tg_threads = count;
}
