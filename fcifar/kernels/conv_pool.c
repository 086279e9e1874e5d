/* max_pool2d(conv2d(x, weight, bias, padding=PAD), 2) and its gradient, in float32.
 *
 * Built once for each shape: CIN, COUT, H, W, KH, KW and PAD are macros, so that every loop below
 * has a known length. One image at a time, copied into a padded plane per channel that stays in
 * the first caches; threads share the images out. The result depends on nothing but the arguments
 * and the number of threads.
 *
 * Two observations make it fast where libraries, written for wide layers, are slow:
 *
 *   - A plane is one long row. Output position p of the convolution is a sum over taps of
 *     weight * plane[p + tap's offset], for all p at once, with any vector width and without
 *     edges; the few positions that lie across a row's end are computed and thrown away.
 *   - Three of four gradients that come back through a 2x2 max-pool are zero, and so is every one
 *     that ReLU stopped. Only the others are visited: each adds a multiple of a patch of the image
 *     to the weights' gradient, and a multiple of the weights to a patch of the image's gradient.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

#define LANES 16
#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 32")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint8_t bvec __attribute__((vector_size(LANES), aligned(1), may_alias));

enum {
    ROWS = H + 2 * PAD, COLS = W + 2 * PAD,         /* a padded plane */
    HY = ROWS - KH + 1, WY = COLS - KW + 1,         /* what the convolution gives */
    HP = HY / 2, WP = WY / 2, CELLS = HP * WP,      /* what is left of it after pooling */
    TAPS = KH * KW,
    REACH = (KH - 1) * COLS + KW - 1,
    POSITIONS = 2 * HP * COLS,                      /* of the planes' convolution */
    XPLANE = ROUND_UP(ROUND_UP(ROWS * COLS, TILE_VECS * LANES) + REACH + 2 * LANES, LANES),
    YPLANE = ROUND_UP(POSITIONS, TILE_VECS * LANES) + 2 * LANES,
};

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec splat(float a) { return (vec){} + a; }
static inline vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

static void pad(const float *x, float *plane)
{
    for (int c = 0; c < CIN; c++)
        for (int h = 0; h < H; h++)
            memcpy(plane + c * XPLANE + (h + PAD) * COLS + PAD, x + (c * H + h) * W, W * sizeof(float));
}

/* The greatest of a pooling cell so far, and which it is: the first of equals, NaN above all. */
static inline void take(vec *best, ivec *which, vec y, int number)
{
    ivec more = (y > *best) | (y != y);
    *best = choose(more, y, *best);
    *which = (more & number) | (~more & *which);
}

/* Rows to columns: four perfect shuffles of sixteen vectors. */
static inline void transpose(vec tile[LANES])
{
    UNROLL for (int stage = 0; stage < 4; stage++) {
        vec next[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(tile[i], tile[i + LANES / 2], LOW);
            next[2 * i + 1] = SHUFFLE(tile[i], tile[i + LANES / 2], HIGH);
        }
        UNROLL for (int i = 0; i < LANES; i++) tile[i] = next[i];
    }
}

#if COUT % LANES
/* Few channels out: vectors along the plane, TILE_OUT channels by TILE_VECS vectors at a time. */

static void convolve(const float *plane, const float *weight, const float *bias, float *y)
{
    for (int o = 0; o < COUT; o += TILE_OUT)
        for (int p = 0; p < POSITIONS; p += TILE_VECS * LANES) {
            vec sum[TILE_OUT][TILE_VECS];
            UNROLL for (int j = 0; j < TILE_OUT; j++)
                UNROLL for (int v = 0; v < TILE_VECS; v++) sum[j][v] = splat(bias[o + j]);
            for (int c = 0; c < CIN; c++)
                for (int k = 0; k < KH; k++) {
                    const float *from = plane + c * XPLANE + p + k * COLS;
                    const float *w = weight + ((o * CIN + c) * KH + k) * KW;
                    UNROLL for (int l = 0; l < KW; l++) {
                        vec x[TILE_VECS];
                        UNROLL for (int v = 0; v < TILE_VECS; v++) x[v] = load(from + l + v * LANES);
                        UNROLL for (int j = 0; j < TILE_OUT; j++) {
                            vec a = splat(w[j * CIN * TAPS + l]);
                            UNROLL for (int v = 0; v < TILE_VECS; v++) sum[j][v] += a * x[v];
                        }
                    }
                }
            UNROLL for (int j = 0; j < TILE_OUT; j++)
                UNROLL for (int v = 0; v < TILE_VECS; v++)
                    store(y + (o + j) * YPLANE + p + v * LANES, sum[j][v]);
        }
}

