/* The gradient of max_pool2d(conv2d(x, weight, padding=1), 2), weights of 3x3, in bfloat16.
 *
 * Built once for each shape: CIN, COUT, H and W are macros, and so are the sizes of what is kept in
 * the caches. Images have their channels last. The result depends on nothing but the arguments and
 * the number of threads: each thread has its own images, and its own sums of the weights' gradient.
 *
 * Three of four gradients that come back through the pool are zero. Only the others are visited,
 * with as many channels in as a vector has lanes:
 *
 *   - gather, for the weights: the gradient's corner of the pool's cell merely says where to start
 *     reading the pixels.
 *   - scatter, for the images: a cell reaches sixteen pixels, which stay in registers for all of a
 *     block of channels out.
 *
 * So that the loops are nothing but products, what they visit is listed beforehand: the gradients,
 * and where their pixels or weights are. A list serves all channels in.
 *
 *   - FP16 = 0: one instruction multiplies two pairs of bfloat16 and adds both products to a sum in
 *     float32, so two gradients are taken at a time: 7/4 instructions for two, for one of them is
 *     zero where their corners differ. To gather, the pair is one cell of two images, whose pixels
 *     lie interleaved; to scatter, it is two channels out, whose weights lie interleaved. A vector
 *     has 16 channels.
 *   - FP16 = 1: factors are float16, and a vector has 32 channels. Sums of at most CHUNK products
 *     are float16, and are then added to others: in float32 to gather, in float16 to scatter.
 *     Factors are scaled by powers of two, such that no sum can overflow.
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

/* Compiled once for each constant that is its first argument. */
#define SPECIALISED static inline __attribute__((always_inline))

typedef uint16_t bf16;

enum {
    LANES = FP16 ? 32 : 16,                         /* channels in, in a vector */
    AT_ONCE = FP16 ? 1 : 2,                         /* gradients */
    SIXTEEN = 16,                                   /* 32-bit numbers of a vector */
    PIXEL = 64,                                     /* bytes of a vector */
    CHUNK = 64,
    TAPS = 9,
    HP = H / 2, WP = W / 2, CELLS = HP * WP,
    COLS = 2 * WP + 2, ROWS = 2 * HP + 2,           /* what the cells' patches cover */
    CHUNKS = (CIN + LANES - 1) / LANES,
    BLOCKS = COUT / BLOCK,                          /* BLOCK channels out have their weights in the first cache */
    BAND_ROWS = 2 * BAND + 2,                       /* of pixels, for BAND rows of cells */
    PLANE = BAND_ROWS * COLS * PIXEL,               /* bytes, of AT_ONCE images */
    MAP = ROUND_UP(BAND * WP, 4),
    TILES = GROUP / IMAGES * ((HP + BAND - 1) / BAND),
    LIST = IMAGES * BAND * WP + SIXTEEN,            /* a whole vector is written at its end */
    ENTRIES = GROUP * COUT * CELLS > TILES * COUT * LIST ? GROUP * COUT * CELLS : TILES * COUT * LIST,
    SUMS = COUT * TAPS * LANES,                     /* of LANES channels in */
};

/* What one thread needs. ``values`` and ``places`` are the lists, ``counts`` their lengths. */
typedef struct {
    float *sums;
    char *image, *plane;
    int32_t *values, *places, *lengths, *map;
    uint8_t (*counts)[4];
} Scratch;

static void *take(char *memory, size_t *used, size_t bytes)
{
    size_t start = *used;
    *used += ROUND_UP(bytes, 64);
    return memory ? memory + start : NULL;
}

/* Lays a thread's scratch out in ``memory``, if there is any yet; how many bytes it takes. */
static size_t lay_out(Scratch *s, char *memory)
{
    size_t used = 0;
    s->sums = take(memory, &used, sizeof(float) * CHUNKS * SUMS);
    s->image = take(memory, &used, (size_t)IMAGES * ROWS * COLS * PIXEL);
    s->plane = take(memory, &used, IMAGES / AT_ONCE * PLANE);
    s->values = take(memory, &used, sizeof(int32_t) * ((size_t)ENTRIES + SIXTEEN));
    s->places = take(memory, &used, sizeof(int32_t) * ((size_t)ENTRIES + SIXTEEN));
    s->lengths = take(memory, &used, sizeof(int32_t) * TILES * COUT);
    s->map = take(memory, &used, sizeof(int32_t) * MAP * 4);
    s->counts = take(memory, &used, 4 * GROUP * BLOCKS * CELLS);
    return used;
}

