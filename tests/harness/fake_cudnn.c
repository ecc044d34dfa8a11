// A stand-in for libcudnn on host memory, for the code that calls it: fp32 channels-last convolution with bias, sum and ReLU. Algorithm 1
// wants no workspace, all others 4096 bytes. What it is given wrongly it answers with status 3 (bad parameter).
#include <stdint.h>
#include <stdlib.h>

typedef struct { int format, type, n, c, h, w; } Tensor;
typedef struct { int pad[2], stride[2], dilation[2], mode, computed, groups, math; } Convolution;
typedef struct { int mode; } Activation;

static int alive = 0;
static void* current;
int fake_alive(void) { return alive; }
static void* made(size_t size) { alive++; return calloc(1, size); }
static int freed(void* one) { alive--; free(one); return 0; }

size_t cudnnGetVersion(void) { return 91300; }
const char* cudnnGetErrorString(int status) { return status == 3 ? "FAKE_BAD_PARAM" : "FAKE"; }
int cudnnCreate(void** handle) { static int one; *handle = &one; return 0; }
int cudnnSetStream(void* handle, void* stream) { current = stream; return handle ? 0 : 3; }
int cudnnCreateTensorDescriptor(void** d) { *d = made(sizeof(Tensor)); return 0; }
int cudnnDestroyTensorDescriptor(void* d) { return freed(d); }
int cudnnCreateFilterDescriptor(void** d) { *d = made(sizeof(Tensor)); return 0; }
int cudnnDestroyFilterDescriptor(void* d) { return freed(d); }
int cudnnCreateConvolutionDescriptor(void** d) { *d = made(sizeof(Convolution)); return 0; }
int cudnnDestroyConvolutionDescriptor(void* d) { return freed(d); }
int cudnnCreateActivationDescriptor(void** d) { *d = made(sizeof(Activation)); return 0; }
int cudnnDestroyActivationDescriptor(void* d) { return freed(d); }
int cudnnSetTensor4dDescriptor(Tensor* d, int format, int type, int n, int c, int h, int w) {
    *d = (Tensor){format, type, n, c, h, w};
    return format == 1 ? 0 : 3;
}
int cudnnSetFilter4dDescriptor(Tensor* d, int type, int format, int k, int c, int h, int w) { *d = (Tensor){format, type, k, c, h, w}; return format == 1 ? 0 : 3; }
int cudnnSetConvolution2dDescriptor(Convolution* d, int ph, int pw, int u, int v, int dh, int dw, int mode, int computed) {
    *d = (Convolution){{ph, pw}, {u, v}, {dh, dw}, mode, computed, 1, 0};
    return mode == 1 ? 0 : 3;
}
int cudnnSetConvolutionGroupCount(Convolution* d, int groups) { d->groups = groups; return 0; }
int cudnnSetConvolutionMathType(Convolution* d, int math) { d->math = math; return 0; }
int cudnnSetActivationDescriptor(Activation* d, int mode, int nan, double coefficient) { d->mode = mode; return nan == 1 && coefficient == 0.0 ? 0 : 3; }
int cudnnGetConvolutionForwardWorkspaceSize(void* handle, Tensor* x, Tensor* w, Convolution* c, Tensor* y, int algorithm, size_t* size) {
    if (!handle || x->c != w->c * c->groups || y->c != w->n) return 3;
    *size = algorithm == 1 ? 0 : 4096;
    return 0;
}
int cudnnConvolutionBiasActivationForward(void* handle, const float* alpha, Tensor* xd, const float* x, Tensor* wd, const float* w, Convolution* c,
                                          int algorithm, void* workspace, size_t size, const float* beta, Tensor* zd, const float* z, Tensor* bd,
                                          const float* bias, Activation* activation, Tensor* yd, float* y) {
    if (!handle || current != (void*)77 || zd != yd || bd->c != yd->c || xd->type != 0 || (algorithm != 1 && (!workspace || size < 4096))) return 3;
    const int per_group = yd->c / c->groups;
    for (int n = 0; n < yd->n; ++n) for (int oy = 0; oy < yd->h; ++oy) for (int ox = 0; ox < yd->w; ++ox) for (int k = 0; k < yd->c; ++k) {
        double sum = 0;
        for (int ty = 0; ty < wd->h; ++ty) for (int tx = 0; tx < wd->w; ++tx) {
            const int iy = oy * c->stride[0] - c->pad[0] + ty * c->dilation[0], ix = ox * c->stride[1] - c->pad[1] + tx * c->dilation[1];
            if (iy < 0 || ix < 0 || iy >= xd->h || ix >= xd->w) continue;
            for (int i = 0; i < wd->c; ++i)
                sum += (double)x[((n * xd->h + iy) * xd->w + ix) * xd->c + k / per_group * wd->c + i] * w[((k * wd->h + ty) * wd->w + tx) * wd->c + i];
        }
        const long index = ((long)(n * yd->h + oy) * yd->w + ox) * yd->c + k;
        double value = *alpha * sum + bias[k] + (*beta ? *beta * z[index] : 0);
        y[index] = (float)(activation->mode == 1 && value < 0 ? 0 : value);
    }
    return 0;
}
