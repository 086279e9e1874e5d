/* 3x3 convolutions with a padding of 1, their 2x2 max-pool, and their gradients, in bfloat16.
 *
 * Winograd's minimal filtering F(TILE x TILE, 3x3): with a tile d of SIDE x SIDE pixels, SIDE = TILE + 2,
 * and a kernel g of 3x3,
 *
 *     V = B'dB,  U = GgG',  M = the sum of V * U over the channels in,  Y = A'MA
 *
 * are TILE x TILE pixels of the result: from 16 products instead of 36 with a TILE of 2, and from 36
 * instead of 144 with one of 4. For each place of a transformed tile, M is a product of matrices,
 * [tiles, channels in] x [channels in, channels out]. The gradient of the images is such a convolution
 * too, of the gradient with the kernels turned by half a turn. That of the weights is the transposed
 * operation:
 *
 *     dM = A dY A',  dU = the sum of dM * V over the tiles,  dg = G' dU G
 *
 * Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
 * https://arxiv.org/abs/1509.09308. The points of interpolation are 0, 1, -1 and infinity with a TILE
 * of 2; and with one of 4, 0, 5/8, -5/8, 3/2, -3/2 and infinity, with which roundings of V and U have
 * less than half the effect that they have with 0, 1, -1, 2, -2 and infinity.
 *
 * Built once for each shape and direction: CIN, COUT, H, W, POOL, GRADIENT and TILE are macros, and so
 * are the images that are transformed at a time: GROUP, whose V and M stay in the second cache, and
 * WEIGHT_GROUP. Images have their channels last. Factors are of 16 bits, two of which lie side by side,
 * because an instruction multiplies pairs:
 *
 *   - FP16 = 0: bfloat16; the instruction adds both products to a sum in float32. Transforms are
 *     made in float32.
 *   - FP16 = 1, with a TILE of 2: float16, which has three more bits; the instruction adds each product
 *     to a sum in float16. After CHUNK of them a sum is added to another one. Images and sums are
 *     transformed in float16, too, and weights in float32. Factors are scaled by powers of two, such
 *     that no sum can overflow: the weights by one, images by one each.
 *
 * Results depend on nothing but the arguments.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>
#include "scale.h"

#if FP16 && TILE != 2
#error "sums of float16 could overflow"
#endif

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
    SIDE = TILE + 2, PLACES = SIDE * SIDE,          /* of a transformed tile */
    TAPS = 9,
    FROM = GRADIENT ? COUT : CIN, TO = GRADIENT ? CIN : COUT, /* channels of what is convolved, and of the result */
    HP = H / 2, WP = W / 2,
    HY = POOL ? HP * 2 : H, WY = POOL ? WP * 2 : W, /* pixels of the layer's convolution that are used */
    X = H * W * CIN, Y = (POOL ? HP * WP : H * W) * COUT, /* elements of an image, and of the layer's result */
    ROWS = ((GRADIENT ? H : HY) + TILE - 1) / TILE, COLS = ((GRADIENT ? W : WY) + TILE - 1) / TILE,
    TILES = ROWS * COLS,                            /* of the result of an image */
    SUM = FP16 ? 2 : 4,                             /* bytes of an element of M */
    CHUNK = 32,
    SUMS = 24,                                      /* vectors of sums that registers hold */
    OUT = ROUND_UP(TO, 2 * LANES),
    WIDE = OUT % 64 ? 2 : 4,                        /* vectors in a row of a block of sums */
    BLOCK = WIDE * LANES,
    TALL = ROUND_UP(GROUP * TILES, SUMS / WIDE),
    ODD = 5 * 64,                                   /* keeps what lies a large power of two apart out of one set */
    V_PLACE = TALL * FROM * 2 + ODD, M_PLACE = TALL * BLOCK * SUM + ODD,
    U_PLACE = FROM * OUT * 2,
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
#ifdef EMULATED                                     /* in tests on processors without it */
    return (__m512)_mm512_fmadd_ph((__m512h)a, (__m512h)b, (__m512h)sum);
