/*[tg_gemm_add_f32] c += a b, row-major, float; otherwise as tg_gemm_f32, which declares the types. */
static void tg_gemm_add_f32(int ta, int tb, int64_t m, int64_t n, int64_t k, const float *restrict a,
                            int64_t lda, const float *restrict b, int64_t ldb, float *restrict c, int64_t ldc)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };
    const int flip_a = ta ? TRANSPOSED : AS_IS, flip_b = tb ? TRANSPOSED : AS_IS;
    if (tg_blas.sgemm && tg_blas.wide) {
        ((tg_sgemm64)tg_blas.sgemm)(ROW_MAJOR, flip_a, flip_b, m, n, k, 1.0f, a, lda, b, ldb, 1.0f, c, ldc);
        return;
    }
    if (tg_blas.sgemm && m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX) {
        ((tg_sgemm32)tg_blas.sgemm)(ROW_MAJOR, flip_a, flip_b, (int)m, (int)n, (int)k, 1.0f, a, (int)lda,
                                    b, (int)ldb, 1.0f, c, (int)ldc);
        return;
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += (ta ? a[l * lda + i] : a[i * lda + l]) * (tb ? b[j * ldb + l] : b[l * ldb + j]);
            c[i * ldc + j] += sum;
        }
}

/*[tg_gemm_add_f64] c += a b, row-major, double; otherwise as tg_gemm_f64, which declares the types. */
static void tg_gemm_add_f64(int ta, int tb, int64_t m, int64_t n, int64_t k, const double *restrict a,
                            int64_t lda, const double *restrict b, int64_t ldb, double *restrict c, int64_t ldc)
{
    enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };
    const int flip_a = ta ? TRANSPOSED : AS_IS, flip_b = tb ? TRANSPOSED : AS_IS;
    if (tg_blas.dgemm && tg_blas.wide) {
        ((tg_dgemm64)tg_blas.dgemm)(ROW_MAJOR, flip_a, flip_b, m, n, k, 1.0, a, lda, b, ldb, 1.0, c, ldc);
        return;
    }
    if (tg_blas.dgemm && m <= INT32_MAX && n <= INT32_MAX && k <= INT32_MAX) {
        ((tg_dgemm32)tg_blas.dgemm)(ROW_MAJOR, flip_a, flip_b, (int)m, (int)n, (int)k, 1.0, a, (int)lda,
                                    b, (int)ldb, 1.0, c, (int)ldc);
        return;
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += (ta ? a[l * lda + i] : a[i * lda + l]) * (tb ? b[j * ldb + l] : b[l * ldb + j]);
            c[i * ldc + j] += sum;
        }
}