static void pool(const float *y, float *pooled, uint8_t *which)
{
    for (int o = 0; o < COUT; o++)
        for (int r = 0; r < HP; r++)
            for (int s = 0; s < WP; s += LANES) {
                const float *top = y + o * YPLANE + 2 * r * COLS + 2 * s, *low = top + COLS;
                vec t0 = load(top), t1 = load(top + LANES), l0 = load(low), l1 = load(low + LANES);
                vec best = SHUFFLE(t0, t1, EVEN);
                ivec number = {};
                take(&best, &number, SHUFFLE(t0, t1, ODD), 1);
                take(&best, &number, SHUFFLE(l0, l1, EVEN), 2);
                take(&best, &number, SHUFFLE(l0, l1, ODD), 3);
                bvec bytes = __builtin_convertvector(number, bvec);
                int n = WP - s < LANES ? WP - s : LANES, at = (o * HP + r) * WP + s;
                memcpy(pooled + at, &best, n * sizeof(float));
                memcpy(which + at, &bytes, n);
            }
}

#define WHICH(o, q) ((o) * CELLS + (q))
#define PREPARED 0
#define SCRATCH (COUT * YPLANE)
static void prepare(const float *weight, float *prepared) {}

static void forward_image(const float *plane, const float *weight, const float *prepared,
                          const float *bias, float *scratch, float *pooled, uint8_t *which)
{
    convolve(plane, weight, bias, scratch);
    pool(scratch, pooled, which);
}

#else
/* Sixteen channels out in the lanes of a vector; two rows by TILE_COLS columns, pooled at once. */

#define WHICH(o, q) (((o) / LANES * CELLS + (q)) * LANES + (o) % LANES)
#define PREPARED (COUT * CIN * TAPS)
#define SCRATCH ROUND_UP(CELLS, LANES) * LANES
static void prepare(const float *weight, float *prepared)
{
    for (int o = 0; o < COUT; o++)
        for (int t = 0; t < CIN * TAPS; t++)
            prepared[(o / LANES * CIN * TAPS + t) * LANES + o % LANES] = weight[o * CIN * TAPS + t];
}

static void forward_image(const float *plane, const float *weight, const float *prepared,
                          const float *bias, float *scratch, float *pooled, uint8_t *which)
{
    for (int o = 0; o < COUT; o += LANES) {
        for (int r = 0; r < HP; r++)
            for (int s = 0; s < WP; s += TILE_COLS / 2) {
                vec sum[2][TILE_COLS];
                UNROLL for (int i = 0; i < TILE_COLS; i++) sum[0][i] = sum[1][i] = load(bias + o);
                for (int c = 0; c < CIN; c++)
                    for (int k = 0; k < KH; k++) {
                        const float *x = plane + c * XPLANE + (2 * r + k) * COLS + 2 * s;
                        const float *w = prepared + o * CIN * TAPS + (c * TAPS + k * KW) * LANES;
                        UNROLL for (int l = 0; l < KW; l++) {
                            vec a = load(w + l * LANES);
                            UNROLL for (int i = 0; i < TILE_COLS; i++) {
                                sum[0][i] += a * x[l + i];
                                sum[1][i] += a * x[l + i + COLS];
                            }
                        }
                    }
                UNROLL for (int i = 0; i < TILE_COLS; i += 2) {
                    vec best = sum[0][i];
                    ivec number = {};
                    take(&best, &number, sum[0][i + 1], 1);
                    take(&best, &number, sum[1][i], 2);
                    take(&best, &number, sum[1][i + 1], 3);
                    if (s + i / 2 < WP) {
                        int q = r * WP + s + i / 2;
                        store(scratch + q * LANES, best);
                        *(bvec *)(which + WHICH(o, q)) = __builtin_convertvector(number, bvec);
                    }
                }
            }
        for (int q = 0; q < CELLS; q += LANES) {
            int n = CELLS - q < LANES ? CELLS - q : LANES;
            vec tile[LANES];
            UNROLL for (int i = 0; i < LANES; i++) tile[i] = load(scratch + (q + i) * LANES);
            transpose(tile);
            for (int j = 0; j < LANES; j++) memcpy(pooled + (o + j) * CELLS + q, &tile[j], n * sizeof(float));
        }
    }
}
#endif

