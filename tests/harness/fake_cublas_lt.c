// A stand-in for libcublasLt on host memory, for the code that calls it: fp32 and int8 products, column by column, with two algorithms, of
// which the first wants 4096 bytes of workspace. What it is given wrongly it answers with status 7 (invalid value).
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int compute, scale, transposed[2], bias_type; uint32_t epilogue; void* bias; } Desc;
typedef struct { int type, batch; uint64_t rows, columns; int64_t ld, stride; } Layout;
typedef struct { uint64_t workspace; uint32_t reductions, alignment[4]; } Preference;
typedef struct { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; } Proposal;

static int alive = 0;
int fake_alive(void) { return alive; }
static void* made(size_t size) { alive++; return calloc(1, size); }
static int freed(void* one) { alive--; free(one); return 0; }

size_t cublasLtGetVersion(void) { return 130102; }
int cublasLtCreate(void** handle) { static int one; *handle = &one; return 0; }
int cublasLtMatmulDescCreate(Desc** d, int compute, int scale) { *d = made(sizeof **d); (*d)->compute = compute; (*d)->scale = scale; (*d)->epilogue = 1; return 0; }
int cublasLtMatmulDescDestroy(void* d) { return freed(d); }
int cublasLtMatmulDescSetAttribute(Desc* d, int which, const void* value, size_t size) {
    if (size != (which == 8 ? 8 : 4)) return 7;
    switch (which) {
        case 3: case 4: d->transposed[which - 3] = *(const int32_t*)value; return 0;
        case 7: d->epilogue = *(const uint32_t*)value; return 0;
        case 8: d->bias = *(void* const*)value; return 0;
        case 26: d->bias_type = *(const int32_t*)value; return 0;
    }
    return 7;
}
int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    *l = made(sizeof **l);
    (*l)->type = type; (*l)->rows = rows; (*l)->columns = columns; (*l)->ld = ld; (*l)->batch = 1;
    return ld < (int64_t)rows ? 7 : 0;
}
int cublasLtMatrixLayoutDestroy(void* l) { return freed(l); }
int cublasLtMatrixLayoutSetAttribute(Layout* l, int which, const void* value, size_t size) {
    if (which == 5 && size == 4) l->batch = *(const int32_t*)value;
    else if (which == 6 && size == 8) l->stride = *(const int64_t*)value;
    else return 7;
    return 0;
}
int cublasLtMatmulPreferenceCreate(Preference** p) { *p = made(sizeof **p); return 0; }
int cublasLtMatmulPreferenceDestroy(void* p) { return freed(p); }
int cublasLtMatmulPreferenceSetAttribute(Preference* p, int which, const void* value, size_t size) {
    if (which == 1 && size == 8) p->workspace = *(const uint64_t*)value;
    else if (which == 3 && size == 4) p->reductions = *(const uint32_t*)value;
    else if (which >= 5 && which <= 8 && size == 4) p->alignment[which - 5] = *(const uint32_t*)value;
    else return 7;
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void* handle, Desc* d, Layout* a, Layout* b, Layout* c, Layout* out, Preference* p, int wanted,
                                   Proposal* found, int* count) {
    for (int i = 0; i < 4; ++i) if (p->alignment[i] != 16) return 7;
    if (p->reductions != 6 || !handle || a->batch != out->batch || b->batch != out->batch || c != out) return 7;
    if ((a->type == 3) != (d->compute == 72)) return 15;
    *count = 0;
    for (int i = 0; i < 2 && *count < wanted; ++i) {
        const size_t workspace = i ? 0 : 4096;
        if (workspace > p->workspace) continue;
        memset(&found[*count], 0, sizeof(Proposal));
        found[*count].algorithm[0] = 40 + i;
        found[(*count)++].workspace = workspace;
    }
    return 0;
}

int fake_last_algorithm = 0;
static float at(const Layout* l, const void* data, int64_t batch, int transposed, uint64_t row, uint64_t column) {
    const int64_t index = batch * l->stride + (transposed ? column + row * l->ld : row + column * l->ld);
    return l->type == 3 ? (float)((const int8_t*)data)[index] : ((const float*)data)[index];
}
int cublasLtMatmul(void* handle, Desc* d, const void* alpha, const void* a, Layout* la, const void* b, Layout* lb, const void* beta,
                   const void* c, Layout* lc, void* out, Layout* lo, const uint64_t* algorithm, void* workspace, size_t size, void* stream) {
    if (algorithm[0] == 40 && (size < 4096 || !workspace)) return 7;
    if (stream != (void*)77 || !handle || lc != lo) return 7;
    fake_last_algorithm = (int)algorithm[0];
    const int integers = d->scale == 10;
    const float scale = integers ? *(const int32_t*)alpha : *(const float*)alpha, other = integers ? *(const int32_t*)beta : *(const float*)beta;
    const uint64_t depth = d->transposed[0] ? la->rows : la->columns;
    if (depth != (d->transposed[1] ? lb->columns : lb->rows)) return 7;
    for (int64_t batch = 0; batch < lo->batch; ++batch)
        for (uint64_t row = 0; row < lo->rows; ++row)
            for (uint64_t column = 0; column < lo->columns; ++column) {
                double sum = 0;
                for (uint64_t k = 0; k < depth; ++k)
                    sum += (double)at(la, a, batch, d->transposed[0], row, k) * at(lb, b, batch, d->transposed[1], k, column);
                const int64_t index = batch * lo->stride + row + column * lo->ld;
                if (integers) { ((int32_t*)out)[index] = (int32_t)sum; continue; }
                double value = scale * sum + (other ? other * ((const float*)c)[index] : 0);
                if (d->epilogue & 4) value += ((const float*)d->bias)[row];
                if (d->epilogue & 2) value = value > 0 ? value : 0;
                ((float*)out)[index] = (float)value;
            }
    return 0;
}
