// fake_libcuda.c -- enough of the CUDA driver API for pycuda to run kernels on the CPU (with cuda_on_cpu.h).
// A "cubin" is the ELF shared object that cuda_on_cpu.py builds. Everything is synchronous, so a missing
// stream or event wait goes unseen. Device memory ends at a guard page, is poisoned with 0xff, and can be
// touched only by copies, fills and kernels: PROT_NONE otherwise, so that a host that follows a device
// address crashes here as it would with a GPU. A fault in a kernel is told by the next call that could
// know of it, and by all later ones, as a GPU does.
// Environment: FAKE_CUDA_NO_DEVICE=1, FAKE_CUDA_DEVICES=n (1), FAKE_CUDA_MEMORY=bytes (2 GiB, per device),
// FAKE_CUDA_IDLE=1 (launches do nothing, to time what comes before them), FAKE_CUDA_POP_FAILS=1 (after a fault a context cannot even be popped).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
typedef int R; typedef unsigned long long P; typedef void *H; typedef unsigned U;
#define OK 0
#define INVALID 1
#define OOM 2
#define DEVICES 8
#define ENTER if (!depth) return 201; if (broken) return broken
#define UNUSED(name) R name(void) { fprintf(stderr, "fake libcuda: %s is not implemented\n", #name); return 801; }

static struct A { char *map; size_t len, room, size; P ptr; int dev; struct A *next; } *allocs;
static size_t used[DEVICES]; static __thread H ctx_stack[64]; static __thread int depth; static int ctxs[DEVICES], broken;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; long fake_launches;
static size_t cap(void) { const char *s = getenv("FAKE_CUDA_MEMORY"); return s ? strtoull(s, 0, 10) : (size_t)2 << 30; }
static int devices(void) { const char *s = getenv("FAKE_CUDA_DEVICES"); return s ? atoi(s) : 1; }
static int here(void) { return depth ? (int)((int *)ctx_stack[depth - 1] - ctxs) : 0; }
static void unlock(struct A *a, int open) { mprotect(a->map, a->room, open ? PROT_READ | PROT_WRITE : PROT_NONE); }
static void all(int open) { for (struct A *a = allocs; a; a = a->next) unlock(a, open); }
int fake_open(int open) {  // for the fake cuBLAS: device memory may be touched from open to close
    if (open) { pthread_mutex_lock(&lock); all(1); } else { all(0); pthread_mutex_unlock(&lock); } return 0; }

R cuInit(U f) { return getenv("FAKE_CUDA_NO_DEVICE") ? 100 : OK; }
R cuDriverGetVersion(int *v) { *v = 13000; return OK; }
R cuGetErrorString(R e, const char **s) {
    *s = e == OK ? "no error" : e == INVALID ? "invalid argument" : e == OOM ? "out of memory" : e == 201 ? "invalid device context"
       : e == 500 ? "named symbol not found" : e == 700 ? "an illegal memory access was encountered" : e == 719 ? "unspecified launch failure" : e == 200 ? "device kernel image is invalid"
       : e == 100 ? "no CUDA-capable device is detected" : e == 801 ? "operation not supported" : "unknown error"; return OK; }
R cuGetErrorName(R e, const char **s) { return cuGetErrorString(e, s); }
R cuDeviceGetCount(int *n) { *n = devices(); return OK; }
R cuDeviceGet(int *d, int i) { *d = i; return i < 0 || i >= devices() ? 101 : OK; }
R cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "CUDA on CPU (fake)"); return OK; }
R cuDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:00:00.0"); return OK; }
R cuDeviceComputeCapability(int *a, int *b, int d) { *a = 9; *b = 0; return OK; }
R cuDeviceTotalMem_v2(size_t *n, int d) { *n = cap(); return OK; }
R cuDeviceGetAttribute(int *v, int a, int d) {
    switch (a) { case 1: case 2: case 3: *v = 1024; break; case 4: *v = 64; break; case 5: *v = 2147483647; break;
    case 6: case 7: *v = 65535; break; case 8: *v = 49152; break; case 9: *v = 65536; break; case 10: *v = 32; break;
    case 12: *v = 65536; break; case 13: *v = 1000000; break; case 16: *v = 4; break; case 39: *v = 2048; break;
    case 75: *v = 9; break; case 76: *v = 0; break; case 81: *v = 233472; break; case 82: *v = 65536; break; case 97: *v = 232448; break;
    default: *v = 0; } return OK; }
