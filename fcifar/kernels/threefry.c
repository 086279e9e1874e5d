/* The cipher threefry2x32 with 20 rounds, of words in memory with any strides. */
#include <stdint.h>

enum { BLOCK = 64, PARALLEL = 1 << 14 };

typedef struct { const uint32_t *data; const int64_t *strides; } Words;

static inline uint32_t rotate(uint32_t x, int r) { return x << r | x >> (32 - r); }

/* The offset of element i, counted over all dimensions but the last one. */
static int64_t offset(int64_t i, int64_t dims, const int64_t *sizes, const int64_t *strides)
{
    int64_t at = 0;
    for (int64_t d = dims - 2; d >= 0; d--) {
        at += i % sizes[d] * strides[d];
        i /= sizes[d];
    }
    return at;
}

static void encrypt(int count, const uint32_t *k0, const uint32_t *k1, uint32_t *x0, uint32_t *x1)
{
    static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    for (int j = 0; j < count; j++) {
        uint32_t key[3] = {k0[j], k1[j], k0[j] ^ k1[j] ^ 0x1BD11BDA}, a = x0[j] + key[0], b = x1[j] + key[1];
        #pragma GCC unroll 5
        for (int i = 0; i < 5; i++) {
            #pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                a += b;
                b = rotate(b, rotations[i % 2][r]) ^ a;
            }
            a += key[(i + 1) % 3];
            b += key[(i + 2) % 3] + i + 1;
        }
        x0[j] = a;
        x1[j] = b;
    }
}

/* words [4]: k0, k1, x0, x1, with broadcast strides over `sizes` [dims], dims >= 1; y0 and y1 dense. */
void threefry2x32(int64_t dims, const int64_t *sizes, const Words *words, uint32_t *y0, uint32_t *y1)
{
    int64_t rows = 1, row = sizes[dims - 1];
    for (int64_t d = 0; d < dims - 1; d++) rows *= sizes[d];
    int64_t blocks = (row + BLOCK - 1) / BLOCK;
    #pragma omp parallel for schedule(static) if (rows * row >= PARALLEL)
    for (int64_t n = 0; n < rows * blocks; n++) {
        int64_t r = n / blocks, first = n % blocks * BLOCK;
        int count = row - first < BLOCK ? row - first : BLOCK;
        uint32_t in[4][BLOCK];
        for (int w = 0; w < 4; w++) {
            int64_t step = words[w].strides[dims - 1];
            const uint32_t *from = words[w].data + offset(r, dims, sizes, words[w].strides) + first * step;
            for (int j = 0; j < count; j++) in[w][j] = from[j * step];
        }
        encrypt(count, in[0], in[1], in[2], in[3]);
        for (int j = 0; j < count; j++) y0[r * row + first + j] = in[2][j];
        for (int j = 0; j < count; j++) y1[r * row + first + j] = in[3][j];
    }
}
