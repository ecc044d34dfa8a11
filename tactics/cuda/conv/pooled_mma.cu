// Convolution and the pooling of its result in one kernel, on tensor cores (mma.sync), fp16 / bf16 / tf32 in, fp32 sums.
#include "mma_tile.cuh"
#include "pooled.cuh"

// As pooled_conv.cu, with the products of mma_tile.cuh: BM of the held results at a time, BN channels of one group. x has fewer than 2^31
// elements an image. VEC_A: bytes of consecutive depth that lie together and aligned in x (16, 8, 4, 2); w's rows are padded to 16 bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    pooled_mma(const IN_T* __restrict__ x, const IN_T* __restrict__ w, IN_T* __restrict__ out, int in_y, int in_x, int conv_y, int conv_x,
               int out_y, int out_x, long long x_n, int x_y, int x_x, int x_c, int w_row, int channels, EpilogueArgs args) {
    extern __shared__ __align__(128) char memory[];
    IN_T* held = reinterpret_cast<IN_T*>(memory + STAGES * STAGE_BYTES);
    const int tiles_n = (GROUP_OUT + BN - 1) / BN;
    const Pooled tile(blockIdx.x / tiles_n, conv_y, conv_x, out_y, out_x);
    const int n0 = blockIdx.x % tiles_n * BN, column0 = blockIdx.z * GROUP_OUT + n0;
    x += tile.image * x_n + static_cast<long long>(blockIdx.z) * GROUP_IN * x_c;
    w += static_cast<long long>(blockIdx.z) * GROUP_OUT * w_row;

    constexpr int K = TAPS_Y * TAPS_X * GROUP_IN;
    constexpr int STEP = THREADS / A_CHUNKS, LOADS = (BM + STEP - 1) / STEP;
    constexpr int PIECE = VEC_A / ELEMENT, PIECES = PER_CHUNK / PIECE;
    constexpr int JOINED = VEC_A >= 4 ? 1 : 4 / VEC_A;  // pieces that one store to shared memory holds
    const int a_row = threadIdx.x / A_CHUNKS, a_chunk = threadIdx.x % A_CHUNKS;
    for (int row0 = 0; row0 < HELD; row0 += BM) {
        int start_y[LOADS], start_x[LOADS];  // where each row's window starts; beyond the image where there is no such result
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            int cy, cx;
            const bool inside = tile.at(row0 + a_row + i * STEP, cy, cx);
            start_y[i] = inside ? cy * STRIDE_Y - PAD_Y : in_y;
            start_x[i] = cx * STRIDE_X - PAD_X;
        }
        int depth = a_chunk * PER_CHUNK;
        auto load_a = [&](unsigned target) {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += JOINED) {
                int down[JOINED], right[JOINED], channel[JOINED];
#pragma unroll
                for (int p = 0; p < JOINED; ++p) {
                    const int k = depth + (piece + p) * PIECE;
                    const int tap = PLANES ? k % (TAPS_Y * TAPS_X) : k / GROUP_IN;
                    channel[p] = (PLANES ? k / (TAPS_Y * TAPS_X) : k % GROUP_IN) * x_c;
                    down[p] = k < K ? tap / TAPS_X * DILATION_Y : in_y + PAD_Y;
                    right[p] = tap % TAPS_X * DILATION_X;
                }
#pragma unroll
                for (int i = 0; i < LOADS; ++i) {
                    const int r = a_row + i * STEP;
                    if (BM % STEP != 0 && r >= BM) break;
                    const unsigned place = target + swizzled<A_CHUNKS>(r, a_chunk) + piece * VEC_A;
                    const IN_T* source[JOINED];
                    bool there[JOINED];
#pragma unroll
                    for (int p = 0; p < JOINED; ++p) {
                        const int iy = start_y[i] + down[p], ix = start_x[i] + right[p];
                        there[p] = iy >= 0 && iy < in_y && ix >= 0 && ix < in_x;
                        source[p] = x + (there[p] ? iy * x_y + ix * x_x + channel[p] : 0);
                    }
                    if constexpr (VEC_A >= 4) {
                        copy_async<VEC_A>(place, source[0], there[0]);
                    } else {
                        unsigned word = 0;
#pragma unroll
                        for (int p = 0; p < JOINED; ++p)
                            if (there[p]) word |= load_bits<VEC_A>(source[p], 0) << p * VEC_A * 8;
                        store_shared_4(place, word);
                    }
                }
            }
            depth += BK;
        };
        LoadB<16> load_b(w, w_row, n0, GROUP_OUT, 0, K);
        float sum[MI][NI][4];
        pdl_prefetch_constants(args, channels);
        multiply_tile(shared_address(memory), (K + BK - 1) / BK, load_a, load_b, sum);

        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int cy, cx;
                const int row = row0 + warp_index_m() * WARP_ROWS + i * 16 + lane / 4 + half * 8;
                if (!tile.at(row, cy, cx)) continue;
                const long long m = tile.pixel(cy, cx);
#pragma unroll
                for (int j = 0; j < NI; ++j) {
                    const int column = warp_index_n() * WARP_COLUMNS + j * 8 + lane % 4 * 2;
                    IN_T* target = held + row * BN + column;
                    if (GROUP_OUT % 2 == 0) {
                        float pair[2] = {sum[i][j][half * 2], sum[i][j][half * 2 + 1]};
                        if (n0 + column < GROUP_OUT) store_sums(target, pair, args, m, column0 + column, channels);
                    } else {
                        for (int v = 0; v < 2 && n0 + column + v < GROUP_OUT; ++v) {
                            float one[1] = {sum[i][j][half * 2 + v]};
                            store_sums(target + v, one, args, m, column0 + column + v, channels);
                        }
                    }
                }
            }
    }
    __syncthreads();
    tile.pool<BN, THREADS>(held, out, n0, column0, channels);
}
