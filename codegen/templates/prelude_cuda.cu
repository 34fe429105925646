/*[tg_index] Position `i` of an axis of `size`: negative counts from the end. Out of range sets
 * status to (1, i, axis, size), of one thread among those that find such an index, and yields a safe 0. */
static inline int64_t tg_index(int64_t i, int64_t size, int64_t axis, int64_t *status)
{
    const int64_t k = i < 0 ? i + size : i;
    if (k >= 0 && k < size)
        return k;
    if (atomicCAS((unsigned long long *)status, 0ULL, 1ULL) == 0ULL) {
        status[1] = i;
        status[2] = axis;
        status[3] = size;
    }
    return 0;
}

/*[tg_load_float16] IEEE half to float, exact. */
static inline float tg_load_float16(uint16_t h)
{
#ifdef __CUDACC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h));
    return value;
#else
    return tg_bits_to_float16(h);
#endif
}

/*[tg_store_float16] Float to IEEE half, to nearest, ties to even. */
static inline uint16_t tg_store_float16(float value)
{
#ifdef __CUDACC__
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(value));
    return h;
#else
    return tg_float16_to_bits(value);
#endif
}

/*[tg_store_bfloat16] Float to bfloat16, to nearest, ties to even. */
static inline uint16_t tg_store_bfloat16(float value)
{
#ifdef __CUDACC__
    uint16_t b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(value));
    return b;
#else
    return tg_bfloat16_to_bits(value);
#endif
}

/*[tg_lgamma_f64] log |gamma(x)|. */
static inline double tg_lgamma_f64(double x)
{
    return lgamma(x);
}

/*[tg_fetch] Neighbouring elements from memory, with accesses of up to 128 bits where the address allows
 * (ALIGNED: it does). Beyond `count` there is nothing to read, and they are 0. */
template <bool ALIGNED = false, class T, int N>
__device__ inline void tg_fetch(T (&lanes)[N], const T *from, int64_t count = N)
{
    constexpr int each = sizeof(T) * N < 16 ? N : 16 / sizeof(T);
    struct alignas(each * sizeof(T)) Part { T at[each]; };
    if (count >= N && (ALIGNED || (uint64_t)from % sizeof(Part) == 0)) {
#pragma unroll
        for (int k = 0; k < N; k += each) {
            const Part part = *(const Part *)(from + k);
#pragma unroll
            for (int j = 0; j < each; j++)
                lanes[k + j] = part.at[j];
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            lanes[k] = k < count ? from[k] : T(0);
    }
}

/*[tg_put] Neighbouring elements to memory, the first `count` of them, as tg_fetch reads them. */
template <bool ALIGNED = false, class T, int N>
__device__ inline void tg_put(T *to, const T (&lanes)[N], int64_t count = N)
{
    constexpr int each = sizeof(T) * N < 16 ? N : 16 / sizeof(T);
    struct alignas(each * sizeof(T)) Part { T at[each]; };
    if (count >= N && (ALIGNED || (uint64_t)to % sizeof(Part) == 0)) {
#pragma unroll
        for (int k = 0; k < N; k += each) {
            Part part;
#pragma unroll
            for (int j = 0; j < each; j++)
                part.at[j] = lanes[k + j];
            *(Part *)(to + k) = part;
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < count)
                to[k] = lanes[k];
    }
}
