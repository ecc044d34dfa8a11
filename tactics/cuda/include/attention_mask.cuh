// What attention kernels agree on about masks. Defines: MASK (0 none; 1 additive of type MASK_T; 2 boolean bytes, true keeps), strides in
// elements, 0 broadcasts; MASK_ROWS = 0: one row serves all queries; MASK_PAIRS = 1: neighbouring keys are neighbours in memory, aligned in pairs.
#pragma once
#include "vector.cuh"

#ifndef MASK
#define MASK 0
#endif
#ifndef MASK_ROWS
#define MASK_ROWS 1
#endif
#ifndef MASK_PAIRS
#define MASK_PAIRS 0
#endif
#if MASK == 1
typedef MASK_T Masked;
#else
typedef unsigned char Masked;
#endif
