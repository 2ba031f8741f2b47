/* Random numbers from a counter: a pure function of (seed, index), the same on every device.
 *
 * Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key is
 * the 64-bit seed, the counter is (block, 0), and one block gives four 32-bit numbers. Number i is
 * lane i % 4 of block i / 4, so a kernel may take four neighbours from one call. */
#ifndef ASEN_RANDOM_H
#define ASEN_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define ASEN_ANYWHERE __host__ __device__
#else
#define ASEN_ANYWHERE
#endif

ASEN_ANYWHERE static inline void asen_random_block(uint64_t seed, uint64_t block, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

ASEN_ANYWHERE static inline uint32_t asen_random_u32(uint64_t seed, uint64_t index)
{
    uint32_t block[4];
    asen_random_block(seed, index >> 2, block);
    return block[index & 3];
}

/* Dropout keeps an element iff u >= p for u = number * 2^-32: iff number >= this. 0 <= p <= 1. */
ASEN_ANYWHERE static inline uint64_t asen_random_threshold(double p)
{
    double scaled = p * 4294967296.0;
    uint64_t whole = (uint64_t)scaled;
    return (double)whole < scaled ? whole + 1 : whole;
}

#endif