R cuCtxCreate_v4(H *c, H p, U f, int d) { *c = &ctxs[d]; ctx_stack[depth++] = *c; return OK; }
R cuCtxDestroy_v2(H c) { return OK; }
R cuCtxAttach(H *c, U f) { if (!depth) return 201; *c = ctx_stack[depth - 1]; return OK; }
R cuCtxDetach(H c) { return OK; }
R cuDevicePrimaryCtxRetain(H *c, int d) { *c = &ctxs[d]; return OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { return OK; }
R cuCtxPushCurrent_v2(H c) { ctx_stack[depth++] = c; return OK; }
R cuCtxPopCurrent_v2(H *c) { if (!depth) return 201;
    if (broken && getenv("FAKE_CUDA_POP_FAILS")) return broken; --depth; if (c) *c = ctx_stack[depth]; return OK; }
R cuCtxSetCurrent(H c) { if (!depth) depth = 1; ctx_stack[depth - 1] = c; if (!c) --depth; return OK; }
R cuCtxGetCurrent(H *c) { *c = depth ? ctx_stack[depth - 1] : 0; return OK; }
R cuCtxGetDevice(int *d) { *d = here(); return depth ? OK : 201; }
R cuCtxSynchronize(void) { ENTER; return OK; }
R cuCtxGetApiVersion(H c, U *v) { *v = 13000; return OK; }
R cuCtxSetCacheConfig(int c) { return OK; }
R cuCtxEnablePeerAccess(H c, U f) { return OK; }

R cuMemAlloc_v2(P *out, size_t n) {
    ENTER; if (!n) return INVALID;
    int dev = here(); size_t pg = 4096, room = (n + pg - 1) / pg * pg; R r = OOM;
    pthread_mutex_lock(&lock);
    if (used[dev] + n <= cap()) {
        char *m = mmap(0, room + pg, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m != MAP_FAILED) {
            mprotect(m + room, pg, PROT_NONE); memset(m, 0xff, room);
            struct A *a = malloc(sizeof *a); *a = (struct A){m, room + pg, room, n, (P)(m + ((room - n) & ~(size_t)255)), dev, allocs};
            allocs = a; unlock(a, 0); used[dev] += n; *out = a->ptr; r = OK; } }
    pthread_mutex_unlock(&lock); return r; }
R cuMemFree_v2(P p) {
    ENTER; R r = INVALID; pthread_mutex_lock(&lock);
    for (struct A **q = &allocs; *q; q = &(*q)->next) if ((*q)->ptr == p) {
        struct A *a = *q; *q = a->next; used[a->dev] -= a->size; munmap(a->map, a->len); free(a); r = OK; break; }
    pthread_mutex_unlock(&lock);
    if (r) fprintf(stderr, "fake libcuda: cuMemFree of %llx, which is not allocated\n", p); return r; }
R cuMemGetInfo_v2(size_t *f, size_t *t) { ENTER; *f = cap() - used[here()]; *t = cap(); return OK; }
static struct A *at(P p) { for (struct A *a = allocs; a; a = a->next) if (p >= a->ptr && p < a->ptr + a->size) return a; return 0; }
R cuMemGetAddressRange_v2(P *b, size_t *n, P p) { struct A *a = at(p); if (!a) return INVALID;
    if (b) *b = a->ptr; if (n) *n = a->size; return OK; }
static struct A *inside(P p, size_t n) { struct A *a = at(p); if (a && p + n <= a->ptr + a->size) return a;
    fprintf(stderr, "fake libcuda: %llx..+%zu is not device memory\n", p, n); return 0; }
// copies and fills: `a` and `b` are the allocations that must be open meanwhile
#define WITH(a, b, work) struct A *x_, *y_; ENTER; R r_ = OK; pthread_mutex_lock(&lock); \
    if (!(x_ = (a)) || !(y_ = (b))) r_ = INVALID; else { unlock(x_, 1); unlock(y_, 1); work; unlock(x_, 0); unlock(y_, 0); } \
    pthread_mutex_unlock(&lock); return r_
R cuMemcpyHtoD_v2(P d, const void *s, size_t n) { WITH(inside(d, n), x_, memcpy((void *)d, s, n)); }
R cuMemcpyDtoH_v2(void *d, P s, size_t n) { WITH(inside(s, n), x_, memcpy(d, (void *)s, n)); }
R cuMemcpyDtoD_v2(P d, P s, size_t n) { WITH(inside(d, n), inside(s, n), memmove((void *)d, (void *)s, n)); }
R cuMemcpyHtoDAsync_v2(P d, const void *s, size_t n, H st) { return cuMemcpyHtoD_v2(d, s, n); }
R cuMemcpyDtoHAsync_v2(void *d, P s, size_t n, H st) { return cuMemcpyDtoH_v2(d, s, n); }
R cuMemcpyDtoDAsync_v2(P d, P s, size_t n, H st) { return cuMemcpyDtoD_v2(d, s, n); }
R cuMemcpyPeer(P d, H dc, P s, H sc, size_t n) { return cuMemcpyDtoD_v2(d, s, n); }
R cuMemcpyPeerAsync(P d, H dc, P s, H sc, size_t n, H st) { return cuMemcpyDtoD_v2(d, s, n); }
#define SET(B, T) R cuMemsetD##B##_v2(P d, T v, size_t n) { WITH(inside(d, n * sizeof v), x_, for (size_t i = 0; i < n; ++i) ((T *)d)[i] = v); } \
    R cuMemsetD##B##Async(P d, T v, size_t n, H st) { return cuMemsetD##B##_v2(d, v, n); }
SET(8, unsigned char) SET(16, unsigned short) SET(32, unsigned)
R cuMemHostAlloc(void **p, size_t n, U f) { return posix_memalign(p, 4096, n ? n : 1) ? OOM : OK; }
R cuMemFreeHost(void *p) { free(p); return OK; }
R cuMemHostRegister_v2(void *p, size_t n, U f) { return OK; }
R cuMemHostUnregister(void *p) { return OK; }

R cuStreamCreate(H *s, U f) { *s = malloc(8); return OK; }
R cuStreamDestroy_v2(H s) { free(s); return OK; }
R cuStreamSynchronize(H s) { ENTER; return OK; }
R cuStreamQuery(H s) { ENTER; return OK; }
R cuStreamWaitEvent(H s, H e, U f) { return OK; }
R cuEventCreate(H *e, U f) { *e = calloc(1, sizeof(double)); return OK; }
R cuEventDestroy_v2(H e) { free(e); return OK; }
R cuEventRecord(H e, H s) { ENTER; struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); *(double *)e = t.tv_sec * 1e3 + t.tv_nsec * 1e-6; return OK; }
R cuEventSynchronize(H e) { ENTER; return OK; }
R cuEventQuery(H e) { ENTER; return OK; }
R cuEventElapsedTime(float *ms, H a, H b) { *ms = (float)(*(double *)b - *(double *)a); return OK; }
R cuEventElapsedTime_v2(float *ms, H a, H b) { return cuEventElapsedTime(ms, a, b); }

