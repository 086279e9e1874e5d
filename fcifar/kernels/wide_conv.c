/* The gradient of max_pool2d(conv2d(x, weight, padding=1), 2), weights of 3x3, in bfloat16.
 *
 * Built once for each shape: CIN, COUT, H and W are macros, and so are the sizes of what is kept in
 * the caches. Images have their channels last. The result depends on nothing but the arguments and
 * the number of threads: each thread has its own images, and its own sums of the weights' gradient.
 *
 * Three of four gradients that come back through the pool are zero. Only the others are visited,
 * with sixteen channels in in the lanes of a vector; such a channel's sums are float32. One
 * instruction multiplies two pairs of bfloat16 and adds both products, so two gradients are taken
 * at a time, of which one is zero where their corners of the pool's cell differ: 7/4 instructions
 * for two gradients instead of two.
 *
 *   - gather, for the weights: the pair is one cell of two images. Their pixels lie interleaved, and
 *     the gradient's corner merely says where to start reading.
 *   - scatter, for the images: the pair is two channels out, whose weights lie interleaved. A cell
 *     reaches sixteen pixels, which stay in registers for all of a block of channels out.
 *
 * So that the loops are nothing but these instructions, what they visit is listed beforehand: the
 * two gradients of each pair, and where its pixels or weights are. A list serves all channels in.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

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
    LANES = 16,                                     /* channels in, in a vector */
    PIXEL = LANES * 4,                              /* bytes of a vector */
    TAPS = 9,
    HP = H / 2, WP = W / 2, CELLS = HP * WP,
    COLS = 2 * WP + 2, ROWS = 2 * HP + 2,           /* what the cells' patches cover */
    CHUNKS = (CIN + LANES - 1) / LANES,
    BLOCKS = COUT / BLOCK,                          /* BLOCK channels out have their weights in the first cache */
    BAND_ROWS = 2 * BAND + 2,                       /* of pixels, for BAND rows of cells */
    PLANE = BAND_ROWS * COLS * PIXEL,               /* bytes, of two images */
    MAP = ROUND_UP(BAND * WP, 4),
    TILES = GROUP / IMAGES * ((HP + BAND - 1) / BAND),
    LIST = IMAGES * BAND * WP + LANES,              /* a whole vector is written at its end */
    ENTRIES = GROUP * COUT * CELLS > TILES * COUT * LIST ? GROUP * COUT * CELLS : TILES * COUT * LIST,
    SUMS = COUT * TAPS * LANES,                     /* of LANES channels in */
};

/* What one thread needs. ``values`` and ``places`` are the lists, ``counts`` their lengths. */
typedef struct {
    float *sums, *image;
    char *plane;
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
    s->plane = take(memory, &used, IMAGES / 2 * PLANE);
    s->values = take(memory, &used, sizeof(int32_t) * ((size_t)ENTRIES + LANES));
    s->places = take(memory, &used, sizeof(int32_t) * ((size_t)ENTRIES + LANES));
    s->lengths = take(memory, &used, sizeof(int32_t) * TILES * COUT);
    s->map = take(memory, &used, sizeof(int32_t) * MAP * 4);
    s->counts = take(memory, &used, 4 * GROUP * BLOCKS * CELLS);
    return used;
}

