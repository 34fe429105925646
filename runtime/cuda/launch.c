/* All launches of a unit in one call: a loop over a table that Python has prepared.

   args: table, api, status on the host, status on the device, then the base addresses. Both statuses
   are NULL where the unit has none. The table, in numbers of 64 bits:
       count, then for each launch
       0, function, grid x y z, block x y z, shared bytes, n, then n arguments (base, value):
          base -1: the number `value`; else the address base[base] + value
       2, to, from, bytes: a copy between addresses
       1, type, op of b, op of a, n, m, k, ld of b, ld of a, ld of c, apart of b, of a, of c, batch,
          then (base, value) of b, a and c: a product of cuBLAS, which sees transposes of all three
   Gives 0; -1 where the status reports a fault; else 65536 * (1 + the launch, of at most 30000) + the
   error's number, and 32768 more where it is cuBLAS's. */
#include <stddef.h>
#include <stdint.h>

typedef int64_t number;
typedef struct {
    void *context;
    int (*get_current)(void **);
    int (*set_current)(void *);
    int (*push)(void *);
    int (*pop)(void **);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                  void **, void **);
    int (*fill)(uintptr_t, unsigned char, size_t, void *);
    int (*to_host)(void *, uintptr_t, size_t);
    int (*copy)(uintptr_t, uintptr_t, size_t, void *);
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, long long,
                const void *, int, int, long long, const void *, void *, int, int, long long, int, int,
                int);
    void *cublas;
    const int *tf32;
} api_t;
enum { MOST = 1024, STATUS = 32, R_64F = 1, R_32F = 0, F32 = 68, TF32 = 77, F64 = 70, ORDER = 65536,
       LIBRARY = 32768, LAST = 30000 };

static uintptr_t place(const number *pair, const uintptr_t *bases) {
    return pair[0] < 0 ? (uintptr_t)pair[1] : bases[pair[0]] + (uintptr_t)pair[1];
}

static int kernel(const api_t *api, const number *row, const uintptr_t *bases) {
    uintptr_t cells[MOST];
    void *arguments[MOST];
    number count = row[9];
    for (number i = 0; i < count; i++) {
        cells[i] = place(row + 10 + 2 * i, bases);
        arguments[i] = &cells[i];
    }
    return api->launch((void *)row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], NULL,
                       arguments, NULL);
}

static int product(const api_t *api, const number *row, const uintptr_t *bases) {
    static const float one = 1, zero = 0;
    static const double one_64 = 1, zero_64 = 0;
    int type = row[1], wide = type == R_64F;
    int compute = wide ? F64 : type == R_32F && *api->tf32 ? TF32 : F32;
    const void *alpha = wide ? (const void *)&one_64 : &one;
    const void *beta = wide ? (const void *)&zero_64 : &zero;
    int code = api->gemm(api->cublas, row[2], row[3], row[4], row[5], row[6], alpha,
                         (void *)place(row + 14, bases), type, row[7], row[10],
                         (void *)place(row + 16, bases), type, row[8], row[11], beta,
                         (void *)place(row + 18, bases), type, row[9], row[12], row[13], compute, -1);
    return code ? LIBRARY + code : 0;
}

static int run(const api_t *api, const number *row, number *status, uintptr_t on_device,
               const uintptr_t *bases) {
    number count = *row++;
    int code = on_device ? api->fill(on_device, 0, STATUS, NULL) : 0;
    if (code) return ORDER + code;
    for (number i = 0; i < count; i++) {
        if (row[0] == 2)
            code = api->copy(row[1], row[2], row[3], NULL);
        else
            code = row[0] ? product(api, row, bases) : kernel(api, row, bases);
        if (code) return ORDER * (int)(i < LAST ? i + 1 : LAST) + code;
        row += row[0] == 2 ? 4 : row[0] ? 20 : 10 + 2 * row[9];
    }
    if (on_device) {
        code = api->to_host(status, on_device, STATUS);
        if (code) return ORDER * (int)(count < LAST ? count + 1 : LAST) + code;
        if (status[0]) return -1;
    }
    return 0;
}

int tg_run(void **args) {
    const api_t *api = args[1];
    void *current = NULL;
    int code = api->get_current(&current);
    int pushed = current && current != api->context;
    if (code) return ORDER + code;
    if (current != api->context) code = pushed ? api->push(api->context) : api->set_current(api->context);
    if (code) return ORDER + code;
    code = run(api, args[0], args[2], (uintptr_t)args[3], (const uintptr_t *)(args + 4));
    if (pushed) api->pop(&current);
    return code;
}
