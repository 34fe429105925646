/* Scalar functions that C or its library lacks, or defines otherwise than tracegrad does.
 *
 * A heading with suffixes, as in tg_max_{s} f32 f64, is written once for several types:
 * {s} stands for the suffix, {T} for its type, {U} for the unsigned type in which integers wrap
 * around, {f} for the suffix of libm functions and of literals. Conditions are combined with |
 * and & and chosen with ?: so that the compiler can vectorise them. A helper that can fail sets
 * status[0] to a code (2: an integer was divided by zero) and yields 0. */

/*[tg_sign_{s} u8 i8 i16 i32 i64 u32 f32 f64] -1, 0 or 1; 0 for NaN. */
static inline {T} tg_sign_{s}({T} x)
{
    return ({T})((x > 0) - (x < 0));
}

/*[tg_abs_{s} u8 i8 i16 i32 i64 u32] Magnitude; of the least integer, itself. */
static inline {T} tg_abs_{s}({T} x)
{
    return ({T})(x < 0 ? 0 - ({U})x : ({U})x);
}

/*[tg_max_{s} u8 i8 i16 i32 i64 u32] The larger operand. */
static inline {T} tg_max_{s}({T} x, {T} y)
{
    return x > y ? x : y;
}

/*[tg_max_{s} f32 f64] The larger operand; NaN where either is NaN. */
static inline {T} tg_max_{s}({T} x, {T} y)
{
    return y > x ? y : (y != y ? y : x);
}

/*[tg_min_{s} u8 i8 i16 i32 i64 u32] The smaller operand. */
static inline {T} tg_min_{s}({T} x, {T} y)
{
    return x < y ? x : y;
}

/*[tg_min_{s} f32 f64] The smaller operand; NaN where either is NaN. */
static inline {T} tg_min_{s}({T} x, {T} y)
{
    return y < x ? y : (y != y ? y : x);
}

/*[tg_isnan_{s} f32 f64] 1 for NaN. */
static inline int tg_isnan_{s}({T} x)
{
    return x != x;
}

/*[tg_isinf_{s} f32 f64] 1 for either infinity. */
static inline int tg_isinf_{s}({T} x)
{
    return fabs{f}(x) == TG_INF;
}

/*[tg_isfinite_{s} f32 f64] 0 for NaN and the infinities. */
static inline int tg_isfinite_{s}({T} x)
{
    return fabs{f}(x) < TG_INF;
}

/*[tg_shl_{s} u8 i8 i16 i32 i64 u32] x << n; 0 where n is negative or no less than the width. */
static inline {T} tg_shl_{s}({T} x, {T} n)
{
    const {U} width = 8 * sizeof({T});
    return ({T})(({U})n < width ? ({U})x << (({U})n & (8 * sizeof({U}) - 1)) : 0);
}

/*[tg_shr_{s} u8 i8 i16 i32 i64 u32] x >> n; only copies of the sign bit where n is negative or no
 * less than the width. */
static inline {T} tg_shr_{s}({T} x, {T} n)
{
    const {U} width = 8 * sizeof({T});
    return ({T})(({U})n < width ? x >> (({U})n & (8 * sizeof({U}) - 1)) : x < 0 ? -1 : 0);
}

/*[tg_pow_{s} u8 i8 i16 i32 i64 u32] x to the power n by squaring, wrapping around; for negative n
 * the reciprocal rounded towards zero, which is 0 unless x is 1 or -1 (and 0 for x = 0). */
static inline {T} tg_pow_{s}({T} x, {T} n)
{
    if (n < 0)
        return ({T})(x == 1 ? 1 : x == ({T})-1 ? (n & 1 ? -1 : 1) : 0);
    {U} result = 1, square = ({U})x;
    for ({U} rest = ({U})n; rest; rest >>= 1) {
        result *= rest & 1 ? square : 1;
        square *= square;
    }
    return ({T})result;
}

/*[tg_fmod_{s} u8 i8 i16 i32 i64 u32] Remainder with the sign of x. */
static inline {T} tg_fmod_{s}({T} x, {T} y, int64_t *status)
{
    if (y == 0) {
        status[0] = 2;
        return 0;
    }
    return y == ({T})-1 && y < 0 ? 0 : ({T})(x % y);  /* INT_MIN % -1 traps */
}