static inline __m512i widen(const bf16 *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline __m512i widen_some(__mmask16 some, const bf16 *p)
{
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p));
}
static inline void store_some(__mmask16 some, bf16 *p, __m512 v)
{
    _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh(v));
}
static inline __m512i pair_up(__m512i low, __m512i high) { return _mm512_or_epi32(low, _mm512_slli_epi32(high, 16)); }
static inline __m512i corners(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline __m512i count_up(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
/* sum += both products of g and what is at p; of the lower half of the lanes only, in half the time. */
static inline __m512 multiply_add(__m512 sum, __m512i g, const char *p, int half)
{
    if (!half) return _mm512_dpbf16_ps(sum, (__m512bh)g, (__m512bh)_mm512_load_si512(p));
    __m256bh x = (__m256bh)_mm256_load_si256((const __m256i *)p), lower = (__m256bh)_mm512_castsi512_si256(g);
    return _mm512_castps256_ps512(_mm256_dpbf16_ps(_mm512_castps512_ps256(sum), lower, x));
}

/* The channels in of a chunk that are there: the last chunk may have fewer. */
static inline __mmask16 lanes_of(int chunk)
{
    int left = CIN - chunk * LANES;
    return left >= LANES ? 0xffff : (1 << left) - 1;
}

/* Whether no more are there than half a vector takes. */
static inline int is_half(int chunk) { return CIN - chunk * LANES <= LANES / 2; }

/* Appends the pairs that are not zero to a list; how many these are. */
static inline int append(__m512i pairs, __m512i at, int32_t *values, int32_t *places)
{
    __mmask16 some = _mm512_test_epi32_mask(pairs, pairs);
    _mm512_storeu_si512(values, _mm512_maskz_compress_epi32(some, pairs));
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(some, at));
    return __builtin_popcount(some);
}

/* Rows to columns: four perfect shuffles of sixteen vectors. */
static inline void transpose(__m512i tile[LANES])
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    UNROLL for (int stage = 0; stage < 4; stage++) {
        __m512i next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = _mm512_permutex2var_epi32(tile[i], low, tile[i + LANES / 2]);
            next[2 * i + 1] = _mm512_permutex2var_epi32(tile[i], high, tile[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) tile[i] = next[i];
    }
}

/* Where in a plane the pixels begin that the four corners of each cell of a band reach. */
static void draw_map(int32_t *map)
{
    for (int q = 0; q < MAP; q++)
        for (int k = 0; k < 4; k++) map[4 * q + k] = ((2 * (q / WP) + k / 2) * COLS + 2 * (q % WP) + k % 2) * PIXEL;
}

/* For each channel out, the gradients of ``cells`` cells in each of some images, two images a pair. */
static void list_for_gather(const int32_t *map, int images, int cells, const bf16 *gradient, const uint8_t *which,
                            int32_t *lengths, int32_t *values, int32_t *places)
{
    for (int o = 0; o < COUT; o += LANES, lengths += LANES, values += LANES * LIST, places += LANES * LIST) {
        int n[LANES] = {};
        for (int i = 0; i < images; i += 2)
            for (int q = 0; q < cells; q += 4) {        /* four cells of four corners are a tile's rows */
                __m512i tile[LANES];
                UNROLL for (int j = 0; j < 4; j++) {
                    int64_t at = ((int64_t)i * CELLS + q + j) * COUT + o;
                    __m512i g0 = {}, g1 = {}, a0 = {}, a1 = {};
                    if (q + j < cells) g0 = widen(gradient + at), a0 = corners(which + at);
                    at += CELLS * COUT;
                    if (q + j < cells && i + 1 < images)
                        g1 = _mm512_slli_epi32(widen(gradient + at), 16), a1 = corners(which + at);
                    UNROLL for (int k = 0; k < 4; k++) {
                        __m512i number = _mm512_set1_epi32(k);
                        __m512i g = _mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(a0, number), g0);
                        tile[4 * j + k] = _mm512_mask_or_epi32(g, _mm512_cmpeq_epi32_mask(a1, number), g, g1);
                    }
                }
                transpose(tile);
                __m512i at = _mm512_add_epi32(_mm512_load_si512(map + q * 4), _mm512_set1_epi32(i / 2 * PLANE));
                UNROLL for (int j = 0; j < LANES; j++)
                    n[j] += append(tile[j], at, values + j * LIST + n[j], places + j * LIST + n[j]);
            }
        memcpy(lengths, n, sizeof n);
    }
}

/* Interleaves LANES channels of two images, of which the other may be null, from a row on. */
static void interleave(const bf16 *x, const bf16 *other, int first, int rows, __mmask16 lanes, char *plane)
{
    memset(plane, 0, (size_t)rows * COLS * PIXEL);
    for (int r = 0; r < rows; r++, plane += COLS * PIXEL) {
        int h = first + r;
        if (h < 0 || h >= H) continue;
        for (int w = 0; w < W && w + 1 < COLS; w++) {
            int at = (h * W + w) * CIN;
            __m512i second = other ? widen_some(lanes, other + at) : _mm512_setzero_si512();
            _mm512_store_si512(plane + (w + 1) * PIXEL, pair_up(widen_some(lanes, x + at), second));
        }
    }
}

/* Adds to the sums of LANES channels in, [COUT, TAPS, LANES], what the lists of one tile say. */
SPECIALISED void gather(int half, const char *plane, const int32_t *lengths, const int32_t *values,
                        const int32_t *places, float *sums)
{
    for (int o = 0; o < COUT; o++, values += LIST, places += LIST, sums += TAPS * LANES) {
        int n = lengths[o];
        __m512 sum[TAPS];
        UNROLL for (int t = 0; t < TAPS; t++) sum[t] = _mm512_load_ps(sums + t * LANES);
        for (int i = 0; i < n; i++) {
            const char *x = plane + places[i];
            __m512i g = _mm512_set1_epi32(values[i]);
            UNROLL for (int t = 0; t < TAPS; t++)
                sum[t] = multiply_add(sum[t], g, x + (t / 3 * COLS + t % 3) * PIXEL, half);
        }
        UNROLL for (int t = 0; t < TAPS; t++) _mm512_store_ps(sums + t * LANES, sum[t]);
    }
}

