// What is sorted: an element's key (order.cuh; KEY_BYTES is 4 or 8) and its index.
#pragma once
#include "order.cuh"

#if KEY_BYTES == 8
using Key = fx::u64;
struct alignas(16) Entry {
    Key key;
    unsigned index, unused;
};
__device__ __forceinline__ Entry entry_of(Key key, unsigned index) { return {key, index, 0}; }
#else
using Key = fx::u32;
struct alignas(8) Entry {
    Key key;
    unsigned index;
};
__device__ __forceinline__ Entry entry_of(Key key, unsigned index) { return {key, index}; }
#endif

constexpr unsigned NO_INDEX = 0xffffffffu;  // of entries that fill up: after all others
__device__ __forceinline__ Entry last_entry() { return entry_of(~Key(0), NO_INDEX); }