#else
    __asm__ volatile("vfmadd231ph %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#endif
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
static inline Some equals(const uint8_t *p, int k)
{
    return _mm256_cmpeq_epi8_mask(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi8(k));
}
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
static inline Some equals(const uint8_t *p, int k)
{
    return _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i *)p), _mm_set1_epi8(k));
}
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

/* B'd, A'm and A y of a column, G g and G'u. */
#if TILE == 2
static inline void to_v(const Vec d[SIDE], Vec v[SIDE])
{
    v[0] = minus(d[0], d[2]), v[1] = plus(d[1], d[2]), v[2] = minus(d[2], d[1]), v[3] = minus(d[1], d[3]);
}
static inline void from_m(const Vec m[SIDE], Vec y[TILE])
{
    y[0] = plus(plus(m[0], m[1]), m[2]), y[1] = minus(minus(m[1], m[2]), m[3]);
}
static inline void to_m(const Vec y[TILE], Vec m[SIDE])
{
    m[0] = y[0], m[1] = plus(y[0], y[1]), m[2] = minus(y[0], y[1]), m[3] = minus(zero(), y[1]);
}
static inline void to_u(const __m512 g[3], __m512 u[SIDE])
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 outer = _mm512_mul_ps(half, add(g[0], g[2])), inner = _mm512_mul_ps(half, g[1]);
    u[0] = g[0], u[1] = add(outer, inner), u[2] = sub(outer, inner), u[3] = g[2];
}
static inline void from_u(const __m512 u[SIDE], __m512 g[3])
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 sum = _mm512_mul_ps(half, add(u[1], u[2]));
    g[0] = add(u[0], sum), g[1] = _mm512_mul_ps(half, sub(u[1], u[2])), g[2] = add(sum, u[3]);
}
#else
#define P (5.0f / 8)                                /* the points, and their squares */
#define Q (3.0f / 2)
#define PP (P * P)
#define QQ (Q * Q)
#define AT_0 (1 / (PP * QQ))                        /* 1 over the product of a point's distances from the others */
#define AT_P (1 / (2 * PP * (PP - QQ)))
#define AT_Q (1 / (2 * QQ * (QQ - PP)))

/* factor * a + b */
static inline __m512 axpy(float factor, __m512 a, __m512 b) { return _mm512_fmadd_ps(_mm512_set1_ps(factor), a, b); }
static inline __m512 times(float factor, __m512 a) { return _mm512_mul_ps(_mm512_set1_ps(factor), a); }

static inline void to_v(const Vec d[SIDE], Vec v[SIDE])
{
    Vec p_even = axpy(-QQ, d[2], d[4]), p_odd = axpy(-QQ, d[1], d[3]);
    Vec q_even = axpy(-PP, d[2], d[4]), q_odd = axpy(-PP, d[1], d[3]);
    v[0] = axpy(PP * QQ, d[0], axpy(-PP - QQ, d[2], d[4]));
    v[1] = axpy(P, p_odd, p_even), v[2] = axpy(-P, p_odd, p_even);
    v[3] = axpy(Q, q_odd, q_even), v[4] = axpy(-Q, q_odd, q_even);
    v[5] = axpy(PP * QQ, d[1], axpy(-PP - QQ, d[3], d[5]));
}
static inline void from_m(const Vec m[SIDE], Vec y[TILE])
{
    Vec p_even = add(m[1], m[2]), p_odd = sub(m[1], m[2]), q_even = add(m[3], m[4]), q_odd = sub(m[3], m[4]);
    y[0] = add(add(m[0], p_even), q_even);
    y[1] = axpy(P, p_odd, times(Q, q_odd));
    y[2] = axpy(PP, p_even, times(QQ, q_even));
    y[3] = axpy(P * PP, p_odd, axpy(Q * QQ, q_odd, m[5]));
}
static inline void to_m(const Vec y[TILE], Vec m[SIDE])
{
    Vec p_even = axpy(PP, y[2], y[0]), p_odd = axpy(P * PP, y[3], times(P, y[1]));
    Vec q_even = axpy(QQ, y[2], y[0]), q_odd = axpy(Q * QQ, y[3], times(Q, y[1]));
    m[0] = y[0], m[1] = add(p_even, p_odd), m[2] = sub(p_even, p_odd);
    m[3] = add(q_even, q_odd), m[4] = sub(q_even, q_odd), m[5] = y[3];
}
static inline void to_u(const __m512 g[3], __m512 u[SIDE])
{
    __m512 p_even = times(AT_P, axpy(PP, g[2], g[0])), p_odd = times(AT_P * P, g[1]);
    __m512 q_even = times(AT_Q, axpy(QQ, g[2], g[0])), q_odd = times(AT_Q * Q, g[1]);
    u[0] = times(AT_0, g[0]), u[1] = add(p_even, p_odd), u[2] = sub(p_even, p_odd);
    u[3] = add(q_even, q_odd), u[4] = sub(q_even, q_odd), u[5] = g[2];
}
static inline void from_u(const __m512 u[SIDE], __m512 g[3])
{
    __m512 p_even = times(AT_P, add(u[1], u[2])), p_odd = times(AT_P * P, sub(u[1], u[2]));
    __m512 q_even = times(AT_Q, add(u[3], u[4])), q_odd = times(AT_Q * Q, sub(u[3], u[4]));
    g[0] = axpy(AT_0, u[0], add(p_even, q_even)), g[1] = add(p_odd, q_odd);
    g[2] = axpy(PP, p_even, axpy(QQ, q_even, u[5]));
}
#endif

