/* 3x3 convolutions with a padding of 1, their 2x2 max-pool, and their gradients, in bfloat16.
 *
 * Winograd's minimal filtering F(2x2, 3x3): with a tile d of 4x4 pixels and a kernel g of 3x3,
 *
 *     V = B'dB,  U = GgG',  M = the sum of V * U over the channels in,  Y = A'MA
 *
 * are 2x2 pixels of the result, from 16 products instead of 36. Such a tile is one window of the
 * pool, which is taken with POOL = 1; backward is for convolutions without a pool. For each of the
 * 16 positions, M is a product of matrices, [tiles, CIN] x [CIN, COUT]. The gradients are the
 * transposed operations, in the opposite order:
 *
 *     dM = A dY A',  dV = the sum of dM * U over the channels out,  dd = B dV B', added up
 *                    dU = the sum of dM * V over the tiles,         dg = G' dU G
 *
 * Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
 * https://arxiv.org/abs/1509.09308.
 *
 * Built once for each shape: CIN, COUT, H, W and POOL are macros, and so are the images that are
 * transformed at a time: GROUP, whose V or dM stays in the second cache, and WEIGHT_GROUP. Images
 * have their channels last. Factors are of 16 bits, two of which lie side by side, because an
 * instruction multiplies pairs:
 *
 *   - FP16 = 0: bfloat16; the instruction adds both products to a sum in float32. Transforms are
 *     made in float32.
 *   - FP16 = 1: float16, which has three more bits; the instruction adds each product to a sum in
 *     float16. After CHUNK of them a sum is added to another one. Images and sums are transformed in
 *     float16, too, and weights in float32. Factors are scaled by powers of two, such that no sum can
 *     overflow: the weights by one, images by one each.
 *
 * Results depend on nothing but the arguments and, for the weights, the number of threads.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>
#include "scale.h"

#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* Compiled once for each constant among its arguments. */
#define SPECIALISED static inline __attribute__((always_inline))

typedef uint16_t bf16;

enum {
    LANES = 16,                                     /* channels in a vector of float32 */
    WIDTH = FP16 ? 32 : 16,                         /* and in one of what transforms are made in */
    HALF = LANES * 2, WHOLE = LANES * 4,            /* bytes of LANES factors, and of LANES pairs or sums */
    PLACES = 16,                                    /* of a transformed tile */
    TAPS = 9,
    HP = POOL ? H / 2 : (H + 1) / 2, WP = POOL ? W / 2 : (W + 1) / 2,
    TILES = HP * WP,                                /* of an image */
    COLS = 2 * WP + 2, ROWS = 2 * HP + 2,           /* what they cover */
    IN = ROUND_UP(CIN, 2 * LANES), OUT = COUT,
    SUM = FP16 ? 2 : 4,                             /* bytes of an element of M or dV */
    CHUNK = 32,
    SUMS = 24,                                      /* vectors of sums that registers hold */
    IN_WIDE = IN % 64 ? 2 : 4, OUT_WIDE = OUT % 64 ? 2 : 4, /* vectors in a row of a block of sums */
    IN_BLOCK = IN_WIDE * LANES, OUT_BLOCK = OUT_WIDE * LANES,
    MOST = SUMS / 2,                                /* rows of a block */
    TALL = ROUND_UP(GROUP * TILES, MOST),
    ODD = 5 * 64,                                   /* keeps what lies a large power of two apart out of one set */
    V_PLACE = TALL * CIN * 2 + ODD, DM_PLACE = TALL * OUT * 2 + ODD,
    M_PLACE = TALL * OUT_BLOCK * SUM + ODD, DV_PLACE = TALL * IN_BLOCK * SUM + ODD,
    U_PLACE = CIN * OUT * 2, UT_PLACE = OUT * IN * 2,
    IMAGE = ROWS * COLS * IN_BLOCK,                 /* elements */
    STEPS = (WEIGHT_GROUP * TILES + 1) / 2,         /* pairs of tiles */
    IN_STEP = IN * 4 + 64, OUT_STEP = OUT * 4 + 64, /* bytes of a pair of tiles */
    DU_ROWS = ROUND_UP(OUT, SUMS / IN_WIDE),
    DU_PLACE = DU_ROWS * IN,                        /* elements */
};

/* Memory of a thread, in arrays that begin with a line of the cache. */
typedef struct { char *start; size_t used; } Memory;

static void *take(Memory *m, size_t bytes)
{
    void *taken = m->start + m->used;
    m->used += ROUND_UP(bytes, 64);
    return taken;
}

/* Numbers ---------------------------------------------------------------------------------------- */

static inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }

