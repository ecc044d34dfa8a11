// The functions of tactics/cuda/include/tma.cuh on the CPU, on top of fiber.h: copies happen when they are asked for. A barrier is an Inbox
// and so takes one arrival a phase; tensor maps come from fiber.py.
#pragma once

struct TensorMap {  // innermost first; strides in bytes, the first one an element's size
    u64 address;
    long long dims[5], strides[5], box[5];
    int rank, swizzle;
};

static inline Inbox* emulated_barrier(u32 barrier) { return reinterpret_cast<Inbox*>(emulated_shared(barrier)); }
static inline void barrier_init(u32 barrier, u32 arrivals) {
    if (arrivals != 1) abort();
    inbox_init(emulated_barrier(barrier));
}
template <bool CLUSTERED = false>
static inline void barrier_init_fence() {}
static inline void barrier_expect(u32 barrier, u32 bytes) { inbox_expect(emulated_barrier(barrier), bytes); }
static inline void barrier_wait(u32 barrier, u32 parity) {
    while (!inbox_try(emulated_barrier(barrier), parity)) {}
}
static inline void tensormap_prefetch(const TensorMap*) {}

static inline void emulated_tma(u32 target, const TensorMap* map, u32 barrier, const long long (&at)[5]) {
    const int size = static_cast<int>(map->strides[0]);
    long long count = 1;
    for (int axis = 0; axis < map->rank; ++axis) count *= map->box[axis];
    for (long long index = 0; index < count; ++index) {
        bool inside = true;
        const char* from = reinterpret_cast<const char*>(map->address);
        for (long long rest = index, axis = 0; axis < map->rank; rest /= map->box[axis], ++axis) {
            const long long place = at[axis] + rest % map->box[axis];
            inside = inside && place >= 0 && place < map->dims[axis];
            from += place * map->strides[axis];
        }
        u32 to = target + static_cast<u32>(index) * size;
        if (map->swizzle) to ^= (to >> 7 & (map->swizzle / 16 - 1)) << 4;
        if (inside) memcpy(emulated_shared(to), from, size);
        else memset(emulated_shared(to), 0, size);
    }
    Inbox* inbox = emulated_barrier(barrier);
    inbox->missing -= static_cast<int>(count) * size;
    inbox_turn(inbox);
}
static inline void tma_load(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z) { emulated_tma(target, map, barrier, {x, y, z}); }
static inline void tma_load(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z, int w) { emulated_tma(target, map, barrier, {x, y, z, w}); }