/* GgG' */
static inline void transform_kernel(const __m512 g[TAPS], __m512 u[PLACES])
{
    __m512 half[3][SIDE];
    UNROLL for (int j = 0; j < 3; j++) {
        __m512 column[3] = {g[j], g[3 + j], g[6 + j]};
        to_u(column, half[j]);
    }
    UNROLL for (int i = 0; i < SIDE; i++) {
        __m512 row[3] = {half[0][i], half[1][i], half[2][i]};
        to_u(row, u + SIDE * i);
    }
}

/* An image, or the gradient of the layer's result with the choices of its pool; or nothing. */
typedef struct { int is_gradient; const bf16 *values; const uint8_t *which; float scale; } Source;

/* WIDTH channels of a pixel; 0 outside of the image. */
SPECIALISED Vec pixel(Source from, int h, int w, int c)
{
    int height = from.is_gradient ? HY : H, width = from.is_gradient ? WY : W;
    if (h < 0 || h >= height || w < 0 || w >= width || !from.values) return zero();
    if (!from.is_gradient) return load_scaled(some_of(CIN, c), from.values + (h * W + w) * CIN + c, from.scale);
    if (!POOL) return load_scaled(some_of(COUT, c), from.values + (h * W + w) * COUT + c, from.scale);
    int at = (h / 2 * WP + w / 2) * COUT + c;
    return load_scaled(equals(from.which + at, h % 2 * 2 + w % 2), from.values + at, from.scale);
}

/* A matrix at each place: rows of tiles, or of pairs of two images' tiles. */
typedef struct { char *start; size_t place, row; } Tiles;

/* Where the factors of one tile go, or the interleaved ones of a pair. */
SPECIALISED void put(int count, Tiles to, int tile, int place, int channel, Some some, const Vec v[2])
{
    char *at = to.start + place * to.place + tile * to.row + channel * 2 * count;
#if FP16
    if (count == 1) _mm512_mask_storeu_epi16(at, some, (__m512i)v[0]);
    else UNROLL for (int half = 0; half < 2; half++) {
        __m256i parts[2];
        UNROLL for (int k = 0; k < 2; k++)
            parts[k] = half ? _mm512_extracti64x4_epi64((__m512i)v[k], 1) : _mm512_castsi512_si256((__m512i)v[k]);
        _mm512_storeu_si512(at + half * WHOLE, pair_up(parts[0], parts[1]));
    }
#else
    if (count == 1) _mm256_mask_storeu_epi16(at, some, factor(v[0]));
    else _mm512_storeu_si512(at, pair_up(factor(v[0]), factor(v[1])));
#endif
}