static inline __m512i widen(const bf16 *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline __m512i pair_up(__m512i low, __m512i high) { return _mm512_or_epi32(low, _mm512_slli_epi32(high, 16)); }
static inline __m512i corners(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline __m512i count_up(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

/* A vector of sums, a mask of channels, and sixteen gradients as the lists have them. */
#if FP16
typedef __m512h Sum;
typedef __mmask32 Some;
static inline __m512 as_float(__m512i wide) { return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)); }
static inline __m256i halve(__m512 v) { return (__m256i)_mm512_cvtxps_ph(v); }
static inline __m512i scaled(__m512i wide, float scale)
{
    __m512i v = _mm512_cvtepu16_epi32(halve(_mm512_mul_ps(as_float(wide), _mm512_set1_ps(scale))));
    return pair_up(v, v);                           /* the same factor for both halves of a lane */
}
static inline __m512i load_scaled(Some some, const bf16 *p, float scale)
{
    __m512i v = _mm512_maskz_loadu_epi16(some, p);
    __m512 by = _mm512_set1_ps(scale);
    __m512 low = _mm512_mul_ps(as_float(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v))), by);
    __m512 high = _mm512_mul_ps(as_float(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1))), by);
    return _mm512_inserti64x4(_mm512_castsi256_si512(halve(low)), halve(high), 1);
}
static inline __m512 part(Sum v, int half)
{
    return _mm512_cvtxph_ps((__m256h)(half ? _mm512_extracti64x4_epi64((__m512i)v, 1) : _mm512_castsi512_si256((__m512i)v)));
}
static inline void store_scaled(Some some, bf16 *p, Sum v, float scale)
{
    __m512 by = _mm512_set1_ps(scale);
    __m512bh all = _mm512_cvtne2ps_pbh(_mm512_mul_ps(part(v, 1), by), _mm512_mul_ps(part(v, 0), by));
    _mm512_mask_storeu_epi16(p, some, (__m512i)all);
}
static inline Sum zero(void) { return _mm512_setzero_ph(); }
static inline void add_to(char *p, Sum v) { _mm512_store_ph(p, _mm512_add_ph(_mm512_load_ph(p), v)); }
static inline Sum multiply_add(Sum sum, __m512i g, const char *p, int half)
{
    (void)half;
#ifdef EMULATED                                     /* in tests on processors without it */
    return _mm512_fmadd_ph((Sum)g, *(const Sum *)p, sum);
#else
    __asm__ volatile("vfmadd231ph %2, %1, %0" : "+v"(sum) : "v"(g), "m"(*(const Sum *)p));
    return sum;
#endif
}
#else
typedef __m512 Sum;
typedef __mmask16 Some;
static inline __m512i scaled(__m512i wide, float scale) { (void)scale; return wide; }
static inline __m512i widen_some(Some some, const bf16 *p) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)); }
static inline void store_scaled(Some some, bf16 *p, Sum v, float scale)
{
    (void)scale;
    _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh(v));
}
static inline Sum zero(void) { return _mm512_setzero_ps(); }
static inline void add_to(char *p, Sum v) { _mm512_store_ps(p, _mm512_add_ps(_mm512_load_ps(p), v)); }
/* sum += both products of g and what is at p; of the lower half of the lanes only, in half the time. */
static inline Sum multiply_add(Sum sum, __m512i g, const char *p, int half)
{
    if (!half) return _mm512_dpbf16_ps(sum, (__m512bh)g, (__m512bh)_mm512_load_si512(p));
    __m256bh x = (__m256bh)_mm256_load_si256((const __m256i *)p), lower = (__m256bh)_mm512_castsi512_si256(g);
    return _mm512_castps256_ps512(_mm256_dpbf16_ps(_mm512_castps512_ps256(sum), lower, x));
}
#endif

/* No sum of float16 can reach 65504. To gather, CHUNK products of numbers below 4: 1024. To scatter,
 * of at most 512 channels of the four cells that reach a pixel, products of a weight below 2 and a
 * gradient below 4: 16384. */
enum { TOP = 1, TOP_WEIGHT = 0 };

/* The channels in of a chunk that are there: the last chunk may have fewer. */
static inline Some lanes_of(int chunk)
{
    int left = CIN - chunk * LANES;
    return left >= LANES ? (Some)-1 : ((Some)1 << left) - 1;
}

