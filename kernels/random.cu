// Dropout drawn from counters (Philox4x32-10, Salmon et al. 2011): the same elements as random.py drops, which says how.

#include "device/common.cuh"

__device__ inline unsigned high_part(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

// numbers: seed and stream; p: the probability. One thread for the four elements of a block.
extern "C" __global__ void dropout(i64 rows, i64 width, REAL* data, i64 row, const i64* seed, const i64* stream, const double* p) {
    i64 block = element();
    if (4 * block >= rows * width) return;
    unsigned c[4] = {(unsigned)block, (unsigned)(block >> 32), (unsigned)*stream, (unsigned)(*stream >> 32)};
    unsigned key[2] = {(unsigned)*seed, (unsigned)(*seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        unsigned a = 0xD2511F53u * c[0], a_high = high_part(0xD2511F53u, c[0]);
        unsigned b = 0xCD9E8D57u * c[2], b_high = high_part(0xCD9E8D57u, c[2]);
        c[0] = b_high ^ c[1] ^ key[0];
        c[1] = b;
        c[2] = a_high ^ c[3] ^ key[1];
        c[3] = a;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    double wanted = ceil(*p * 4294967296.0);
    unsigned threshold = wanted < 4294967295.0 ? (unsigned)wanted : 4294967295u;
    bool some = *p < 1;
    REAL factor = some ? REAL(1 / (1 - *p)) : REAL(0);
    for (int w = 0; w < 4; ++w) {
        i64 n = 4 * block + w;
        if (n >= rows * width) return;
        REAL* x = data + n / width * row + n % width;
        *x = some && c[w] >= threshold ? *x * factor : REAL(0);
    }
}