/* V of a row of tiles of one image, or of two; the first of them has the number ``tile``. */
SPECIALISED void transform_images(int count, const Source *from, int r, int columns, Tiles to, int tile)
{
    int channels = from->is_gradient ? COUT : CIN;
    for (int c = 0; c < channels; c += WIDTH) {
        Vec v[2][SIDE][SIDE];                       /* columns; two of them are the next tile's, too */
        for (int s = -1; s < columns; s++) {
            UNROLL for (int k = 0; k < count; k++)
                UNROLL for (int j = 0; j < SIDE; j++) {
                    if (j < 2 ? s >= 0 : s < 0) continue;
                    int w = TILE * s - 1 + j + (s < 0 ? TILE : 0);
                    Vec d[SIDE];
                    UNROLL for (int i = 0; i < SIDE; i++) d[i] = pixel(from[k], TILE * r - 1 + i, w, c);
                    to_v(d, v[k][j]);
                }
            if (s < 0) continue;
            UNROLL for (int i = 0; i < SIDE; i++) {
                Vec row[2][SIDE];
                UNROLL for (int k = 0; k < count; k++) {
                    Vec d[SIDE];
                    UNROLL for (int j = 0; j < SIDE; j++) d[j] = v[k][j][i];
                    to_v(d, row[k]);
                }
                UNROLL for (int j = 0; j < SIDE; j++) {
                    Vec both[2] = {row[0][j], row[count - 1][j]};
                    put(count, to, tile + s, SIDE * i + j, c, some_of(channels, c), both);
                }
            }
            UNROLL for (int k = 0; k < count; k++)
                UNROLL for (int j = 0; j < 2 * SIDE; j++) v[k][j / SIDE][j % SIDE] = v[k][TILE + j / SIDE][j % SIDE];
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
ALONE void multiply_v(int steps, const char *a, const char *b, int more, __m512 *sum)
{
    multiply(WIDE, steps, a, FROM * 2, 4, b, BLOCK * 4, more, sum);
}

/* c = a b, for all tiles of one place and one block of columns. */
static void multiply_tiles(int tiles, const char *a, const char *b, char *c)
{
    enum { HIGH = SUMS / WIDE, STEPS = FROM / 2 };
    for (int t = 0; t < tiles; t += HIGH) {
        __m512 sum[SUMS];
        for (int k = 0; k < STEPS; k += FP16 ? CHUNK : STEPS)
            multiply_v(FP16 && STEPS - k > CHUNK ? CHUNK : STEPS - k, a + t * FROM * 2 + k * 4, b + k * BLOCK * 4, k, sum);
        UNROLL for (int i = 0; i < HIGH; i++) {
            char *row = c + (t + i) * BLOCK * SUM;
#if FP16
            UNROLL for (int j = 0; j < WIDE; j += 2)
                _mm512_store_si512(row + j * HALF, (__m512i)both(sum[i * WIDE + j], sum[i * WIDE + j + 1]));
#else
            UNROLL for (int j = 0; j < WIDE; j++) _mm512_store_ps(row + j * WHOLE, sum[i * WIDE + j]);
#endif
        }
    }
}

/* A convolution ---------------------------------------------------------------------------------- */

/* U as [PLACES, OUT / BLOCK, FROM / 2, BLOCK, 2], of the channels of this thread. */
static void transform_weights(const bf16 *w, float scale, char *u)
{
    __m512 g[TAPS], v[2][PLACES];
#if GRADIENT
    #pragma omp for schedule(static)
    for (int o = 0; o < COUT; o += 2)
        for (int c = 0; c < OUT; c += LANES) {
            UNROLL for (int k = 0; k < 2; k++) {
                UNROLL for (int t = 0; t < TAPS; t++) /* turned by half a turn */
                    g[t] = _mm512_mul_ps(load(lanes(CIN, c), w + ((o + k) * TAPS + TAPS - 1 - t) * CIN + c), _mm512_set1_ps(scale));
                transform_kernel(g, v[k]);
            }
            char *to = u + (size_t)(c / BLOCK * COUT / 2 + o / 2) * BLOCK * 4 + c % BLOCK * 4;
            UNROLL for (int p = 0; p < PLACES; p++)
                _mm512_store_si512(to + (size_t)p * U_PLACE, pair_up(factor(v[0][p]), factor(v[1][p])));
        }
#else
    const __m256i apart = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(BLOCK * 4));
    #pragma omp for schedule(static)
    for (int o = 0; o < COUT; o++)
        for (int c = 0; c < CIN; c += LANES) {
            __mmask16 some = lanes(CIN, c);
            UNROLL for (int t = 0; t < TAPS; t++)
                g[t] = _mm512_mul_ps(load(some, w + (o * TAPS + t) * CIN + c), _mm512_set1_ps(scale));
            transform_kernel(g, v[0]);
            __mmask8 pairs = some == 0xffff ? 0xff : (1 << (CIN - c) / 2) - 1;
            char *to = u + (size_t)(o / BLOCK * CIN / 2 + c / 2) * BLOCK * 4 + o % BLOCK * 4;
            UNROLL for (int p = 0; p < PLACES; p++)
                _mm256_mask_i32scatter_epi32(to + (size_t)p * U_PLACE, pairs, apart, factor(v[0][p]), 1);
        }
#endif
}

/* A'MA of a tile. */
static inline void transform_sums(const char *m, Vec y[TILE][TILE])
{
    Vec half[SIDE][TILE];
    UNROLL for (int j = 0; j < SIDE; j++) {
        Vec column[SIDE];
        UNROLL for (int i = 0; i < SIDE; i++) column[i] = load_sum(m + (SIDE * i + j) * (size_t)M_PLACE);
        from_m(column, half[j]);
    }
    UNROLL for (int i = 0; i < TILE; i++) {
        Vec row[SIDE];
        UNROLL for (int j = 0; j < SIDE; j++) row[j] = half[j][i];
        from_m(row, y[i]);
    }
}

/* Of the values of a window the first of the greatest, as in PyTorch, where NaN is greater than all. */
static inline void write_greatest(const Vec v[4], float scale, bf16 *y, uint8_t *which)
{
    Some more[4];
    Vec most = v[0];
    UNROLL for (int k = 1; k < 4; k++) {
        more[k] = is_more(v[k], most);
        most = choose(more[k], most, v[k]);
    }
    store_scaled(-1, y, most, scale);
    if (which) store_number(which, more[1], more[2], more[3]);
}

/* A block of channels of the result of an image, whose first tile is at ``m``. */
static void write_result(const char *m, float scale, int block, bf16 *y, uint8_t *which)
{
    for (int r = 0; r < ROWS; r++)
        for (int s = 0; s < COLS; s++, m += BLOCK * SUM)
            for (int o = 0; o < BLOCK; o += WIDTH) {
                Vec v[TILE][TILE];
                transform_sums(m + o * SUM, v);
                int channel = block * BLOCK + o;
#if POOL && !GRADIENT
                UNROLL for (int i = 0; i < TILE; i += 2)
                    UNROLL for (int j = 0; j < TILE; j += 2) {
                        int h = TILE / 2 * r + i / 2, w = TILE / 2 * s + j / 2, at = (h * WP + w) * TO + channel;
                        Vec window[4] = {v[i][j], v[i][j + 1], v[i + 1][j], v[i + 1][j + 1]};
                        if (h < HP && w < WP) write_greatest(window, scale, y + at, which ? which + at : NULL);
                    }
#else
                (void)which;
                UNROLL for (int i = 0; i < TILE; i++)
                    UNROLL for (int j = 0; j < TILE; j++) {
                        int h = TILE * r + i, w = TILE * s + j;
                        if (h < H && w < W) store_scaled(some_of(TO, channel), y + (h * W + w) * TO + channel, v[i][j], scale);
                    }
#endif
            }
}

/* ``images`` of the arguments of ``convolve``. */
static void convolve_group(Memory memory, int images, const bf16 *x, const uint8_t *x_which, const char *u,
                           float weight_scale, bf16 *y, uint8_t *which)
{
    Tiles v = {take(&memory, (size_t)PLACES * V_PLACE), V_PLACE, FROM * 2};
    char *m = take(&memory, (size_t)PLACES * M_PLACE);
    float scales[GROUP];
    for (int i = 0; i < images; i++) {
        int64_t at = (int64_t)i * (GRADIENT ? Y : X);
        scales[i] = scale_of(x + at, GRADIENT ? Y : X, TOP_IMAGE);
        Source from = {GRADIENT, x + at, x_which ? x_which + at : NULL, scales[i]};
        for (int r = 0; r < ROWS; r++) transform_images(1, &from, r, COLS, v, i * TILES + r * COLS);
    }
    for (int b = 0; b < OUT / BLOCK; b++) {
        for (int p = 0; p < PLACES; p++)
            multiply_tiles(images * TILES, v.start + p * (size_t)V_PLACE,
                           u + p * (size_t)U_PLACE + b * FROM * BLOCK * 2, m + p * (size_t)M_PLACE);
        for (int i = 0; i < images; i++) {
            int64_t at = (int64_t)i * (GRADIENT ? X : Y);
            write_result(m + i * TILES * BLOCK * SUM, 1 / (scales[i] * weight_scale), b, y + at, which ? which + at : NULL);
        }
    }
}

/* Of images, or of the gradient of the layer's result, with the choices of the pool behind it. */
static int convolve(int64_t n, const bf16 *x, const uint8_t *x_which, const bf16 *weight, bf16 *y, uint8_t *which)
{
    const size_t all = ROUND_UP(PLACES * (size_t)U_PLACE, 64);
    const size_t each = ROUND_UP(PLACES * (size_t)V_PLACE, 64) + PLACES * (size_t)M_PLACE;
    char *start = aligned_alloc(64, all + omp_get_max_threads() * each);
    if (!start) return 1;
    float scale = scale_of(weight, (int64_t)COUT * TAPS * CIN, TOP_WEIGHT);
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), t = omp_get_thread_num();
        Memory memory = {start + all + t * each, 0};
        transform_weights(weight, scale, start);
        int64_t groups = (n + GROUP - 1) / GROUP, end = groups * (t + 1) / threads * GROUP;
        if (end > n) end = n;
        for (int64_t i = groups * t / threads * GROUP; i < end; i += GROUP) {
            int64_t from = i * (GRADIENT ? Y : X), to = i * (GRADIENT ? X : Y);
            convolve_group(memory, end - i < GROUP ? end - i : GROUP, x + from, x_which ? x_which + from : NULL, start,
                           scale, y + to, which ? which + to : NULL);
        }
    }
    free(start);
    return 0;
}