/* Whether no more are there than half a vector takes. */
static inline int is_half(int chunk) { return !FP16 && CIN - chunk * LANES <= LANES / 2; }

/* Appends the pairs that are not zero to a list; how many these are. */
static inline int append(__m512i pairs, __m512i at, int32_t *values, int32_t *places)
{
    __mmask16 some = _mm512_test_epi32_mask(pairs, pairs);
    _mm512_storeu_si512(values, _mm512_maskz_compress_epi32(some, pairs));
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(some, at));
    return __builtin_popcount(some);
}

/* Rows to columns: four perfect shuffles of sixteen vectors. */
static inline void transpose(__m512i tile[SIXTEEN])
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    UNROLL for (int stage = 0; stage < 4; stage++) {
        __m512i next[SIXTEEN];
        UNROLL for (int i = 0; i < SIXTEEN / 2; i++) {
            next[2 * i] = _mm512_permutex2var_epi32(tile[i], low, tile[i + SIXTEEN / 2]);
            next[2 * i + 1] = _mm512_permutex2var_epi32(tile[i], high, tile[i + SIXTEEN / 2]);
        }
        UNROLL for (int i = 0; i < SIXTEEN; i++) tile[i] = next[i];
    }
}

/* Where in a plane the pixels begin that the four corners of each cell of a band reach. */
static void draw_map(int32_t *map)
{
    for (int q = 0; q < MAP; q++)
        for (int k = 0; k < 4; k++) map[4 * q + k] = ((2 * (q / WP) + k / 2) * COLS + 2 * (q % WP) + k % 2) * PIXEL;
}

/* For each channel out, the gradients of ``cells`` cells in each of some images, AT_ONCE images an entry. */
static void list_for_gather(const int32_t *map, int images, int cells, const bf16 *gradient, const uint8_t *which,
                            float scale, int32_t *lengths, int32_t *values, int32_t *places)
{
    for (int o = 0; o < COUT; o += SIXTEEN, lengths += SIXTEEN, values += SIXTEEN * LIST, places += SIXTEEN * LIST) {
        int n[SIXTEEN] = {};
        for (int i = 0; i < images; i += AT_ONCE)
            for (int q = 0; q < cells; q += 4) {        /* four cells of four corners are a tile's rows */
                __m512i tile[SIXTEEN];
                UNROLL for (int j = 0; j < 4; j++) {
                    int64_t at = ((int64_t)i * CELLS + q + j) * COUT + o;
                    __m512i g0 = {}, g1 = {}, a0 = {}, a1 = {};
                    if (q + j < cells) g0 = scaled(widen(gradient + at), scale), a0 = corners(which + at);
                    at += CELLS * COUT;
                    if (AT_ONCE == 2 && q + j < cells && i + 1 < images)
                        g1 = _mm512_slli_epi32(widen(gradient + at), 16), a1 = corners(which + at);
                    UNROLL for (int k = 0; k < 4; k++) {
                        __m512i number = _mm512_set1_epi32(k);
                        __m512i g = _mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(a0, number), g0);
                        if (AT_ONCE == 2) g = _mm512_mask_or_epi32(g, _mm512_cmpeq_epi32_mask(a1, number), g, g1);
                        tile[4 * j + k] = g;
                    }
                }
                transpose(tile);
                __m512i at = _mm512_add_epi32(_mm512_load_si512(map + q * 4), _mm512_set1_epi32(i / AT_ONCE * PLANE));
                UNROLL for (int j = 0; j < SIXTEEN; j++)
                    n[j] += append(tile[j], at, values + j * LIST + n[j], places + j * LIST + n[j]);
            }
        memcpy(lengths, n, sizeof n);
    }
}

/* LANES channels of AT_ONCE images, interleaved if two, of which the other may be null, from a row on. */
static void interleave(const bf16 *x, const bf16 *other, int first, int rows, Some lanes, float scale, char *plane)
{
    memset(plane, 0, (size_t)rows * COLS * PIXEL);
    for (int r = 0; r < rows; r++, plane += COLS * PIXEL) {
        int h = first + r;
        if (h < 0 || h >= H) continue;
        for (int w = 0; w < W && w + 1 < COLS; w++) {
            int at = (h * W + w) * CIN;
#if FP16
            (void)other;
            _mm512_store_si512(plane + (w + 1) * PIXEL, load_scaled(lanes, x + at, scale));
#else
            (void)scale;
            __m512i second = other ? widen_some(lanes, other + at) : _mm512_setzero_si512();
            _mm512_store_si512(plane + (w + 1) * PIXEL, pair_up(widen_some(lanes, x + at), second));
#endif
        }
    }
}