static inline __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
static inline __m512 load(__mmask16 some, const bf16 *p) { return widen(_mm256_maskz_loadu_epi16(some, p)); }
static inline void store(__mmask16 some, bf16 *p, __m512 v)
{
    _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh(v));
}

/* A vector of WIDTH channels in transforms, a mask of them, and the factor of a product. Products are
 * written as instructions, because the compiler copies and reorders those of the intrinsic. */
#if FP16
typedef __m512h Vec;
typedef __mmask32 Some;
static inline __m256i factor(__m512 v) { return (__m256i)_mm512_cvtxps_ph(v); }
static inline __m512 multiply_add(__m512 sum, __m512i a, __m512i b)
{
    __asm__ volatile("vfmadd231ph %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
static inline __m512 add_sums(__m512 a, __m512 b) { return (__m512)_mm512_add_ph((__m512h)a, (__m512h)b); }
/* The sums of both elements of each pair of two vectors. */
static inline __m512h both(__m512 one, __m512 two)
{
    const __m512i evens = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
                                           30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odds = _mm512_add_epi16(evens, _mm512_set1_epi16(1));
    return _mm512_add_ph((__m512h)_mm512_permutex2var_epi16((__m512i)one, evens, (__m512i)two),
                         (__m512h)_mm512_permutex2var_epi16((__m512i)one, odds, (__m512i)two));
}
static inline Vec plus(Vec a, Vec b) { return _mm512_add_ph(a, b); }
static inline Vec minus(Vec a, Vec b) { return _mm512_sub_ph(a, b); }
static inline Vec zero(void) { return _mm512_setzero_ph(); }
static inline __m512 part(Vec v, int half)
{
    return _mm512_cvtxph_ps((__m256h)(half ? _mm512_extracti64x4_epi64((__m512i)v, 1) : _mm512_castsi512_si256((__m512i)v)));
}
static inline Vec load_scaled(Some some, const bf16 *p, float scale)
{
    __m512i v = _mm512_maskz_loadu_epi16(some, p);
    __m512 by = _mm512_set1_ps(scale);
    __m256i low = factor(_mm512_mul_ps(widen(_mm512_castsi512_si256(v)), by));
    __m256i high = factor(_mm512_mul_ps(widen(_mm512_extracti64x4_epi64(v, 1)), by));
    return (Vec)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
static inline void store_scaled(Some some, bf16 *p, Vec v, float scale)
{
    __m512 by = _mm512_set1_ps(scale);
    __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(part(v, 1), by), _mm512_mul_ps(part(v, 0), by));
    _mm512_mask_storeu_epi16(p, some, (__m512i)both);
}
static inline Vec load_sum(const char *p) { return _mm512_load_ph(p); }
static inline void add_to(char *p, Vec v) { _mm512_store_ph(p, plus(load_sum(p), v)); }
static inline Some is_more(Vec a, Vec b)
{
    return _mm512_cmp_ph_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ph_mask(a, a, _CMP_UNORD_Q);
}
static inline Vec choose(Some some, Vec a, Vec b) { return (Vec)_mm512_mask_mov_epi16((__m512i)a, some, (__m512i)b); }
static inline void store_number(uint8_t *p, Some one, Some two, Some three)
{
    __m256i v = _mm256_maskz_set1_epi8(one, 1);
    v = _mm256_mask_set1_epi8(v, two, 2);
    _mm256_storeu_si256((__m256i *)p, _mm256_mask_set1_epi8(v, three, 3));
}
#else
typedef __m512 Vec;
typedef __mmask16 Some;
static inline __m256i factor(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
static inline __m512 multiply_add(__m512 sum, __m512i a, __m512i b)
{
    __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
static inline __m512 add_sums(__m512 a, __m512 b) { return add(a, b); }
static inline Vec plus(Vec a, Vec b) { return add(a, b); }
static inline Vec minus(Vec a, Vec b) { return sub(a, b); }
static inline Vec zero(void) { return _mm512_setzero_ps(); }
static inline Vec load_scaled(Some some, const bf16 *p, float scale) { (void)scale; return load(some, p); }
static inline void store_scaled(Some some, bf16 *p, Vec v, float scale) { (void)scale; store(some, p, v); }
static inline Vec load_sum(const char *p) { return _mm512_load_ps(p); }
static inline void add_to(char *p, Vec v) { _mm512_store_ps(p, plus(load_sum(p), v)); }
static inline Some is_more(Vec a, Vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}
static inline Vec choose(Some some, Vec a, Vec b) { return _mm512_mask_mov_ps(a, some, b); }
static inline void store_number(uint8_t *p, Some one, Some two, Some three)
{
    __m128i v = _mm_maskz_set1_epi8(one, 1);
    v = _mm_mask_set1_epi8(v, two, 2);
    _mm_storeu_si128((__m128i *)p, _mm_mask_set1_epi8(v, three, 3));
}
#endif

static inline __m512i pair_up(__m256i even, __m256i odd)
{
    return _mm512_or_epi32(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/* The channels of a vector that there are, of ``channels``. */
static inline __mmask16 lanes(int channels, int first)
{
    int left = channels - first;
    return left >= LANES ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
}
static inline Some some_of(int channels, int first)
{
    int left = channels - first;
    return left >= WIDTH ? (Some)-1 : left > 0 ? ((Some)1 << left) - 1 : 0;
}

/* No sum of float16 can reach 65504. The largest weight is below 2, so that U is below 2 * 9/4; the
 * largest pixel or gradient is below 1, so that V and dM, sums of four of them, are below 4; there
 * are at most 512 channels, so that M and dV are below 512 * 4.5 * 4 = 9216, and sums of three of
 * them below 27648. A sum over tiles is one of 2 * CHUNK pairs of V and dM: 4 * CHUNK * 16 = 2048. */
enum { TOP_WEIGHT = 0, TOP_IMAGE = -1 };

/* Transforms ------------------------------------------------------------------------------------- */

/* B'd, of a column. */
static inline void to_v(const Vec d[4], Vec v[4])
{
    v[0] = minus(d[0], d[2]), v[1] = plus(d[1], d[2]), v[2] = minus(d[2], d[1]), v[3] = minus(d[1], d[3]);
}
/* B v */
static inline void from_v(const Vec v[4], Vec d[4])
{
    d[0] = v[0], d[1] = plus(minus(v[1], v[2]), v[3]), d[2] = plus(minus(v[1], v[0]), v[2]), d[3] = minus(zero(), v[3]);
}
/* A'm */
static inline void from_m(const Vec m[4], Vec y[2])
{
    y[0] = plus(plus(m[0], m[1]), m[2]), y[1] = minus(minus(m[1], m[2]), m[3]);
}
/* A y */
static inline void to_m(const Vec y[2], Vec m[4])
{
    m[0] = y[0], m[1] = plus(y[0], y[1]), m[2] = minus(y[0], y[1]), m[3] = minus(zero(), y[1]);
}
/* G g */
static inline void to_u(const __m512 g[3], __m512 u[4])
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 outer = _mm512_mul_ps(half, add(g[0], g[2])), inner = _mm512_mul_ps(half, g[1]);
    u[0] = g[0], u[1] = add(outer, inner), u[2] = sub(outer, inner), u[3] = g[2];
}
/* G'u */
static inline void from_u(const __m512 u[4], __m512 g[3])
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 sum = _mm512_mul_ps(half, add(u[1], u[2]));
    g[0] = add(u[0], sum), g[1] = _mm512_mul_ps(half, sub(u[1], u[2])), g[2] = add(sum, u[3]);
}

/* GgG' of LANES channels in: a row of weights [TAPS, CIN] of one channel out. */
static inline void transform_kernel(const bf16 *w, __mmask16 some, float scale, __m512 u[PLACES])
{
    __m512 half[3][4];
    UNROLL for (int j = 0; j < 3; j++) {
        __m512 g[3];
        UNROLL for (int i = 0; i < 3; i++) g[i] = _mm512_mul_ps(load(some, w + (3 * i + j) * CIN), _mm512_set1_ps(scale));
        to_u(g, half[j]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        __m512 row[3] = {half[0][i], half[1][i], half[2][i]};
        to_u(row, u + 4 * i);
    }
}

/* Where the factors of a tile go: a row of channels, or every other element of a pair's. */
SPECIALISED void put(int paired, int tile, char *row, int channel, Some some, Vec v)
{
#if FP16
    __m512i all = (__m512i)v;
    if (!paired) {
        _mm512_mask_storeu_epi16(row + channel * 2, some, all);
        return;
    }
    UNROLL for (int half = 0; half < 2; half++) {
        __m512i wide = _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64(all, 1) : _mm512_castsi512_si256(all));
        char *to = row + (channel + half * LANES) * 4;
        if (tile % 2) _mm512_mask_storeu_epi16(to, 0xaaaaaaaa, _mm512_slli_epi32(wide, 16));
        else _mm512_mask_storeu_epi16(to, 0x55555555, wide);
    }
#else
    __m256i all = factor(v);
    if (!paired) _mm256_mask_storeu_epi16(row + channel * 2, some, all);
    else if (tile % 2) _mm512_mask_storeu_epi16(row + channel * 4, 0xaaaaaaaa, _mm512_slli_epi32(_mm512_cvtepu16_epi32(all), 16));
    else _mm512_mask_storeu_epi16(row + channel * 4, 0x55555555, _mm512_cvtepu16_epi32(all));
#endif
}

/* A matrix of tiles and channels at each place. */
typedef struct { char *start; size_t place, row; } Tiles;

SPECIALISED char *row_of(int paired, Tiles to, int tile) { return to.start + (paired ? tile / 2 : tile) * to.row; }

/* V of an image, whose first tile has the number ``tile``. */
SPECIALISED void transform_image(int paired, const bf16 *x, float scale, Tiles to, int tile)
{
    for (int r = 0; r < HP; r++)
        for (int c = 0; c < CIN; c += WIDTH) {
            Some some = some_of(CIN, c);
            Vec left[2][4];
            for (int s = -1; s < WP; s++) {         /* columns 2s + 1 and 2s + 2 are new */
                Vec right[2][4];
                UNROLL for (int j = 0; j < 2; j++) {
                    Vec d[4];
                    int w = 2 * s + 1 + j;
                    UNROLL for (int i = 0; i < 4; i++) {
                        int h = 2 * r - 1 + i;
                        d[i] = zero();
                        if (h >= 0 && h < H && w >= 0 && w < W)
                            d[i] = load_scaled(some, x + (h * W + w) * CIN + c, scale);
                    }
                    to_v(d, right[j]);
                }
                if (s >= 0) {
                    char *row = row_of(paired, to, tile + r * WP + s);
                    UNROLL for (int i = 0; i < 4; i++) {
                        Vec d[4] = {left[0][i], left[1][i], right[0][i], right[1][i]}, v[4];
                        to_v(d, v);
                        UNROLL for (int j = 0; j < 4; j++)
                            put(paired, tile + r * WP + s, row + (4 * i + j) * to.place, c, some, v[j]);
                    }
                }
                memcpy(left, right, sizeof left);
            }
        }
}

/* The gradients of those of a tile's 2x2 pixels that are inside. */
static inline void load_gradient(const bf16 *g, float scale, int r, int s, int o, Vec y[2][2])
{
    UNROLL for (int k = 0; k < 4; k++) {
        int h = 2 * r + k / 2, w = 2 * s + k % 2;
        y[k / 2][k % 2] = h < H && w < W ? load_scaled(-1, g + (h * W + w) * OUT + o, scale) : zero();
    }
}

/* dM of an image, whose first tile has the number ``tile``. */
SPECIALISED void transform_gradient(int paired, const bf16 *g, float scale, Tiles to, int tile)
{
    for (int r = 0; r < HP; r++)
        for (int s = 0; s < WP; s++, tile++) {
            char *row = row_of(paired, to, tile);
            for (int o = 0; o < OUT; o += WIDTH) {
                Vec y[2][2], half[4][2];
                load_gradient(g, scale, r, s, o, y);
                UNROLL for (int j = 0; j < 2; j++) {
                    Vec column[2] = {y[0][j], y[1][j]}, m[4];
                    to_m(column, m);
                    UNROLL for (int i = 0; i < 4; i++) half[i][j] = m[i];
                }
                UNROLL for (int i = 0; i < 4; i++) {
                    Vec m[4];
                    to_m(half[i], m);
                    UNROLL for (int j = 0; j < 4; j++) put(paired, tile, row + (4 * i + j) * to.place, o, -1, m[j]);
                }
            }
        }
}

/* Products --------------------------------------------------------------------------------------- */

/* sum = a b, or that added to ``sum`` with ``more``, of SUMS / wide rows and ``wide`` vectors, over
 * ``steps`` pairs. Rows of ``a`` lie ``row`` bytes apart, and pairs ``step``; rows of ``b`` lie
 * ``b_step`` apart. */
SPECIALISED void multiply(int wide, int steps, const char *a, size_t row, size_t step, const char *b, size_t b_step,
                          int more, __m512 *sum)
{
    __m512 s[SUMS];
    UNROLL for (int i = 0; i < SUMS; i++) s[i] = _mm512_setzero_ps();
    for (int k = 0; k < steps; k++, a += step, b += b_step) {
        __m512i right[4];
        UNROLL for (int j = 0; j < wide; j++) right[j] = _mm512_load_si512(b + j * WHOLE);
        UNROLL for (int i = 0; i < SUMS; i++) {
            int32_t pair;
            memcpy(&pair, a + i / wide * row, 4);
            s[i] = multiply_add(s[i], _mm512_set1_epi32(pair), right[i % wide]);
        }
    }
    if (more) UNROLL for (int i = 0; i < SUMS; i++) sum[i] = add_sums(sum[i], s[i]);
    else UNROLL for (int i = 0; i < SUMS; i++) sum[i] = s[i];
}

/* One for each use, with its distances. Not inlined, so that registers hold the sums and nothing else. */
#ifdef __clang__
#define ALONE static __attribute__((noinline))
#else
#define ALONE static __attribute__((noipa))
#endif
typedef void Multiply(int steps, const char *a, const char *b, int more, __m512 *sum);
ALONE void multiply_v(int steps, const char *a, const char *b, int more, __m512 *sum)
{
    multiply(OUT_WIDE, steps, a, CIN * 2, 4, b, OUT_BLOCK * 4, more, sum);
}
ALONE void multiply_dm(int steps, const char *a, const char *b, int more, __m512 *sum)
{
    multiply(IN_WIDE, steps, a, OUT * 2, 4, b, IN_BLOCK * 4, more, sum);
}
ALONE void multiply_both(int steps, const char *a, const char *b, int more, __m512 *sum)
{
    multiply(IN_WIDE, steps, a, 4, OUT_STEP, b, IN_STEP, more, sum);
}

/* c = a b, for all tiles of one place and one block of columns. */
SPECIALISED void multiply_tiles(Multiply *multiply, int wide, int tiles, int channels, const char *a, const char *b, char *c)
{
    int rows = SUMS / wide, columns = wide * LANES, steps = channels / 2;
    for (int t = 0; t < tiles; t += rows) {
        __m512 sum[SUMS];
        for (int k = 0; k < steps; k += FP16 ? CHUNK : steps)
            multiply(FP16 && steps - k > CHUNK ? CHUNK : steps - k, a + t * channels * 2 + k * 4, b + k * columns * 4, k, sum);
        UNROLL for (int i = 0; i < rows; i++) {
            char *row = c + (t + i) * columns * SUM;
#if FP16
            UNROLL for (int j = 0; j < wide; j += 2)
                _mm512_store_si512(row + j * HALF, (__m512i)both(sum[i * wide + j], sum[i * wide + j + 1]));
#else
            UNROLL for (int j = 0; j < wide; j++) _mm512_store_ps(row + j * WHOLE, sum[i * wide + j]);
#endif
        }
    }
}

/* Forward ---------------------------------------------------------------------------------------- */

/* U as [PLACES, COUT / OUT_BLOCK, CIN / 2, OUT_BLOCK, 2], of the channels out of this thread. */
static void transform_weights(const bf16 *w, float scale, char *u)
{
    const __m256i apart = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(OUT_BLOCK * 4));
    #pragma omp for schedule(static)
    for (int o = 0; o < OUT; o++)
        for (int c = 0; c < CIN; c += LANES) {
            __m512 v[PLACES];
            __mmask16 some = lanes(CIN, c);
            transform_kernel(w + o * TAPS * CIN + c, some, scale, v);
            __mmask8 pairs = some == 0xffff ? 0xff : (1 << (CIN - c) / 2) - 1;
            char *to = u + (size_t)(o / OUT_BLOCK * CIN / 2 + c / 2) * OUT_BLOCK * 4 + o % OUT_BLOCK * 4;
            UNROLL for (int p = 0; p < PLACES; p++)
                _mm256_mask_i32scatter_epi32(to + (size_t)p * U_PLACE, pairs, apart, factor(v[p]), 1);
        }
}

/* A'MA of a tile. */
static inline void transform_sums(const char *m, size_t place, Vec y[4])
{
    Vec half[4][2];
    UNROLL for (int j = 0; j < 4; j++) {
        Vec column[4];
        UNROLL for (int i = 0; i < 4; i++) column[i] = load_sum(m + (4 * i + j) * place);
        from_m(column, half[j]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        Vec row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
        from_m(row, y + 2 * i);
    }
}

/* A block of channels out of an image, whose first tile is at ``m``. Of a window the first of the
 * greatest, as in PyTorch, where NaN is greater than all. */
static void write_image(const char *m, float scale, int block, bf16 *y, uint8_t *which)
{
    for (int r = 0; r < HP; r++)
        for (int s = 0; s < WP; s++, m += OUT_BLOCK * SUM)
            for (int o = 0; o < OUT_BLOCK; o += WIDTH) {
                Vec v[4];
                transform_sums(m + o * SUM, M_PLACE, v);
                int channel = block * OUT_BLOCK + o;
                if (POOL) {
                    Some more[4];
                    UNROLL for (int k = 1; k < 4; k++) {
                        more[k] = is_more(v[k], v[0]);
                        v[0] = choose(more[k], v[0], v[k]);
                    }
                    int64_t at = (int64_t)(r * WP + s) * OUT + channel;
                    store_scaled(-1, y + at, v[0], scale);
                    if (which) store_number(which + at, more[1], more[2], more[3]);
                    continue;
                }
                UNROLL for (int k = 0; k < 4; k++) {
                    int h = 2 * r + k / 2, w = 2 * s + k % 2;
                    if (h < H && w < W) store_scaled(-1, y + (h * W + w) * OUT + channel, v[k], scale);
                }
            }
}

static void forward_group(Memory memory, int images, const bf16 *x, const char *u, float weight_scale,
                          bf16 *y, uint8_t *which)
{
    enum { RESULT = POOL ? TILES * OUT : H * W * OUT };
    Tiles v = {take(&memory, (size_t)PLACES * V_PLACE), V_PLACE, CIN * 2};
    char *m = take(&memory, (size_t)PLACES * M_PLACE);
    float scales[GROUP];
    for (int i = 0; i < images; i++) {
        const bf16 *image = x + (int64_t)i * H * W * CIN;
        scales[i] = scale_of(image, H * W * CIN, TOP_IMAGE);
        transform_image(0, image, scales[i], v, i * TILES);
    }
    for (int b = 0; b < OUT / OUT_BLOCK; b++) {
        for (int p = 0; p < PLACES; p++)
            multiply_tiles(multiply_v, OUT_WIDE, images * TILES, CIN, v.start + p * (size_t)V_PLACE,
                           u + p * (size_t)U_PLACE + b * CIN * OUT_BLOCK * 2, m + p * (size_t)M_PLACE);
        for (int i = 0; i < images; i++)
            write_image(m + i * TILES * OUT_BLOCK * SUM, 1 / (scales[i] * weight_scale), b,
                        y + (int64_t)i * RESULT, which ? which + (int64_t)i * RESULT : NULL);
    }
}

enum { FORWARD = PLACES * (V_PLACE + M_PLACE) };

/* x [n, H, W, CIN], weight [COUT, 3, 3, CIN] -> y [n, H, W, COUT]; with POOL y and which, unless
 * that is null, [n, H / 2, W / 2, COUT]. Returns 0, or 1 where memory was short. */
int forward(int64_t n, const bf16 *x, const bf16 *weight, bf16 *y, uint8_t *which)
{
    enum { RESULT = POOL ? TILES * OUT : H * W * OUT };
    char *start = aligned_alloc(64, ROUND_UP(PLACES * (size_t)U_PLACE, 64) + omp_get_max_threads() * (size_t)FORWARD);
    if (!start) return 1;
    float scale = scale_of(weight, (int64_t)OUT * TAPS * CIN, TOP_WEIGHT);
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), t = omp_get_thread_num();
        Memory memory = {start + ROUND_UP(PLACES * (size_t)U_PLACE, 64) + t * (size_t)FORWARD, 0};
        transform_weights(weight, scale, start);
        int64_t groups = (n + GROUP - 1) / GROUP, end = groups * (t + 1) / threads * GROUP;
        if (end > n) end = n;
        for (int64_t i = groups * t / threads * GROUP; i < end; i += GROUP)
            forward_group(memory, end - i < GROUP ? end - i : GROUP, x + i * H * W * CIN, start, scale,
                          y + i * RESULT, which ? which + i * RESULT : NULL);
    }
    free(start);
    return 0;
}

#if !POOL
/* The images' gradient --------------------------------------------------------------------------- */

/* U' as [PLACES, IN / IN_BLOCK, COUT / 2, IN_BLOCK, 2] */
static void transpose_weights(const bf16 *w, float scale, char *u)
{
    #pragma omp for schedule(static)
    for (int o = 0; o < OUT; o += 2)
        for (int c = 0; c < IN; c += LANES) {
            __m512 even[PLACES], odd[PLACES];
            const bf16 *from = w + o * TAPS * CIN + c;
            transform_kernel(from, lanes(CIN, c), scale, even);
            transform_kernel(from + TAPS * CIN, lanes(CIN, c), scale, odd);
            char *to = u + (size_t)(c / IN_BLOCK * OUT / 2 + o / 2) * IN_BLOCK * 4 + c % IN_BLOCK * 4;
            UNROLL for (int p = 0; p < PLACES; p++)
                _mm512_store_si512(to + (size_t)p * UT_PLACE, pair_up(factor(even[p]), factor(odd[p])));
        }
}

/* Adds B dV B' of an image's tiles to what they cover. */
static void add_tiles(const char *dv, char *image)
{
    memset(image, 0, SUM * IMAGE);
    for (int r = 0; r < HP; r++)
        for (int c = 0; c < IN_BLOCK; c += WIDTH) {
            const char *from = dv + ((size_t)r * WP * IN_BLOCK + c) * SUM;
            char *at = image + (2 * r * COLS * IN_BLOCK + c) * SUM;
            Vec left[4][2] = {};
            for (int s = 0; s < WP; s++, from += IN_BLOCK * SUM, at += 2 * IN_BLOCK * SUM) {
                Vec half[4][4];
                UNROLL for (int j = 0; j < 4; j++) {
                    Vec column[4];
                    UNROLL for (int i = 0; i < 4; i++) column[i] = load_sum(from + (4 * i + j) * (size_t)DV_PLACE);
                    from_v(column, half[j]);
                }
                UNROLL for (int i = 0; i < 4; i++) {
                    Vec row[4] = {half[0][i], half[1][i], half[2][i], half[3][i]}, d[4];
                    from_v(row, d);
                    UNROLL for (int j = 0; j < 2; j++) {
                        add_to(at + (i * COLS + j) * IN_BLOCK * SUM, plus(left[i][j], d[j]));
                        left[i][j] = d[2 + j];
                    }
                }
            }
            UNROLL for (int k = 0; k < 8; k++) add_to(at + (k / 2 * COLS + k % 2) * IN_BLOCK * SUM, left[k / 2][k % 2]);
        }
}

/* What the tiles cover, without its border. */
static void crop(const char *image, float scale, int block, bf16 *x)
{
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++)
            for (int c = 0; c < IN_BLOCK; c += WIDTH) {
                Vec v = load_sum(image + (((h + 1) * COLS + w + 1) * IN_BLOCK + c) * SUM);
                int channel = block * IN_BLOCK + c;
                store_scaled(some_of(CIN, channel), x + (h * W + w) * CIN + channel, v, scale);
            }
}

enum { GRADIENT = H * W * OUT };

static void input_group(Memory memory, int images, const bf16 *g, const char *u, float weight_scale, bf16 *x)
{
    Tiles dm = {take(&memory, (size_t)PLACES * DM_PLACE), DM_PLACE, OUT * 2};
    char *dv = take(&memory, (size_t)PLACES * DV_PLACE);
    char *image = take(&memory, SUM * IMAGE);
    float scales[GROUP];
    for (int i = 0; i < images; i++) {
        int64_t at = (int64_t)i * GRADIENT;
        scales[i] = scale_of(g + at, GRADIENT, TOP_IMAGE);
        transform_gradient(0, g + at, scales[i], dm, i * TILES);
    }
    for (int b = 0; b < IN / IN_BLOCK; b++) {
        for (int p = 0; p < PLACES; p++)
            multiply_tiles(multiply_dm, IN_WIDE, images * TILES, OUT, dm.start + p * (size_t)DM_PLACE,
                           u + p * (size_t)UT_PLACE + b * OUT * IN_BLOCK * 2, dv + p * (size_t)DV_PLACE);
        for (int i = 0; i < images; i++) {
            add_tiles(dv + (size_t)i * TILES * IN_BLOCK * SUM, image);
            crop(image, 1 / (scales[i] * weight_scale), b, x + (int64_t)i * H * W * CIN);
        }
    }
}

/* The weights' gradient -------------------------------------------------------------------------- */

/* Adds dU of a group of images to this thread's, [PLACES, DU_ROWS, IN]. */
static void weight_group(Memory memory, int images, const bf16 *g, const bf16 *x, float *du)
{
    enum { HIGH = SUMS / IN_WIDE };
    const size_t v_place = (size_t)STEPS * IN_STEP + ODD, m_place = (size_t)STEPS * OUT_STEP + ODD;
    Tiles v = {take(&memory, PLACES * v_place), v_place, IN_STEP};
    Tiles dm = {take(&memory, PLACES * m_place), m_place, OUT_STEP};
    int steps = (images * TILES + 1) / 2;
    for (int p = 0; p < PLACES; p++) {              /* an odd tile's partner */
        memset(v.start + p * v_place + (size_t)(steps - 1) * IN_STEP, 0, IN_STEP);
        memset(dm.start + p * m_place + (size_t)(steps - 1) * OUT_STEP, 0, OUT_STEP);
    }
    float x_scale = scale_of(x, (int64_t)images * H * W * CIN, TOP_IMAGE);
    float g_scale = scale_of(g, (int64_t)images * GRADIENT, TOP_IMAGE);
    for (int i = 0; i < images; i++) {
        int64_t at = (int64_t)i * GRADIENT;
        transform_image(1, x + (int64_t)i * H * W * CIN, x_scale, v, i * TILES);
        transform_gradient(1, g + at, g_scale, dm, i * TILES);
    }
    const __m512 factor = _mm512_set1_ps(1 / (x_scale * g_scale));
    for (int p = 0; p < PLACES; p++)
        for (int from = 0; from < steps; from += 2 * CHUNK) {
            int some = steps - from < 2 * CHUNK ? steps - from : 2 * CHUNK;
            for (int b = 0; b < IN; b += IN_BLOCK)
                for (int o = 0; o < OUT; o += HIGH) {
                    __m512 sum[SUMS];
                    for (int k = 0; k < some; k += FP16 ? CHUNK : some)
                        multiply_both(FP16 && some - k > CHUNK ? CHUNK : some - k,
                                      dm.start + p * m_place + (from + k) * (size_t)OUT_STEP + o * 4,
                                      v.start + p * v_place + (from + k) * (size_t)IN_STEP + b * 4, k, sum);
                    float *to = du + (size_t)p * DU_PLACE + (size_t)o * IN + b;
                    UNROLL for (int i = 0; i < HIGH; i++, to += IN) {
#if FP16
                        UNROLL for (int j = 0; j < IN_WIDE; j += 2) {
                            Vec pair = both(sum[i * IN_WIDE + j], sum[i * IN_WIDE + j + 1]);
                            UNROLL for (int k = 0; k < 2; k++) {
                                float *at = to + (j + k) * LANES;
                                _mm512_store_ps(at, _mm512_fmadd_ps(factor, part(pair, k), _mm512_load_ps(at)));
                            }
                        }
#else
                        UNROLL for (int j = 0; j < IN_WIDE; j++)
                            _mm512_store_ps(to + j * LANES, add(sum[i * IN_WIDE + j], _mm512_load_ps(to + j * LANES)));
#endif
                    }
                }
        }
    (void)factor;
}

/* G' dU G, of all threads' sums, for channel out o: [TAPS, CIN]. */
static void write_kernel(int o, int threads, size_t apart, const char *du, bf16 *dw)
{
    for (int c = 0; c < CIN; c += LANES) {
        __m512 half[3][4];
        UNROLL for (int j = 0; j < 4; j++) {
            __m512 u[4], g[3];
            UNROLL for (int i = 0; i < 4; i++) {
                const char *from = du + sizeof(float) * ((size_t)(4 * i + j) * DU_PLACE + (size_t)o * IN + c);
                u[i] = _mm512_load_ps(from);
                for (int t = 1; t < threads; t++) u[i] = add(u[i], _mm512_load_ps(from + t * apart));
            }
            from_u(u, g);
            UNROLL for (int i = 0; i < 3; i++) half[i][j] = g[i];
        }
        UNROLL for (int i = 0; i < 3; i++) {
            __m512 g[3];
            from_u(half[i], g);
            UNROLL for (int j = 0; j < 3; j++) store(lanes(CIN, c), dw + (o * TAPS + 3 * i + j) * CIN + c, g[j]);
        }
    }
}

/* Without a pool: gradient [n, H, W, COUT], x, weight -> the gradients of x and weight, each unless it
 * is null. Returns 0, or 1 where memory was short. */
int backward(int64_t n, const bf16 *gradient, const bf16 *x, const bf16 *weight, bf16 *x_gradient, bf16 *weight_gradient)
{
    const size_t u = ROUND_UP(PLACES * (size_t)UT_PLACE, 64);
    const size_t du = ROUND_UP(PLACES * (size_t)DU_PLACE * sizeof(float), 64);
    const size_t input = PLACES * ((size_t)DM_PLACE + DV_PLACE) + SUM * IMAGE + 256;
    const size_t weights = PLACES * ((size_t)STEPS * (IN_STEP + OUT_STEP) + 2 * ODD) + 256;
    const size_t each = ROUND_UP(du + (input > weights ? input : weights), 64);
    char *start = aligned_alloc(64, u + omp_get_max_threads() * each);
    if (!start) return 1;
    float scale = scale_of(weight, (int64_t)OUT * TAPS * CIN, TOP_WEIGHT);
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), t = omp_get_thread_num();
        Memory memory = {start + u + t * each, 0};
        float *sums = take(&memory, du);
        if (x_gradient) {
            transpose_weights(weight, scale, start);
            int64_t groups = (n + GROUP - 1) / GROUP, end = groups * (t + 1) / threads * GROUP;
            if (end > n) end = n;
            for (int64_t i = groups * t / threads * GROUP; i < end; i += GROUP)
                input_group(memory, end - i < GROUP ? end - i : GROUP, gradient + i * GRADIENT, start, scale,
                            x_gradient + i * H * W * CIN);
        }
        if (weight_gradient) {
            memset(sums, 0, du);
            int64_t end = n * (t + 1) / threads;
            for (int64_t i = n * t / threads; i < end; i += WEIGHT_GROUP)
                weight_group(memory, end - i < WEIGHT_GROUP ? end - i : WEIGHT_GROUP, gradient + i * GRADIENT,
                             x + i * H * W * CIN, sums);
            #pragma omp barrier
            #pragma omp for schedule(static)
            for (int o = 0; o < OUT; o++) write_kernel(o, threads, each, start + u, weight_gradient);
        }
    }
    free(start);
    return 0;
}
#endif