/* Adds the weights' gradient of a group of images to this thread's sums. */
static void gather_group(Scratch s, int images, const bf16 *gradient, const uint8_t *which, const bf16 *x)
{
    for (int c = -1; c < CHUNKS; c++) {                 /* first the lists, then each chunk of channels in */
        int tile = 0;
        for (int i = 0; i < images; i += IMAGES)
            for (int r = 0; r < HP; r += BAND, tile++) {
                int here = images - i < IMAGES ? images - i : IMAGES, rows = HP - r < BAND ? HP - r : BAND;
                int32_t *values = s.values + (size_t)tile * COUT * LIST, *places = s.places + (size_t)tile * COUT * LIST;
                int32_t *lengths = s.lengths + tile * COUT;
                if (c < 0) {
                    int64_t at = ((int64_t)i * CELLS + r * WP) * COUT;
                    list_for_gather(s.map, here, rows * WP, gradient + at, which + at, lengths, values, places);
                    continue;
                }
                for (int j = 0; j < here; j += 2) {
                    const bf16 *one = x + (int64_t)(i + j) * H * W * CIN + c * LANES;
                    const bf16 *other = j + 1 < here ? one + H * W * CIN : NULL;
                    interleave(one, other, 2 * r - 1, 2 * rows + 2, lanes_of(c), s.plane + j / 2 * PLANE);
                }
                float *sums = s.sums + c * SUMS;
                if (is_half(c)) gather(1, s.plane, lengths, values, places, sums);
                else gather(0, s.plane, lengths, values, places, sums);
            }
    }
}

/* For each cell of an image, the gradients of a block of channels out, corner by corner; how many. */
static int64_t list_for_scatter(const bf16 *gradient, const uint8_t *which, uint8_t (*counts)[4],
                                int32_t *values, int32_t *places)
{
    const __m512i step = _mm512_mullo_epi32(count_up(), _mm512_set1_epi32(TAPS * PIXEL));
    int64_t n = 0;
    for (int q = 0; q < CELLS; q++, gradient += COUT, which += COUT)
        for (int k = 0; k < 4; k++) {
            int64_t before = n;
            UNROLL for (int o = 0; o < BLOCK; o += 2 * LANES) {
                __m256i a = _mm256_loadu_si256((const __m256i *)(which + o));
                __mmask32 here = _mm256_cmpeq_epi8_mask(a, _mm256_set1_epi8(k));
                __m512i at = _mm512_add_epi32(step, _mm512_set1_epi32(o / 2 * TAPS * PIXEL));
                n += append(_mm512_maskz_loadu_epi16(here, gradient + o), at, values + n, places + n);
            }
            counts[q][k] = n - before;
        }
    return n;
}

/* Adds to LANES channels in of an image what the lists say of one block of channels out; how much
 * of the lists that was. A cell's sixteen pixels are four columns, of which the next cell shares two. */
SPECIALISED int64_t scatter(int half, const char *weight, uint8_t (*counts)[4], const int32_t *values,
                            const int32_t *places, float *image)
{
    int64_t n = 0;
    for (int r = 0; r < HP; r++) {
        float *at = image + 2 * r * COLS * LANES;
        __m512 sum[4][4];
        UNROLL for (int t = 0; t < 8; t++) sum[t / 2][t % 2] = _mm512_load_ps(at + (t / 2 * COLS + t % 2) * LANES);
        for (int s = 0; s < WP; s++, at += 2 * LANES, counts++) {
            UNROLL for (int t = 0; t < 8; t++)
                sum[t / 2][2 + t % 2] = _mm512_load_ps(at + (t / 2 * COLS + 2 + t % 2) * LANES);
            UNROLL for (int k = 0; k < 4; k++)
                for (int64_t end = n + (*counts)[k]; n < end; n++) {
                    const char *w = weight + places[n];
                    __m512i g = _mm512_set1_epi32(values[n]);
                    UNROLL for (int t = 0; t < TAPS; t++) {
                        __m512 *to = &sum[k / 2 + t / 3][k % 2 + t % 3];
                        *to = multiply_add(*to, g, w + t * PIXEL, half);
                    }
                }
            UNROLL for (int t = 0; t < 8; t++) {
                _mm512_store_ps(at + (t / 2 * COLS + t % 2) * LANES, sum[t / 2][t % 2]);
                sum[t / 2][t % 2] = sum[t / 2][2 + t % 2];
            }
        }
        UNROLL for (int t = 0; t < 8; t++) _mm512_store_ps(at + (t / 2 * COLS + t % 2) * LANES, sum[t / 2][t % 2]);
    }
    return n;
}