/* Adds to the sums of LANES channels in, [COUT, TAPS, LANES], what the lists of one tile say. */
SPECIALISED void gather(int half, const char *plane, const int32_t *lengths, const int32_t *values,
                        const int32_t *places, float unscale, float *sums)
{
    for (int o = 0; o < COUT; o++, values += LIST, places += LIST, sums += TAPS * LANES) {
        int n = lengths[o];
        Sum sum[TAPS];
#if FP16
        const __m512 by = _mm512_set1_ps(unscale);
        for (int first = 0; first < n; first += CHUNK) {
            int end = n - first < CHUNK ? n : first + CHUNK;
            UNROLL for (int t = 0; t < TAPS; t++) sum[t] = zero();
            for (int i = first; i < end; i++) {
                const char *x = plane + places[i];
                __m512i g = _mm512_set1_epi32(values[i]);
                UNROLL for (int t = 0; t < TAPS; t++)
                    sum[t] = multiply_add(sum[t], g, x + (t / 3 * COLS + t % 3) * PIXEL, half);
            }
            UNROLL for (int t = 0; t < 2 * TAPS; t++) {
                float *to = sums + t * SIXTEEN;
                _mm512_store_ps(to, _mm512_fmadd_ps(by, part(sum[t / 2], t % 2), _mm512_load_ps(to)));
            }
        }
#else
        (void)unscale;
        UNROLL for (int t = 0; t < TAPS; t++) sum[t] = _mm512_load_ps(sums + t * LANES);
        for (int i = 0; i < n; i++) {
            const char *x = plane + places[i];
            __m512i g = _mm512_set1_epi32(values[i]);
            UNROLL for (int t = 0; t < TAPS; t++)
                sum[t] = multiply_add(sum[t], g, x + (t / 3 * COLS + t % 3) * PIXEL, half);
        }
        UNROLL for (int t = 0; t < TAPS; t++) _mm512_store_ps(sums + t * LANES, sum[t]);
#endif
    }
}

/* Adds the weights' gradient of a group of images to this thread's sums. */
static void gather_group(Scratch s, int images, const bf16 *gradient, const uint8_t *which, const bf16 *x)
{
    float x_scale = scale_of(x, (int64_t)images * H * W * CIN, TOP);
    float g_scale = scale_of(gradient, (int64_t)images * CELLS * COUT, TOP), unscale = 1 / (x_scale * g_scale);
    for (int c = -1; c < CHUNKS; c++) {                 /* first the lists, then each chunk of channels in */
        int tile = 0;
        for (int i = 0; i < images; i += IMAGES)
            for (int r = 0; r < HP; r += BAND, tile++) {
                int here = images - i < IMAGES ? images - i : IMAGES, rows = HP - r < BAND ? HP - r : BAND;
                int32_t *values = s.values + (size_t)tile * COUT * LIST, *places = s.places + (size_t)tile * COUT * LIST;
                int32_t *lengths = s.lengths + tile * COUT;
                if (c < 0) {
                    int64_t at = ((int64_t)i * CELLS + r * WP) * COUT;
                    list_for_gather(s.map, here, rows * WP, gradient + at, which + at, g_scale, lengths, values, places);
                    continue;
                }
                for (int j = 0; j < here; j += AT_ONCE) {
                    const bf16 *one = x + (int64_t)(i + j) * H * W * CIN + c * LANES;
                    const bf16 *other = j + 1 < here ? one + H * W * CIN : NULL;
                    interleave(one, other, 2 * r - 1, 2 * rows + 2, lanes_of(c), x_scale, s.plane + j / AT_ONCE * PLANE);
                }
                float *sums = s.sums + c * SUMS;
                if (is_half(c)) gather(1, s.plane, lengths, values, places, unscale, sums);
                else gather(0, s.plane, lengths, values, places, unscale, sums);
            }
    }
}