#if !GRADIENT
/* x [n, H, W, CIN], weight [COUT, 3, 3, CIN] -> y [n, H, W, COUT]; with POOL y and which, unless
 * that is null, [n, H / 2, W / 2, COUT]. Returns 0, or 1 where memory was short. */
int forward(int64_t n, const bf16 *x, const bf16 *weight, bf16 *y, uint8_t *which)
{
    return convolve(n, x, NULL, weight, y, which);
}
#else
/* The weights' gradient -------------------------------------------------------------------------- */

enum {
    Y_ROWS = (HY + TILE - 1) / TILE, Y_COLS = (WY + TILE - 1) / TILE,
    Y_TILES = Y_ROWS * Y_COLS,                      /* of the layer's result */
    STEPS = WEIGHT_GROUP / 2 * Y_TILES,             /* pairs of tiles, of two images */
    V_ROW = OUT * 4 + 64, DM_ROW = COUT * 4 + 64,   /* bytes of a pair */
    HIGH = SUMS / WIDE,                             /* rows of a block of sums */
    DU_ROWS = ROUND_UP(COUT, HIGH),
    DU_PLACE = DU_ROWS * OUT,                       /* elements */
    PARTS = PLACES * DU_PLACE * 4 <= 300000 ? 8 : 1, /* several sets of them in the caches */
};