/*[tg_remainder_{s} u8 i8 i16 i32 i64 u32] Remainder with the sign of y, as Python's %. */
static inline {T} tg_remainder_{s}({T} x, {T} y, int64_t *status)
{
    const {T} r = tg_fmod_{s}(x, y, status);
    return ({T})((r != 0) & ((r < 0) != (y < 0)) ? r + y : r);
}

/*[tg_remainder_{s} f32 f64] Remainder with the sign of y, as Python's %; a zero has x's sign. */
static inline {T} tg_remainder_{s}({T} x, {T} y)
{
    const {T} r = fmod{f}(x, y);
    return (r != 0) & ((r < 0) != (y < 0)) ? r + y : r;
}

/*[tg_gcd_{s} u8 i8 i16 i32 i64 u32] The greatest common divisor, by Euclid's algorithm. */
static inline {T} tg_gcd_{s}({T} x, {T} y)
{
    uint64_t a = x < 0 ? 0 - (uint64_t)x : (uint64_t)x, b = y < 0 ? 0 - (uint64_t)y : (uint64_t)y;
    while (b != 0) {
        const uint64_t r = a % b;
        a = b;
        b = r;
    }
    return ({T})a;
}

/*[tg_lcm_{s} u8 i8 i16 i32 i64 u32] The least common multiple; wraps around like a product. */
static inline {T} tg_lcm_{s}({T} x, {T} y)
{
    const {T} g = tg_gcd_{s}(x, y);
    if (g == 0)
        return 0;
    const {T} m = ({T})(({U})({T})(x / g) * ({U})y);
    return m < 0 ? ({T})(0 - ({U})m) : m;
}

/*[tg_floor_divide_{s} u8 i8 i16 i32 i64 u32] Quotient rounded towards minus infinity. */
static inline {T} tg_floor_divide_{s}({T} x, {T} y, int64_t *status)
{
    if (y == 0) {
        status[0] = 2;
        return 0;
    }
    if (y == ({T})-1 && y < 0)
        return ({T})(0 - ({U})x);  /* INT_MIN / -1 traps */
    const {T} q = ({T})(x / y);
    return ({T})(q - ((x % y != 0) & ((x < 0) != (y < 0))));
}

/*[tg_floor_divide_{s} f32 f64] Quotient rounded towards minus infinity: the quotient of an exact
 * remainder, rounded to the whole number next to it. x / y where y is 0. */
static inline {T} tg_floor_divide_{s}({T} x, {T} y)
{
    const {T} r = fmod{f}(x, y);
    {T} q = (x - r) / y;
    q = (r != 0) & ((r < 0) != (y < 0)) ? q - 1 : q;
    {T} whole = floor{f}(q);
    whole = q - whole > 0.5{f} ? whole + 1 : whole;
    whole = q != 0 ? whole : copysign{f}(0.0{f}, x / y);
    return y == 0 ? x / y : whole;
}

/*[tg_low_i32_{s} f32 f64] The whole part as int32; INT32_MIN for NaN and where it does not fit. */
static inline int32_t tg_low_i32_{s}({T} x)
{
    const int fits = (x > -2147483649.0{f}) & (x < 2147483648.0{f});
    return fits ? (int32_t)x : INT32_MIN;
}

/*[tg_low_i64_{s} f32 f64] The whole part as int64; INT64_MIN for NaN and where it does not fit. */
static inline int64_t tg_low_i64_{s}({T} x)
{
    const int fits = (x >= -9223372036854775808.0{f}) & (x < 9223372036854775808.0{f});
    return fits ? (int64_t)x : INT64_MIN;
}

/*[tg_cast_int8] A float or double to int8: the low bits of its int32. */
#define tg_cast_int8(x) ((int8_t)_Generic((x), float: tg_low_i32_f32, default: tg_low_i32_f64)(x))

/*[tg_cast_uint8] A float or double to uint8: the low bits of its int32. */
#define tg_cast_uint8(x) ((uint8_t)_Generic((x), float: tg_low_i32_f32, default: tg_low_i32_f64)(x))

/*[tg_cast_int16] A float or double to int16: the low bits of its int32. */
#define tg_cast_int16(x) ((int16_t)_Generic((x), float: tg_low_i32_f32, default: tg_low_i32_f64)(x))

/*[tg_cast_int32] A float or double to int32; INT32_MIN where it does not fit. */
#define tg_cast_int32(x) (_Generic((x), float: tg_low_i32_f32, default: tg_low_i32_f64)(x))