/* For each cell of an image, the gradients of a block of channels out, corner by corner; how many. */
static int64_t list_for_scatter(const bf16 *gradient, const uint8_t *which, float scale, uint8_t (*counts)[4],
                                int32_t *values, int32_t *places)
{
    const __m512i step = _mm512_mullo_epi32(count_up(), _mm512_set1_epi32(TAPS * PIXEL));
    int64_t n = 0;
    for (int q = 0; q < CELLS; q++, gradient += COUT, which += COUT)
        for (int k = 0; k < 4; k++) {
            int64_t before = n;
            UNROLL for (int o = 0; o < BLOCK; o += AT_ONCE * SIXTEEN) {
                __m512i at = _mm512_add_epi32(step, _mm512_set1_epi32(o / AT_ONCE * TAPS * PIXEL));
#if FP16
                __mmask16 here = _mm512_cmpeq_epi32_mask(corners(which + o), _mm512_set1_epi32(k));
                __m512i g = _mm512_maskz_mov_epi32(here, scaled(widen(gradient + o), scale));
#else
                (void)scale;
                __m256i a = _mm256_loadu_si256((const __m256i *)(which + o));
                __m512i g = _mm512_maskz_loadu_epi16(_mm256_cmpeq_epi8_mask(a, _mm256_set1_epi8(k)), gradient + o);
#endif
                n += append(g, at, values + n, places + n);
            }
            counts[q][k] = n - before;
        }
    return n;
}

/* Adds to LANES channels in of an image what the lists say of one block of channels out; how much
 * of the lists that was. A cell's sixteen pixels are four columns, of which the next cell shares two. */
SPECIALISED int64_t scatter(int half, const char *weight, uint8_t (*counts)[4], const int32_t *values,
                            const int32_t *places, char *image)
{
    int64_t n = 0;
    for (int r = 0; r < HP; r++) {
        char *at = image + 2 * r * COLS * PIXEL;
        Sum sum[4][4];
        UNROLL for (int t = 0; t < 8; t++) sum[t / 2][t % 2] = zero();
        for (int s = 0; s < WP; s++, at += 2 * PIXEL, counts++) {
            UNROLL for (int t = 0; t < 8; t++) sum[t / 2][2 + t % 2] = zero();
            UNROLL for (int k = 0; k < 4; k++)
                for (int64_t end = n + (*counts)[k]; n < end; n++) {
                    const char *w = weight + places[n];
                    __m512i g = _mm512_set1_epi32(values[n]);
                    UNROLL for (int t = 0; t < TAPS; t++) {
                        Sum *to = &sum[k / 2 + t / 3][k % 2 + t % 3];
                        *to = multiply_add(*to, g, w + t * PIXEL, half);
                    }
                }
            UNROLL for (int t = 0; t < 8; t++) {
                add_to(at + (t / 2 * COLS + t % 2) * PIXEL, sum[t / 2][t % 2]);
                sum[t / 2][t % 2] = sum[t / 2][2 + t % 2];
            }
        }
        UNROLL for (int t = 0; t < 8; t++) add_to(at + (t / 2 * COLS + t % 2) * PIXEL, sum[t / 2][t % 2]);
    }
    return n;
}

/* What the cells' patches cover, without its border, as LANES channels of an image. */
static void crop(const char *image, Some lanes, float scale, bf16 *x)
{
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++) {
            Sum v;
            memcpy(&v, image + ((h + 1) * COLS + w + 1) * PIXEL, sizeof v);
            store_scaled(lanes, x + (h * W + w) * CIN, v, scale);
        }
}

/* Writes the gradient of a group of images. */
static void scatter_group(Scratch s, int images, const bf16 *gradient, const uint8_t *which, const char *weight,
                          float weight_scale, bf16 *x)
{
    float scales[GROUP];
    for (int j = 0; j < images; j++) scales[j] = scale_of(gradient + (int64_t)j * CELLS * COUT, CELLS * COUT, TOP);
    for (int c = -1; c < CHUNKS; c++) {                 /* first the lists, then each chunk of channels in */
        int64_t n = 0;
        for (int i = 0; i < images; i += IMAGES) {
            int end = i + IMAGES < images ? i + IMAGES : images;
            if (c >= 0) memset(s.image, 0, (size_t)(end - i) * ROWS * COLS * PIXEL);
            for (int b = 0; b < BLOCKS; b++)
                for (int j = i; j < end; j++) {
                    uint8_t (*counts)[4] = s.counts + (j * BLOCKS + b) * CELLS;
                    int64_t at = (int64_t)j * CELLS * COUT + b * BLOCK;
                    const char *w = c < 0 ? NULL : weight + (size_t)(c * BLOCKS + b) * BLOCK / AT_ONCE * TAPS * PIXEL;
                    int32_t *values = s.values + n, *places = s.places + n;
                    char *image = s.image + (size_t)(j - i) * ROWS * COLS * PIXEL;
                    if (c < 0) n += list_for_scatter(gradient + at, which + at, scales[j], counts, values, places);
                    else if (is_half(c)) n += scatter(1, w, counts, values, places, image);
                    else n += scatter(0, w, counts, values, places, image);
                }
            for (int j = i; c >= 0 && j < end; j++)
                crop(s.image + (size_t)(j - i) * ROWS * COLS * PIXEL, lanes_of(c), 1 / (scales[j] * weight_scale),
                     x + (int64_t)j * H * W * CIN + c * LANES);
        }
    }
}