typedef int (*Launch)(const U *, const U *, size_t, void **); typedef int (*Packed)(const U *, const U *, size_t, char *, size_t);
typedef struct { Launch plain; Packed packed; const char *(*error)(void); int max_smem; char name[128]; } F;
R cuModuleLoad(H *m, const char *path) { *m = dlopen(path, RTLD_NOW | RTLD_LOCAL); if (!*m) fprintf(stderr, "fake libcuda: %s\n", dlerror()); return *m ? OK : 200; }
R cuModuleLoadData(H *m, const void *image) {
    const Elf64_Ehdr *h = image;
    if (memcmp(h->e_ident, ELFMAG, SELFMAG) || h->e_type != ET_DYN) { fprintf(stderr, "fake libcuda: not a host shared object\n"); return 200; }
    char path[512]; const char *dir = getenv("TMPDIR"); snprintf(path, sizeof path, "%s/fakecuda_XXXXXX", dir ? dir : P_tmpdir);
    int fd = mkstemp(path); size_t n = h->e_shoff + (size_t)h->e_shnum * h->e_shentsize;
    if (fd < 0 || write(fd, image, n) != (ssize_t)n) return 200;
    close(fd); R r = cuModuleLoad(m, path); unlink(path); return r; }
R cuModuleLoadDataEx(H *m, const void *image, U n, int *opt, void **val) { return cuModuleLoadData(m, image); }
R cuModuleUnload(H m) { dlclose(m); return OK; }
R cuModuleGetFunction(H *f, H m, const char *name) {
    char s[160]; F *k = calloc(1, sizeof *k); k->max_smem = 49152; snprintf(k->name, sizeof k->name, "%s", name);
    snprintf(s, sizeof s, "%s__launch", name); k->plain = (Launch)dlsym(m, s);
    snprintf(s, sizeof s, "%s__launch_packed", name); k->packed = (Packed)dlsym(m, s);
    k->error = (const char *(*)(void))dlsym(m, "tgcpu_last_error");
    if (!k->plain || !k->packed || !k->error) { free(k); return 500; }
    *f = k; return OK; }