/*[tg_cast_int64] A float or double to int64; INT64_MIN where it does not fit. */
#define tg_cast_int64(x) (_Generic((x), float: tg_low_i64_f32, default: tg_low_i64_f64)(x))

/*[tg_cast_uint32] A float or double to uint32: the low bits of its int64. */
#define tg_cast_uint32(x) ((uint32_t)_Generic((x), float: tg_low_i64_f32, default: tg_low_i64_f64)(x))

/*[tg_erfinv_f64] Inverse error function: Winitzki's closed form, good to 2e-3, then two steps of
 * Halley's method, each of which triples the number of digits. Beyond 1/2 the residual is taken
 * from erfc, where 1 - |x| is exact. */
static inline double tg_erfinv_f64(double x)
{
    const double a = fabs(x);
    if (!(a < 1.0))
        return a == 1.0 ? copysign(TG_INF, x) : TG_NAN;
    const double l = log1p(-a * a);
    const double b = 4.330746750799873 + 0.5 * l;  /* 2 / (0.147 pi) + l / 2 */
    double y = sqrt(sqrt(b * b - l / 0.147) - b);
    for (int step = 0; step < 2; step++) {
        const double residual = a < 0.5 ? erf(y) - a : (1.0 - a) - erfc(y);
        const double newton = residual / (1.1283791670955126 * exp(-y * y));  /* 2 / sqrt(pi) */
        y -= newton / (1.0 + y * newton);
    }
    return copysign(y, x);
}

/*[tg_erfinv_f32] Inverse error function, through double. */
static inline float tg_erfinv_f32(float x)
{
    return (float)tg_erfinv_f64(x);
}

/*[tg_lgamma_f64] log |gamma(x)|; lgamma_r, unlike lgamma, writes no global sign. */
extern double lgamma_r(double x, int *sign);
static inline double tg_lgamma_f64(double x)
{
    int sign;
    return lgamma_r(x, &sign);
}

/*[tg_lgamma_f32] log |gamma(x)|, through double. */
static inline float tg_lgamma_f32(float x)
{
    return (float)tg_lgamma_f64(x);
}

/*[tg_digamma_f64] Derivative of lgamma. Left of 0 by reflection (DLMF 5.5.4), up to 10 by recurrence
 * (5.5.2), then by the asymptotic series (5.11.2). -inf at 0, NaN at the other poles. */
static inline double tg_digamma_f64(double x)
{
    double sum = 0.0;
    if (x == 0.0)
        return copysign(TG_INF, -x);
    if (x < 0.0) {
        if (x == floor(x))
            return TG_NAN;
        sum = -3.141592653589793 / tan(3.141592653589793 * (x - rint(x)));
        x = 1.0 - x;
    }
    for (; x < 10.0; x += 1.0)
        sum -= 1.0 / x;
    const double z = 1.0 / (x * x);
    const double series = z * (1.0 / 12 - z * (1.0 / 120 - z * (1.0 / 252 - z * (1.0 / 240 - z * (
        1.0 / 132 - z * (691.0 / 32760 - z * (1.0 / 12)))))));
    return sum + (log(x) - 0.5 / x - series);
}

/*[tg_digamma_f32] Derivative of lgamma, through double. */
static inline float tg_digamma_f32(float x)
{
    return (float)tg_digamma_f64(x);
}

/*[tg_zeta] Hurwitz zeta function of a whole s > 1 and x > 0, by the Euler-Maclaurin formula
 * (DLMF 25.11.5): terms up to x >= s + 10, then the integral and corrections with B_2j / (2j)!. */
static inline double tg_zeta(int s, double x)
{
    static const double ratio[] = {  /* B_2j / (2j)!, j = 1 ... 8 */
        8.333333333333333e-02, -1.388888888888889e-03, 3.306878306878307e-05, -8.267195767195768e-07,
        2.0876756987868099e-08, -5.284190138687493e-10, 1.3382536530684679e-11, -3.3896802963225829e-13,
    };
    double sum = 0.0;
    for (; x < s + 10.0; x += 1.0)
        sum += pow(x, -s);
    double power = pow(x, -s), rising = s;  /* x^(-s-2j+2) and s (s+1) ... (s+2j-2) */
    sum += x * power / (s - 1) + 0.5 * power;
    power /= x;
    for (int j = 0; j < 8; j++) {
        sum += ratio[j] * rising * power;
        rising *= (s + 2.0 * j + 1) * (s + 2.0 * j + 2);
        power /= x * x;
    }
    return sum;
}