/* What the cells' patches cover, without its border, as LANES channels of an image. */
static void crop(const float *image, __mmask16 lanes, bf16 *x)
{
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++)
            store_some(lanes, x + (h * W + w) * CIN, _mm512_load_ps(image + ((h + 1) * COLS + w + 1) * LANES));
}

/* Writes the gradient of a group of images. */
static void scatter_group(Scratch s, int images, const bf16 *gradient, const uint8_t *which, const char *weight, bf16 *x)
{
    for (int c = -1; c < CHUNKS; c++) {                 /* first the lists, then each chunk of channels in */
        int64_t n = 0;
        for (int i = 0; i < images; i += IMAGES) {
            int end = i + IMAGES < images ? i + IMAGES : images;
            if (c >= 0) memset(s.image, 0, (size_t)(end - i) * ROWS * COLS * PIXEL);
            for (int b = 0; b < BLOCKS; b++)
                for (int j = i; j < end; j++) {
                    uint8_t (*counts)[4] = s.counts + (j * BLOCKS + b) * CELLS;
                    int64_t at = (int64_t)j * CELLS * COUT + b * BLOCK;
                    const char *w = c < 0 ? NULL : weight + (size_t)(c * BLOCKS + b) * BLOCK / 2 * TAPS * PIXEL;
                    int32_t *values = s.values + n, *places = s.places + n;
                    float *image = s.image + (j - i) * ROWS * COLS * LANES;
                    if (c < 0) n += list_for_scatter(gradient + at, which + at, counts, values, places);
                    else if (is_half(c)) n += scatter(1, w, counts, values, places, image);
                    else n += scatter(0, w, counts, values, places, image);
                }
            for (int j = i; c >= 0 && j < end; j++)
                crop(s.image + (j - i) * ROWS * COLS * LANES, lanes_of(c), x + (int64_t)j * H * W * CIN + c * LANES);
        }
    }
}

/* [COUT, TAPS, CIN] -> [CHUNKS, COUT / 2, TAPS, LANES, 2] */
static void prepare(const bf16 *weight, char *to)
{
    for (int c = 0; c < CHUNKS; c++)
        for (int o = 0; o < COUT; o += 2)
            for (int t = 0; t < TAPS; t++, to += PIXEL) {
                const bf16 *one = weight + (o * TAPS + t) * CIN + c * LANES, *other = one + TAPS * CIN;
                _mm512_store_si512(to, pair_up(widen_some(lanes_of(c), one), widen_some(lanes_of(c), other)));
            }
}

/* The sums of all threads, for channel out o: [TAPS, CIN]. */
static void add_up(int o, int threads, size_t apart, const char *sums, bf16 *weight_gradient)
{
    for (int c = 0; c < CHUNKS; c++)
        for (int t = 0; t < TAPS; t++) {
            const char *from = sums + sizeof(float) * (c * SUMS + (o * TAPS + t) * LANES);
            __m512 sum = _mm512_load_ps(from);
            for (int u = 1; u < threads; u++) sum = _mm512_add_ps(sum, _mm512_load_ps(from + u * apart));
            store_some(lanes_of(c), weight_gradient + (o * TAPS + t) * CIN + c * LANES, sum);
        }
}

/* gradient, which [n, HP, WP, COUT], x [n, H, W, CIN], weight [COUT, 3, 3, CIN] -> those of x and
 * weight, each unless it is null. Returns 0, or 1 where memory was short. */
int backward(int64_t n, const bf16 *gradient, const uint8_t *which, const bf16 *x, const bf16 *weight,
             bf16 *x_gradient, bf16 *weight_gradient)
{
    enum { PREPARED = CHUNKS * COUT / 2 * TAPS * PIXEL };
    Scratch none;
    size_t each = lay_out(&none, NULL);
    char *memory = aligned_alloc(64, PREPARED + omp_get_max_threads() * each);
    if (!memory) return 1;
    if (x_gradient) prepare(weight, memory);
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
            if (x_gradient) scatter_group(scratch, images, g, a, memory, x_gradient + i * H * W * CIN);
        }
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int o = 0; o < (weight_gradient ? COUT : 0); o++)
            add_up(o, threads, each, memory + PREPARED, weight_gradient);
    }
    free(memory);
    return 0;
}