ALONE void multiply_both(int steps, const char *a, const char *b, int more, __m512 *sum)
{
    multiply(WIDE, steps, a, 4, DM_ROW, b, V_ROW, more, sum);
}

/* dM of a row of tiles of two images; the first pair has the number ``tile``. */
static void transform_gradients(const Source *from, int r, Tiles to, int tile)
{
    for (int s = 0; s < Y_COLS; s++, tile++)
        for (int o = 0; o < COUT; o += WIDTH) {
            Vec half[2][SIDE][TILE];
            UNROLL for (int k = 0; k < 2; k++)
                UNROLL for (int j = 0; j < TILE; j++) {
                    Vec column[TILE], m[SIDE];
                    UNROLL for (int i = 0; i < TILE; i++) column[i] = pixel(from[k], TILE * r + i, TILE * s + j, o);
                    to_m(column, m);
                    UNROLL for (int i = 0; i < SIDE; i++) half[k][i][j] = m[i];
                }
            UNROLL for (int i = 0; i < SIDE; i++) {
                Vec m[2][SIDE];
                UNROLL for (int k = 0; k < 2; k++) to_m(half[k][i], m[k]);
                UNROLL for (int j = 0; j < SIDE; j++) {
                    Vec both[2] = {m[0][j], m[1][j]};
                    put(2, to, tile, SIDE * i + j, o, -1, both);
                }
            }
        }
}

