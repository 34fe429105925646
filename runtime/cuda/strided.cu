/* Copy between layouts. The axes run from the outermost to the innermost; those that are not needed
 * have size 1. Strides are in elements; `element` is an unsigned type of their size. */
extern "C" __global__ void __launch_bounds__(256) strided_copy(
    const int64 count,
    const int64 n0, const int64 n1, const int64 n2, const int64 n3, const int64 n4, const int64 n5,
    const int64 to0, const int64 to1, const int64 to2, const int64 to3, const int64 to4,
    const int64 to5,
    const int64 from0, const int64 from1, const int64 from2, const int64 from3, const int64 from4,
    const int64 from5,
    const element *__restrict__ source,
    element *__restrict__ target)
{
    const int64 step = (int64)gridDim.x * blockDim.x;
    for (int64 k = (int64)blockIdx.x * blockDim.x + threadIdx.x; k < count; k += step) {
        int64 rest = k;
        const int64 i5 = rest % n5;
        rest /= n5;
        const int64 i4 = rest % n4;
        rest /= n4;
        const int64 i3 = rest % n3;
        rest /= n3;
        const int64 i2 = rest % n2;
        rest /= n2;
        const int64 i1 = rest % n1;
        const int64 i0 = rest / n1;
        target[i0 * to0 + i1 * to1 + i2 * to2 + i3 * to3 + i4 * to4 + i5 * to5] =
            source[i0 * from0 + i1 * from1 + i2 * from2 + i3 * from3 + i4 * from4 + i5 * from5];
    }
}
