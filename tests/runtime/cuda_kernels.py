"""Small CUDA kernels, a tactic of them, and a network for it: what the tests of the device and of engines on a GPU run."""

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.ops import Pointwise, Shuffle
from tactics.tactic import (
    Buffer,
    Kernel,
    Launch,
    Plan,
    Scalar,
    Tactic,
)

SOURCE = r"""
typedef unsigned long long u64;
extern "C" __global__ void scale(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
struct Pair { const float* left; int add; const float* right; double factor; };
extern "C" __global__ void combine(char shift, Pair p, float* y, long long n, unsigned char last) {
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        y[i] = p.left[i] + p.add + p.right[i] * (float)p.factor + last;
}
extern "C" __global__ void spin(float* y, long long clocks) {
    long long start = clock64();
    while (clock64() - start < clocks) {}
    if (threadIdx.x == 0) y[blockIdx.x] = 1.0f;
}
extern "C" __global__ void shared_memory(float* y, int n) {
    extern __shared__ float memory[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) memory[i] = i;
    __syncthreads();
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += memory[n - 1 - i] == n - 1 - i;
    atomicAdd(y, sum);
}
extern "C" __global__ void add_one(float* y, int n) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = y[i] * 2.0f + 1.0f;
}
extern "C" __global__ void wild(float* y) { y[1ull << 45] = 1.0f; }
"""
SOURCE_90 = r"""
typedef unsigned u32;
extern "C" __global__ void cluster_size(float* y) {
    u32 size, rank;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) y[blockIdx.x] = size * 100 + rank;
}
struct alignas(64) Map { char bytes[128]; };
// Copies a 64 x 8 tile of halves at column x, row y of a map without swizzle.
extern "C" __global__ void tile(int before, const __grid_constant__ Map map, void* out, int x, int y) {
    __shared__ alignas(128) char memory[64 * 8 * 2];
    __shared__ alignas(8) unsigned long long barrier;
    u32 target = __cvta_generic_to_shared(memory), bar = __cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar));
        asm volatile("fence.proxy.async;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(64 * 8 * 2) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                     :: "r"(target), "l"(&map), "r"(bar), "r"(x), "r"(y) : "memory");
    }
    __syncthreads();
    asm volatile("{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra WAIT; }" :: "r"(bar) : "memory");
    for (int i = threadIdx.x; i < 64 * 8 * 2 / 4; i += blockDim.x) ((u32*)out)[i] = ((u32*)memory)[i];
}
"""
FLOAT = DataType.FLOAT


def kernel(entry: str, source: str = SOURCE) -> Kernel:
    return Kernel("", entry, (), source)


def scale_step(n, factor, source=None, target=None):
    arguments = (source or Buffer("input"), target or Buffer("output"), Scalar(factor, "f32"), Scalar(n))
    return Launch(kernel("scale"), (-(-n // 128), 1, 1), (128, 1, 1), arguments)


class Scale(Tactic):
    """y = -x by the kernel above, slowly when the configuration says so."""

    id = "test.gpu"
    device = "cuda"

    def plan(self, workload, config, device):
        n = int(np.prod(workload.outputs[0].shape))
        clocks = dict(config).get("clocks", 0)
        busy = (
            (Launch(kernel("spin"), (1, 1, 1), (32, 1, 1), (Buffer("workspace"), Scalar(clocks, "i64"))),)
            if clocks
            else ()
        )
        return Plan((*busy, scale_step(n, -1.0)), 256 if clocks else 0)


NEG = Pointwise(apply("neg", Operand(0)))


def branches(graph, streams):
    x = graph.input("x", (64, 100))
    outputs = []
    for branch in range(3):
        y = x
        for depth in range(4):
            y = graph.layer(NEG, y, name=f"b{branch}d{depth}")
            if depth == 1:
                y = graph.layer(Shuffle(reshape=(100, 64)), y, name=f"view{branch}")
        outputs.append(y)
    return graph.engine(
        *outputs, streams={f"b{b}d{d}": b for b in range(3) for d in range(4)} if streams else {}
    ), outputs
