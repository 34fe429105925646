/*[tg_philox4x32] Philox4x32-10: the four words of a block. Key: the seed; counter: (block, op).
 * Salmon, Moraes, Dror and Shaw, SC 2011. The same in NumPy: tracegrad/ir/primitives/philox.py,
 * which also says which words an element takes. */
static inline void tg_philox4x32(uint64_t seed, uint64_t op, uint64_t block, uint32_t words[4])
{
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)op, c3 = (uint32_t)(op >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

/*[tg_random_bits] The 32-bit word of element i. */
static inline uint32_t tg_random_bits(uint64_t seed, uint64_t op, uint64_t i)
{
    uint32_t w[4];
    tg_philox4x32(seed, op, i >> 2, w);
    const uint32_t even = i & 2 ? w[2] : w[0];
    const uint32_t odd = i & 2 ? w[3] : w[1];
    return i & 1 ? odd : even;
}

/*[tg_random_bits64] The 64-bit word of element i. */
static inline uint64_t tg_random_bits64(uint64_t seed, uint64_t op, uint64_t i)
{
    uint32_t w[4];
    tg_philox4x32(seed, op, i >> 1, w);
    const uint32_t low = i & 1 ? w[2] : w[0];
    const uint32_t high = i & 1 ? w[3] : w[1];
    return (uint64_t)high << 32 | low;
}

/*[tg_random_uniform_f32] Uniform in [0, 1): a multiple of 2^-24. */
static inline float tg_random_uniform_f32(uint64_t seed, uint64_t op, uint64_t i)
{
    return (float)(int32_t)(tg_random_bits(seed, op, i) >> 8) * 0x1p-24f;
}

/*[tg_random_uniform_f64] Uniform in [0, 1): a multiple of 2^-53. */
static inline double tg_random_uniform_f64(uint64_t seed, uint64_t op, uint64_t i)
{
    return (double)(int64_t)(tg_random_bits64(seed, op, i) >> 11) * 0x1p-53;
}

/*[tg_random_uniform_f16] Uniform in [0, 1): a multiple of 2^-11, which float16 holds. */
static inline float tg_random_uniform_f16(uint64_t seed, uint64_t op, uint64_t i)
{
    return (float)(int32_t)(tg_random_bits(seed, op, i) >> 21) * 0x1p-11f;
}

/*[tg_random_uniform_bf16] Uniform in [0, 1): a multiple of 2^-8, which bfloat16 holds. */
static inline float tg_random_uniform_bf16(uint64_t seed, uint64_t op, uint64_t i)
{
    return (float)(int32_t)(tg_random_bits(seed, op, i) >> 24) * 0x1p-8f;
}

/*[tg_random_bernoulli_f64] 1 with probability p, else 0; NaN where p is outside [0, 1]. */
static inline double tg_random_bernoulli_f64(uint64_t seed, uint64_t op, uint64_t i, double p)
{
    const double drawn = (double)tg_random_bits(seed, op, i) * 0x1p-32;
    const double hit = drawn < p ? 1.0 : 0.0;
    return p >= 0.0 && p <= 1.0 ? hit : (double)__builtin_nanf("");
}

/*[tg_random_bernoulli_f32] As tg_random_bernoulli_f64. */
static inline float tg_random_bernoulli_f32(uint64_t seed, uint64_t op, uint64_t i, float p)
{
    return (float)tg_random_bernoulli_f64(seed, op, i, (double)p);
}

/*[tg_random_bernoulli_f16] As tg_random_bernoulli_f64; float16 computes in float. */
static inline float tg_random_bernoulli_f16(uint64_t seed, uint64_t op, uint64_t i, float p)
{
    return (float)tg_random_bernoulli_f64(seed, op, i, (double)p);
}

/*[tg_random_bernoulli_bf16] As tg_random_bernoulli_f64; bfloat16 computes in float. */
static inline float tg_random_bernoulli_bf16(uint64_t seed, uint64_t op, uint64_t i, float p)
{
    return (float)tg_random_bernoulli_f64(seed, op, i, (double)p);
}

/*[tg_random_randint] An integer in [low, high): low + floor(word * (high - low) / 2^64).
 * The bounds are int64_t passed as uint64_t, in which high - low cannot overflow. */
static inline int64_t tg_random_randint(uint64_t seed, uint64_t op, uint64_t i,
                                        uint64_t low, uint64_t high)
{
    const uint64_t word = tg_random_bits64(seed, op, i);
    const uint64_t span = high - low;
    const uint64_t low_part = (word & 0xffffffffu) * (span & 0xffffffffu) >> 32;
    const uint64_t cross = (word >> 32) * (span & 0xffffffffu) + low_part;
    const uint64_t carry = (word & 0xffffffffu) * (span >> 32) + (cross & 0xffffffffu);
    return (int64_t)(low + (word >> 32) * (span >> 32) + (cross >> 32) + (carry >> 32));
}

/*[tg_random_log] Natural logarithm of a normal positive number, from exactly rounded operations
 * in the order of exact_log in philox.py: 2 s (1 + s^2/3 + s^4/5 + ...), s = (m-1)/(m+1). */
static inline double tg_random_log(double u)
{
    union { double d; int64_t i; } bits = {u};
    const int64_t raw = (bits.i >> 52) - 1022;
    bits.i = (bits.i & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000;
    const int low = bits.d < 0x1.6a09e667f3bcdp-1;  /* sqrt(1/2) */
    const double m = low ? bits.d + bits.d : bits.d;
    const double exponent = (double)(raw - low);
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double tail = 1.0 / 23;
    tail = tail * z + 1.0 / 21;
    tail = tail * z + 1.0 / 19;
    tail = tail * z + 1.0 / 17;
    tail = tail * z + 1.0 / 15;
    tail = tail * z + 1.0 / 13;
    tail = tail * z + 1.0 / 11;
    tail = tail * z + 1.0 / 9;
    tail = tail * z + 1.0 / 7;
    tail = tail * z + 1.0 / 5;
    tail = tail * z + 1.0 / 3;
    tail = tail * z;
    const double ln2_high = 0x1.62e42fefp-1, ln2_low = 0x1.473de6af278edp-34;
    return exponent * ln2_high + (2.0 * s + (2.0 * s * tail + exponent * ln2_low));
}

/*[tg_random_wave] cos (which = 0) or sin (which = 1) of 2 pi t for t in [0, 1), from exactly
 * rounded operations in the order of exact_cos_sin in philox.py. */
static inline double tg_random_wave(double t, int which)
{
    const int32_t quadrant = (int32_t)(t * 4.0 + 0.5);  /* nearest multiple of a quarter turn */
    const double a = (t - quadrant * 0.25) * 0x1.921fb54442d18p+2;
    const double z = a * a;
    double sine = 1.0 / 355687428096000;  /* 1/17! */
    sine = sine * z - 1.0 / 1307674368000;
    sine = sine * z + 1.0 / 6227020800;
    sine = sine * z - 1.0 / 39916800;
    sine = sine * z + 1.0 / 362880;
    sine = sine * z - 1.0 / 5040;
    sine = sine * z + 1.0 / 120;
    sine = sine * z - 1.0 / 6;
    sine = a + a * (sine * z);
    double cosine = -1.0 / 6402373705728000;  /* 1/18! */
    cosine = cosine * z + 1.0 / 20922789888000;
    cosine = cosine * z - 1.0 / 87178291200;
    cosine = cosine * z + 1.0 / 479001600;
    cosine = cosine * z - 1.0 / 3628800;
    cosine = cosine * z + 1.0 / 40320;
    cosine = cosine * z - 1.0 / 720;
    cosine = cosine * z + 1.0 / 24;
    cosine = cosine * z - 1.0 / 2;
    cosine = 1.0 + cosine * z;
    /* cos(a + q/4 turn): cos, -sin, -cos, sin; its sine is the cosine of a quarter turn less. */
    const int32_t q = quadrant - which;
    const double wave = q & 1 ? sine : cosine;
    return (q + 1) & 2 ? -wave : wave;
}

/*[tg_random_normal_f64] Normal number of element i from 53-bit uniforms, by Box and Muller. */
static inline double tg_random_normal_f64(uint64_t seed, uint64_t op, uint64_t i)
{
    uint32_t w[4];
    tg_philox4x32(seed, op, i >> 1, w);
    const uint64_t first = ((uint64_t)w[1] << 32 | w[0]) >> 11;
    const uint64_t second = ((uint64_t)w[3] << 32 | w[2]) >> 11;
    const double u = (double)(int64_t)(first + 1) * 0x1p-53;
    const double t = (double)(int64_t)second * 0x1p-53;
    return __builtin_sqrt(-2.0 * tg_random_log(u)) * tg_random_wave(t, (int)(i & 1));
}

/*[tg_random_normal_f32] Normal number of element i from 32-bit uniforms, rounded once. */
static inline float tg_random_normal_f32(uint64_t seed, uint64_t op, uint64_t i)
{
    uint32_t w[4];
    tg_philox4x32(seed, op, i >> 2, w);
    const double u = ((double)(i & 2 ? w[2] : w[0]) + 0.5) * 0x1p-32;
    const double t = (double)(i & 2 ? w[3] : w[1]) * 0x1p-32;
    return (float)(__builtin_sqrt(-2.0 * tg_random_log(u)) * tg_random_wave(t, (int)(i & 1)));
}

/*[tg_random_normal_f16] As tg_random_normal_f32, rounded to float16. */
static inline float tg_random_normal_f16(uint64_t seed, uint64_t op, uint64_t i)
{
    return tg_round_float16(tg_random_normal_f32(seed, op, i));
}

/*[tg_random_normal_bf16] As tg_random_normal_f32, rounded to bfloat16. */
static inline float tg_random_normal_bf16(uint64_t seed, uint64_t op, uint64_t i)
{
    return tg_round_bfloat16(tg_random_normal_f32(seed, op, i));
}
