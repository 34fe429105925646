// fake_libcublas.c -- the functions of cuBLAS that tracegrad calls, in plain loops. Matrices lie in columns.
// Memory of the device is opened by the fake driver for the time of a product.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
extern int fake_open(int open);
int cublasCreate_v2(void **handle) { static int one; *handle = &one; return 0; }
int cublasSetMathMode(void *handle, int mode) { return mode == 16 ? 0 : 7; }
int cublasSetWorkspace_v2(void *handle, void *space, size_t size) { return (uintptr_t)space % 256 ? 7 : 0; }
int cublasGetVersion_v2(void *handle, int *version) { *version = 130000; return 0; }
int fake_compute;  // what the last product was asked for
static float half(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, e = h >> 10 & 31, m = h & 1023, bits; float f;
    if (e == 0) { f = m / 16777216.0f; memcpy(&bits, &f, 4); } else bits = (e == 31 ? 255 : e + 112) << 23 | m << 13;
    bits |= sign; memcpy(&f, &bits, 4); return f; }
static double get(const void *p, int type, ptrdiff_t i) {
    if (type == 1) return ((const double *)p)[i];
    if (type == 0) return ((const float *)p)[i];
    if (type == 2) return half(((const uint16_t *)p)[i]);
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16; float f; memcpy(&f, &bits, 4); return f; }
static void put(void *p, int type, ptrdiff_t i, double v) {
    if (type == 1) { ((double *)p)[i] = v; return; }
    if (type == 0) { ((float *)p)[i] = (float)v; return; }
    float f = (float)v; uint32_t bits; memcpy(&bits, &f, 4);
    if (type == 14) { ((uint16_t *)p)[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; return; }
    _Float16 h = (_Float16)f; memcpy((uint16_t *)p + i, &h, 2); }
int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
        const void *a, int at, int lda, long long sa, const void *b, int bt, int ldb, long long sb,
        const void *beta, void *c, int ct, int ldc, long long sc, int batch, int compute, int algo) {
    int wide = at == 1;
    if (at != bt || at != ct || compute != (wide ? 70 : 68) && (compute != 77 || at)) return 15;
    if ((wide ? *(double *)alpha : *(float *)alpha) != 1 || (wide ? *(double *)beta : *(float *)beta)) return 15;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    fake_compute = compute; fake_open(1);
    for (int s = 0; s < batch; s++) for (int j = 0; j < n; j++) for (int i = 0; i < m; i++) {
        double sum = 0;
        for (int p = 0; p < k; p++)
            sum += get(a, at, s * sa + (ta ? (ptrdiff_t)i * lda + p : (ptrdiff_t)p * lda + i))
                 * get(b, bt, s * sb + (tb ? (ptrdiff_t)p * ldb + j : (ptrdiff_t)j * ldb + p));
        put(c, ct, s * sc + (ptrdiff_t)j * ldc + i, sum); }
    fake_open(0); return 0; }