/* [COUT, TAPS, CIN] -> [CHUNKS, COUT / AT_ONCE, TAPS, LANES, AT_ONCE] */
static void prepare(const bf16 *weight, float scale, char *to)
{
    for (int c = 0; c < CHUNKS; c++)
        for (int o = 0; o < COUT; o += AT_ONCE)
            for (int t = 0; t < TAPS; t++, to += PIXEL) {
                const bf16 *one = weight + (o * TAPS + t) * CIN + c * LANES;
#if FP16
                _mm512_store_si512(to, load_scaled(lanes_of(c), one, scale));
#else
                (void)scale;
                const bf16 *other = one + TAPS * CIN;
                _mm512_store_si512(to, pair_up(widen_some(lanes_of(c), one), widen_some(lanes_of(c), other)));
#endif
            }
}

/* The sums of all threads, for channel out o: [TAPS, CIN]. */
static void add_up(int o, int threads, size_t apart, const char *sums, bf16 *weight_gradient)
{
    for (int c = 0; c < CIN; c += SIXTEEN)
        for (int t = 0; t < TAPS; t++) {
            const char *from = sums + sizeof(float) * (c / LANES * SUMS + (o * TAPS + t) * LANES + c % LANES);
            __m512 sum = _mm512_load_ps(from);
            for (int u = 1; u < threads; u++) sum = _mm512_add_ps(sum, _mm512_load_ps(from + u * apart));
            __mmask16 some = CIN - c >= SIXTEEN ? 0xffff : (1 << (CIN - c)) - 1;
            _mm256_mask_storeu_epi16(weight_gradient + (o * TAPS + t) * CIN + c, some, (__m256i)_mm512_cvtneps_pbh(sum));
        }
}

/* gradient, which [n, HP, WP, COUT], x [n, H, W, CIN], weight [COUT, 3, 3, CIN] -> those of x and
 * weight, each unless it is null. Returns 0, or 1 where memory was short. */
int backward(int64_t n, const bf16 *gradient, const uint8_t *which, const bf16 *x, const bf16 *weight,
             bf16 *x_gradient, bf16 *weight_gradient)
{
    enum { PREPARED = CHUNKS * COUT / AT_ONCE * TAPS * PIXEL };
    Scratch none;
    size_t each = lay_out(&none, NULL);
    char *memory = aligned_alloc(64, PREPARED + omp_get_max_threads() * each);
    if (!memory) return 1;
    float scale = scale_of(weight, (int64_t)COUT * TAPS * CIN, TOP_WEIGHT);
    if (x_gradient) prepare(weight, scale, memory);
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), t = omp_get_thread_num();
        Scratch scratch;
        lay_out(&scratch, memory + PREPARED + t * each);
        memset(scratch.sums, 0, sizeof(float) * CHUNKS * SUMS);
        draw_map(scratch.map);
        int64_t end = n * (t + 1) / threads;
        for (int64_t i = n * t / threads; i < end; i += GROUP) {
            int images = end - i < GROUP ? end - i : GROUP;
            const bf16 *g = gradient + i * CELLS * COUT;
            const uint8_t *a = which + i * CELLS * COUT;
            if (weight_gradient) gather_group(scratch, images, g, a, x + i * H * W * CIN);
            if (x_gradient) scatter_group(scratch, images, g, a, memory, scale, x_gradient + i * H * W * CIN);
        }
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int o = 0; o < (weight_gradient ? COUT : 0); o++)
            add_up(o, threads, each, memory + PREPARED, weight_gradient);
    }
    free(memory);
    return 0;
}