/* Adds to the sums of one place, [DU_ROWS, OUT], those of BLOCK channels in over some pairs of tiles. */
static void add_products(int steps, const char *dm, const char *v, float scale, float *du)
{
    for (int from = 0; from < steps; from += 2 * CHUNK) {
        int some = steps - from < 2 * CHUNK ? steps - from : 2 * CHUNK;
        for (int o = 0; o < COUT; o += HIGH) {
            __m512 sum[SUMS];
            for (int k = 0; k < some; k += FP16 ? CHUNK : some)
                multiply_both(FP16 && some - k > CHUNK ? CHUNK : some - k, dm + (from + k) * (size_t)DM_ROW + o * 4,
                              v + (from + k) * (size_t)V_ROW, k, sum);
            float *to = du + (size_t)o * OUT;
            UNROLL for (int i = 0; i < HIGH; i++, to += OUT) {
#if FP16
                const __m512 by = _mm512_set1_ps(scale);
                UNROLL for (int j = 0; j < WIDE; j += 2) {
                    Vec pair = both(sum[i * WIDE + j], sum[i * WIDE + j + 1]);
                    UNROLL for (int k = 0; k < 2; k++) {
                        float *at = to + (j + k) * LANES;
                        _mm512_store_ps(at, _mm512_fmadd_ps(by, part(pair, k), _mm512_load_ps(at)));
                    }
                }
#else
                (void)scale;
                UNROLL for (int j = 0; j < WIDE; j++)
                    _mm512_store_ps(to + j * LANES, add(sum[i * WIDE + j], _mm512_load_ps(to + j * LANES)));
#endif
            }
        }
    }
}