R cuModuleGetGlobal_v2(P *p, size_t *n, H m, const char *name) { return 500; }
R cuFuncGetAttribute(int *v, int a, F *f) { *v = a == 0 ? 1024 : a == 4 ? 32 : a == 5 || a == 6 ? 90 : a == 8 ? f->max_smem : 0; return OK; }
R cuFuncSetAttribute(F *f, int a, int v) { if (a == 8) { if (v > 232448) return INVALID; f->max_smem = v; } return OK; }
R cuFuncSetCacheConfig(F *f, int c) { return OK; }
R cuFuncSetBlockShape(F *f, int x, int y, int z) { return OK; }
R cuLaunchKernel(F *f, U gx, U gy, U gz, U bx, U by, U bz, U smem, H st, void **params, void **extra) {
    U g[3] = {gx, gy, gz}, b[3] = {bx, by, bz}; int r;
    static int idle = -1; if (idle < 0) idle = getenv("FAKE_CUDA_IDLE") != 0;
    ENTER; if ((int)smem > f->max_smem) return INVALID;
    if (idle) return OK;
    pthread_mutex_lock(&lock); all(1); fake_launches++;
    if (extra) {
        char *buf = 0; size_t n = 0;
        for (; *extra; extra += 2) if (*extra == (void *)1) buf = extra[1]; else if (*extra == (void *)2) n = *(size_t *)extra[1];
        r = f->packed(g, b, smem, buf, n);
    } else r = f->plain(g, b, smem, params);
    if (r) fprintf(stderr, "fake libcuda: kernel %s: %s\n", f->name, f->error());
    if (r == 1 && !strstr(f->error(), "launch shape")) broken = strstr(f->error(), "memory access") ? 700 : 719, r = 0;
    all(0); pthread_mutex_unlock(&lock);
    return r ? INVALID : OK; }