/* x [n, CIN, H, W] -> pooled, which [n, COUT, HP, WP]. Returns 0, or 1 where memory was short. */
int forward(int64_t n, const float *x, const float *weight, const float *bias, float *pooled, uint8_t *which)
{
    enum { EACH = ROUND_UP(CIN * XPLANE + SCRATCH, LANES) };
    int threads = omp_get_max_threads();
    float *memory = aligned_alloc(64, sizeof(float) * (ROUND_UP(PREPARED, LANES) + (size_t)threads * EACH));
    if (!memory) return 1;
    prepare(weight, memory);
    #pragma omp parallel
    {
        float *plane = memory + ROUND_UP(PREPARED, LANES) + (size_t)omp_get_thread_num() * EACH;
        memset(plane, 0, sizeof(float) * CIN * XPLANE);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            pad(x + i * CIN * H * W, plane);
            forward_image(plane, weight, memory, bias, plane + CIN * XPLANE,
                          pooled + i * COUT * CELLS, which + i * COUT * CELLS);
        }
    }
    free(memory);
    return 0;
}

/* Backward. The cells of a channel, or the channels of a cell, that a gradient came back through. */

typedef struct { float gradient; int32_t at; } Hit;

/* Those of channel o: where each goes, in an image of ``stride`` values a pixel. Adds up all. */
static inline int collect(int o, int stride, const float *gradient, const uint8_t *which, Hit *hits, float *total)
{
    static const int corner[4] = {0, 1, COLS, COLS + 1};
    int n = 0;
    float sum = *total;
    for (int r = 0, q = 0; r < HP; r++)
        for (int s = 0; s < WP; s++, q++) {
            float g = gradient[o * CELLS + q];
            hits[n] = (Hit){g, (2 * r * COLS + 2 * s + corner[which[WHICH(o, q)]]) * stride};
            n += g != 0;
            sum += g;
        }
    *total = sum;
    return n;
}

#if CIN % LANES || (KH + 1) * (KW + 1) > 28
/* Few channels in: vectors along the rows of a patch, one row of taps (and one more) in PATCH lanes. */

#define PATCH (KW < 4 ? 4 : 8)
typedef float row __attribute__((vector_size(4 * PATCH), aligned(4), may_alias));

enum {
    STENCIL = (KH + 2) * PATCH + 1,
    STENCILS = ROUND_UP(COUT * CIN * STENCIL + PATCH, LANES),
    SUM = CIN * KH * PATCH,                         /* of one channel out */
};

static void draw_stencils(const float *weight, float *stencils)
{
    for (int t = 0; t < COUT * CIN; t++)
        for (int k = 0; k < KH; k++)
            memcpy(stencils + t * STENCIL + (k + 1) * PATCH + 1, weight + t * TAPS + k * KW, KW * sizeof(float));
}

static int tap(int c, int k, int l) { return (c * KH + k) * PATCH + l; }
static void arrange(const float *x, float *plane) { pad(x, plane); }
static void crop(const float *plane, float *x)
{
    for (int c = 0; c < CIN; c++)
        for (int h = 0; h < H; h++)
            memcpy(x + (c * H + h) * W, plane + c * XPLANE + (h + PAD) * COLS + PAD, W * sizeof(float));
}

/* Adds the gradients of one image to those of the weights, [COUT][CIN][KH] rows, and biases. */
static void gather(const float *plane, const float *gradient, const uint8_t *which, float *sums, float *bias_sums)
{
    Hit hits[CELLS + 1];
    for (int o = 0; o < COUT; o++) {
        int n = collect(o, 1, gradient, which, hits, bias_sums + o);
        for (int c = 0; c < CIN; c += TILE_IN) {
            row sum[TILE_IN][KH], *mine = (row *)(sums + o * SUM) + c * KH;
            UNROLL for (int j = 0; j < TILE_IN * KH; j++) sum[j / KH][j % KH] = mine[j];
            for (int h = 0; h < n; h++) {
                const float *x = plane + c * XPLANE + hits[h].at;
                row g = (row){} + hits[h].gradient;
                UNROLL for (int j = 0; j < TILE_IN; j++)
                    UNROLL for (int k = 0; k < KH; k++)
                        sum[j][k] += g * *(const row *)(x + j * XPLANE + k * COLS);
            }
            UNROLL for (int j = 0; j < TILE_IN * KH; j++) mine[j] = sum[j / KH][j % KH];
        }
    }
}