/* G' dU G for channel out o: [TAPS, CIN]. */
static void write_kernel(int o, const float *du, bf16 *dw)
{
    for (int c = 0; c < CIN; c += LANES) {
        __m512 half[3][SIDE];
        UNROLL for (int j = 0; j < SIDE; j++) {
            __m512 u[SIDE], g[3];
            UNROLL for (int i = 0; i < SIDE; i++) u[i] = _mm512_load_ps(du + (size_t)(SIDE * i + j) * DU_PLACE + (size_t)o * OUT + c);
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

/* The largest power of two that scales all of some images as ``scale_of`` says. */
static float least(const float *scales, int images)
{
    float scale = scales[0];
    for (int i = 1; i < images; i++) scale = scales[i] < scale ? scales[i] : scale;
    return scale;
}

/* dU of some images: threads transform their tiles, and then each multiplies those of some places. */
static int sum_images(int64_t n, const bf16 *gradient, const uint8_t *which, const bf16 *x, float *du)
{
    const size_t v_place = (size_t)STEPS * V_ROW + ODD, m_place = (size_t)STEPS * DM_ROW + ODD;
    Memory memory = {aligned_alloc(64, PLACES * ROUND_UP(v_place + m_place, 64) + 128), 0};
    if (!memory.start) return 1;
    Tiles v = {take(&memory, PLACES * v_place), v_place, V_ROW};
    Tiles dm = {take(&memory, PLACES * m_place), m_place, DM_ROW};
    float x_scales[WEIGHT_GROUP], g_scales[WEIGHT_GROUP];
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int p = 0; p < PLACES; p++) memset(du + (size_t)p * DU_PLACE, 0, sizeof(float) * DU_PLACE);
        for (int64_t first = 0; first < n; first += WEIGHT_GROUP) {
            int images = n - first < WEIGHT_GROUP ? n - first : WEIGHT_GROUP, steps = (images + 1) / 2 * Y_TILES;
            #pragma omp for schedule(static)
            for (int i = 0; i < images; i++) {
                x_scales[i] = scale_of(x + (first + i) * X, X, TOP_IMAGE);
                g_scales[i] = scale_of(gradient + (first + i) * Y, Y, TOP_IMAGE);
            }
            float x_scale = least(x_scales, images), g_scale = least(g_scales, images);
            #pragma omp for schedule(static) collapse(2)
            for (int i = 0; i < images; i += 2)
                for (int r = 0; r < Y_ROWS; r++) {
                    Source image[2] = {}, result[2] = {};
                    for (int k = 0; k < 2; k++) {
                        int64_t at = first + i + k;
                        int is_there = i + k < images;
                        image[k] = (Source){0, is_there ? x + at * X : NULL, NULL, x_scale};
                        result[k] = (Source){1, is_there ? gradient + at * Y : NULL, which ? which + at * Y : NULL, g_scale};
                    }
                    int tile = i / 2 * Y_TILES + r * Y_COLS;
                    transform_images(2, image, r, Y_COLS, v, tile);
                    transform_gradients(result, r, dm, tile);
                }
            #pragma omp for schedule(static) collapse(2)
            for (int p = 0; p < PLACES; p++)
                for (int c = 0; c < OUT; c += BLOCK)
                    add_products(steps, dm.start + p * m_place, v.start + p * v_place + c * 4, 1 / (x_scale * g_scale),
                                 du + (size_t)p * DU_PLACE + c);
        }
    }
    free(memory.start);
    return 0;
}

/* Small sums are made of PARTS of the images, each by one thread, which keeps its tiles in its caches;
 * the region of ``sum_images`` in that of the parts has one thread. */
static int sum_weights(int64_t n, const bf16 *gradient, const uint8_t *which, const bf16 *x, bf16 *dw)
{
    const size_t all = (size_t)PLACES * DU_PLACE;
    float *du = aligned_alloc(64, ROUND_UP(PARTS * all * sizeof(float), 64));
    if (!du) return 1;
    int is_short = 0;
    #pragma omp parallel for schedule(static) if(PARTS > 1) reduction(|:is_short)
    for (int k = 0; k < PARTS; k++) {
        int64_t first = n * k / PARTS / 2 * 2, end = k + 1 < PARTS ? n * (k + 1) / PARTS / 2 * 2 : n;
        is_short |= sum_images(end - first, gradient + first * Y, which ? which + first * Y : NULL, x + first * X, du + k * all);
    }
    if (!is_short) {
        #pragma omp parallel
        {
            #pragma omp for schedule(static)
            for (int p = 0; p < PLACES; p++)
                for (int k = 1; k < PARTS; k++)
                    for (int i = 0; i < DU_PLACE; i++) du[p * DU_PLACE + i] += du[k * all + p * DU_PLACE + i];
            #pragma omp for schedule(static)
            for (int o = 0; o < COUT; o++) write_kernel(o, du, dw);
        }
    }
    free(du);
    return is_short;
}

/* The gradient of y [n, H, W, COUT], x, weight -> those of x and weight, each unless it is null; with
 * POOL the gradient of the pooled values, and which, [n, H / 2, W / 2, COUT]. Returns 0, or 1 where
 * memory was short. */
int backward(int64_t n, const bf16 *gradient, const uint8_t *which, const bf16 *x, const bf16 *weight,
             bf16 *x_gradient, bf16 *weight_gradient)
{
    if (x_gradient && convolve(n, gradient, which, weight, x_gradient, NULL)) return 1;
    return weight_gradient ? sum_weights(n, gradient, which, x, weight_gradient) : 0;
}
#endif