/*[tg_cot_derivative] The n-th derivative of cot at the angle whose cotangent is c (n <= 60): a
 * polynomial in c, on which differentiation acts as -(1 + c^2) d/dc. */
static inline double tg_cot_derivative(int n, double c)
{
    double a[64] = {0.0, 1.0};
    for (int k = 1; k <= n; k++) {
        double b[64] = {0.0};
        for (int i = 1; i <= k; i++) {
            b[i - 1] -= i * a[i];
            b[i + 1] -= i * a[i];
        }
        for (int i = 0; i <= k + 1; i++)
            a[i] = b[i];
    }
    double value = 0.0;
    for (int i = n + 1; i >= 0; i--)
        value = value * c + a[i];
    return value;
}

/*[tg_polygamma_f64] The n-th derivative of digamma: (-1)^(n+1) n! zeta(n + 1, x) (DLMF 5.15.1,
 * 25.11.12), left of 0 by reflection (5.15.6); at the poles what the limit from the right gives. */
static inline double tg_polygamma_f64(int n, double x)
{
    if (n == 0)
        return tg_digamma_f64(x);
    const double sign = n & 1 ? 1.0 : -1.0;
    if (x != x)
        return x;
    if (x == TG_INF)
        return sign * 0.0;
    if (x <= 0.0 && x == floor(x))
        return sign * TG_INF;
    double factorial = 1.0;
    for (int k = 2; k <= n; k++)
        factorial *= k;
    if (x > 0.0)
        return sign * factorial * tg_zeta(n + 1, x);
    const double pi = 3.141592653589793;
    const double mirrored = sign * factorial * tg_zeta(n + 1, 1.0 - x);
    const double bend = pow(pi, n + 1) * tg_cot_derivative(n, 1.0 / tan(pi * (x - rint(x))));
    return -sign * mirrored - bend;
}

/*[tg_polygamma_f32] The n-th derivative of digamma, through double. */
static inline float tg_polygamma_f32(int n, float x)
{
    return (float)tg_polygamma_f64(n, x);
}

/*[tg_i0_f64] Modified Bessel function I0: its power series (DLMF 10.25.2), from 30 on the asymptotic
 * series (10.40.1). NaN at infinity, as in SciPy and PyTorch. */
static inline double tg_i0_f64(double x)
{
    x = fabs(x);
    double term = 1.0, sum = 1.0;
    if (x < 30.0) {
        const double q = 0.25 * x * x;
        for (int k = 1; term > 1e-17 * sum; k++) {
            term *= q / ((double)k * k);
            sum += term;
        }
        return sum;
    }
    for (int k = 1; k < 60; k++) {
        term *= (2.0 * k - 1) * (2.0 * k - 1) / (8.0 * k * x);
        sum += term;
        if (!(term > 1e-17))
            break;
    }
    const double half = exp(0.5 * x);
    return half * (sum / sqrt(6.283185307179586 * x)) * half;
}

/*[tg_i0_f32] Modified Bessel function I0, through double. */
static inline float tg_i0_f32(float x)
{
    return (float)tg_i0_f64(x);
}

/*[tg_i1_f64] Modified Bessel function I1, as tg_i0_f64. */
static inline double tg_i1_f64(double x)
{
    const double sign = x < 0 ? -1.0 : 1.0;
    x = fabs(x);
    double term = 1.0, sum = 1.0;
    if (x < 30.0) {
        const double q = 0.25 * x * x;
        for (int k = 1; term > 1e-17 * sum; k++) {
            term *= q / ((double)k * (k + 1));
            sum += term;
        }
        return sign * 0.5 * x * sum;
    }
    for (int k = 1; k < 60; k++) {
        term *= ((2.0 * k - 1) * (2.0 * k - 1) - 4.0) / (8.0 * k * x);
        sum += term;
        if (!(fabs(term) > 1e-17))
            break;
    }
    const double half = exp(0.5 * x);
    return sign * half * (sum / sqrt(6.283185307179586 * x)) * half;
}

/*[tg_i1_f32] Modified Bessel function I1, through double. */
static inline float tg_i1_f32(float x)
{
    return (float)tg_i1_f64(x);
}