/* Adds the gradients of one image to those of the input, in planes as ``pad`` makes them. */
static void scatter(const float *stencils, const float *gradient, const uint8_t *which, float *plane)
{
    static const int corner[4] = {PATCH + 1, PATCH, 1, 0};
    Hit hits[COUT + 1];
    for (int r = 0, q = 0; r < HP; r++)
        for (int s = 0; s < WP; s++, q++) {
            int n = 0;
            for (int o = 0; o < COUT; o++) {
                float g = gradient[o * CELLS + q];
                hits[n] = (Hit){g, o * CIN * STENCIL + corner[which[WHICH(o, q)]]};
                n += g != 0;
            }
            for (int c = 0; c < CIN; c += TILE_IN) {
                row sum[TILE_IN][KH + 1];
                UNROLL for (int j = 0; j < TILE_IN; j++)
                    UNROLL for (int k = 0; k <= KH; k++) sum[j][k] = (row){};
                for (int h = 0; h < n; h++) {
                    const float *w = stencils + c * STENCIL + hits[h].at;
                    row g = (row){} + hits[h].gradient;
                    UNROLL for (int j = 0; j < TILE_IN; j++)
                        UNROLL for (int k = 0; k <= KH; k++)
                            sum[j][k] += g * *(const row *)(w + j * STENCIL + k * PATCH);
                }
                float *to = plane + c * XPLANE + 2 * r * COLS + 2 * s;
                UNROLL for (int j = 0; j < TILE_IN; j++)
                    UNROLL for (int k = 0; k <= KH; k++) *(row *)(to + j * XPLANE + k * COLS) += sum[j][k];
            }
        }
}

#else
/* Sixteen channels in in the lanes of a vector, an image with its channels last. */

enum {
    STENCIL = CIN * TAPS,
    STENCILS = COUT * STENCIL,
    SUM = CIN * TAPS,
};

/* [COUT, CIN, taps] -> [CIN / LANES, COUT, taps, LANES] */
static void draw_stencils(const float *weight, float *stencils)
{
    for (int c = 0; c < CIN; c++)
        for (int o = 0; o < COUT; o++)
            for (int t = 0; t < TAPS; t++)
                stencils[((c / LANES * COUT + o) * TAPS + t) * LANES + c % LANES] = weight[(o * CIN + c) * TAPS + t];
}

static int tap(int c, int k, int l) { return (c / LANES * TAPS + k * KW + l) * LANES + c % LANES; }
static int place(int p) { return ((p / W + PAD) * COLS + p % W + PAD) * CIN; }

static void arrange(const float *x, float *last)
{
    for (int c = 0; c < CIN; c += LANES)
        for (int p = 0; p < H * W; p += LANES) {
            int n = H * W - p < LANES ? H * W - p : LANES;
            vec tile[LANES];
            for (int j = 0; j < LANES; j++) memcpy(&tile[j], x + (c + j) * H * W + p, n * sizeof(float));
            transpose(tile);
            for (int i = 0; i < n; i++) store(last + place(p + i) + c, tile[i]);
        }
}

static void crop(const float *last, float *x)
{
    for (int c = 0; c < CIN; c += LANES)
        for (int p = 0; p < H * W; p += LANES) {
            int n = H * W - p < LANES ? H * W - p : LANES;
            vec tile[LANES] = {};
            for (int i = 0; i < n; i++) tile[i] = load(last + place(p + i) + c);
            transpose(tile);
            for (int j = 0; j < LANES; j++) memcpy(x + (c + j) * H * W + p, &tile[j], n * sizeof(float));
        }
}

static void gather(const float *last, const float *gradient, const uint8_t *which, float *sums, float *bias_sums)
{
    Hit hits[CELLS + 1];
    for (int o = 0; o < COUT; o++) {
        int n = collect(o, CIN, gradient, which, hits, bias_sums + o);
        for (int c = 0; c < CIN; c += LANES) {
            float *mine = sums + o * SUM + c * TAPS;
            vec sum[TAPS];
            UNROLL for (int t = 0; t < TAPS; t++) sum[t] = load(mine + t * LANES);
            for (int h = 0; h < n; h++) {
                const float *x = last + hits[h].at + c;
                vec g = splat(hits[h].gradient);
                UNROLL for (int t = 0; t < TAPS; t++) sum[t] += g * load(x + (t / KW * COLS + t % KW) * CIN);
            }
            UNROLL for (int t = 0; t < TAPS; t++) store(mine + t * LANES, sum[t]);
        }
    }
}

static void scatter(const float *stencils, const float *gradient, const uint8_t *which, float *last)
{
    Hit hits[4][COUT + 1];  /* by the corner of the cell */
    for (int r = 0, q = 0; r < HP; r++)
        for (int s = 0; s < WP; s++, q++) {
            int n[4] = {};
            for (int o = 0; o < COUT; o++) {
                float g = gradient[o * CELLS + q];
                int corner = which[WHICH(o, q)];
                hits[corner][n[corner]] = (Hit){g, o * TAPS * LANES};
                n[corner] += g != 0;
            }
            for (int c = 0; c < CIN; c += LANES) {
                vec sum[KH + 1][KW + 1];
                UNROLL for (int t = 0; t < (KH + 1) * (KW + 1); t++) sum[t / (KW + 1)][t % (KW + 1)] = (vec){};
                UNROLL for (int corner = 0; corner < 4; corner++)
                    for (int h = 0; h < n[corner]; h++) {
                        const float *w = stencils + c * COUT * TAPS + hits[corner][h].at;
                        vec g = splat(hits[corner][h].gradient);
                        UNROLL for (int t = 0; t < TAPS; t++)
                            sum[t / KW + corner / 2][t % KW + corner % 2] += g * load(w + t * LANES);
                    }
                float *to = last + 2 * (r * COLS + s) * CIN + c;
                UNROLL for (int t = 0; t < (KH + 1) * (KW + 1); t++) {
                    float *at = to + (t / (KW + 1) * COLS + t % (KW + 1)) * CIN;
                    store(at, load(at) + sum[t / (KW + 1)][t % (KW + 1)]);
                }
            }
        }
}
#endif

/* Puts the sums of ``gather`` where they belong, or adds them to what is there. */
static void deliver(const float *sums, int add, float *weight_gradient, float *bias_gradient)
{
    for (int o = 0; o < COUT; o++) {
        float *to = weight_gradient + o * CIN * TAPS;
        for (int c = 0; c < CIN; c++)
            for (int k = 0; k < KH; k++)
                for (int l = 0; l < KW; l++, to++) *to = (add ? *to : 0) + sums[o * SUM + tap(c, k, l)];
        bias_gradient[o] = (add ? bias_gradient[o] : 0) + sums[COUT * SUM + o];
    }
}

static inline int back(int64_t n, int each, const float *gradient, const uint8_t *which, const float *x,
                       const float *weight, float *x_gradient, float *weight_gradient, float *bias_gradient)
{
    enum {
        SUMS = ROUND_UP(COUT * SUM + COUT, LANES),
        EACH = ROUND_UP(2 * CIN * XPLANE + SUMS, LANES),
    };
    int threads = omp_get_max_threads();
    size_t size = sizeof(float) * (STENCILS + (size_t)threads * EACH);
    float *memory = aligned_alloc(64, size);
    if (!memory) return 1;
    memset(memory, 0, size);
    if (x_gradient) draw_stencils(weight, memory);
    #pragma omp parallel
    {
        float *plane = memory + STENCILS + (size_t)omp_get_thread_num() * EACH;
        float *other = plane + CIN * XPLANE, *sums = other + CIN * XPLANE;
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const float *g = gradient + i * COUT * CELLS;
            const uint8_t *a = which + i * COUT * CELLS;
            arrange(x + i * CIN * H * W, plane);
            if (each) memset(sums, 0, sizeof(float) * SUMS);
            gather(plane, g, a, sums, sums + COUT * SUM);
            if (each) deliver(sums, 0, weight_gradient + i * COUT * CIN * TAPS, bias_gradient + i * COUT);
            if (!x_gradient) continue;
            memset(other, 0, sizeof(float) * CIN * XPLANE);
            scatter(memory, g, a, other);
            crop(other, x_gradient + i * CIN * H * W);
        }
    }
    const float *first = memory + STENCILS + 2 * CIN * XPLANE;
    for (int t = 0; t < threads && !each; t++)
        deliver(first + (size_t)t * EACH, t, weight_gradient, bias_gradient);
    free(memory);
    return 0;
}

/* gradient, which [n, COUT, HP, WP], x -> those of x (unless that is null), weight and bias. */
int backward(int64_t n, const float *gradient, const uint8_t *which, const float *x, const float *weight,
             float *x_gradient, float *weight_gradient, float *bias_gradient)
{
    return back(n, 0, gradient, which, x, weight, x_gradient, weight_gradient, bias_gradient);
}

/* The same, with a weight's and a bias's gradient for each image: [n, COUT, CIN, KH, KW], [n, COUT]. */
int backward_each(int64_t n, const float *gradient, const uint8_t *which, const float *x, const float *weight,
                  float *x_gradient, float *weight_gradient, float *bias_gradient)
{
    return back(n, 1, gradient, which, x, weight, x_gradient, weight_gradient, bias_gradient);
}
