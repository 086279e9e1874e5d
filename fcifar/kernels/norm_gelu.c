/* GELU of scale * x + shift, with a scale and a shift for each channel, and its gradient; moments.
 *
 * Values are bfloat16 [rows, channels], sums and what belongs to a channel float32. Batch norm in
 * training and in evaluation is such a scale and shift. Each function reads its inputs once.
 *
 * GELU is y * cdf(y), with the normal distribution's cdf. cdf(y) - 1/2 and the derivative of GELU
 * less 1/2 are odd functions; here each is y times a polynomial in y^2, fitted for the least maximal
 * error on [-4, 4], and constant beyond. The error of cdf is below 4e-5; at 4 it is a little above 1,
 * so that clamped it is exactly 0 or 1 beyond. That of the derivative is below 5e-5 up to 4, and 6e-4
 * beyond. A rounding to bfloat16 changes a value by up to 2^-9 of it.
 *
 * Thirty-two values are taken at a time, those at even places as one vector of float32 and those at
 * odd places as another: two such vectors are what a vector of bfloat16 consists of.
 *
 * Results depend on nothing but the arguments and, for sums, the number of threads.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

typedef uint16_t bf16;

enum { WIDTH = 32, MOST = 2048, BLOCK = 64 };       /* values at a time, channels, and rows of a float32 sum */

#define EACH_HALF for (int h = 0; h < 2; h++)

typedef struct { __m512 half[2]; } Pair;            /* WIDTH values, in even and in odd places */

static inline __mmask32 some_of(int64_t channels, int64_t first)
{
    int64_t left = channels - first;
    return left >= WIDTH ? 0xffffffff : ((__mmask32)1 << left) - 1;
}

static inline Pair load(__mmask32 some, const bf16 *p)
{
    __m512i v = _mm512_maskz_loadu_epi16(some, p);
    return (Pair){{(__m512)_mm512_slli_epi32(v, 16), (__m512)_mm512_and_si512(v, _mm512_set1_epi32(0xffff0000))}};
}

/* Rounded to nearest, ties to even, in the lower half of each lane. */
static inline __m512i rounded(__m512 v)
{
#ifdef __AVX512BF16__
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v));
#else
    __m512i bits = (__m512i)v, one = _mm512_set1_epi32(1), quiet = _mm512_set1_epi32(0x400000);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_or_epi32(up, nan, bits, quiet), 16);
#endif
}

static inline void store(__mmask32 some, bf16 *p, Pair v)
{
    __m512i even = rounded(v.half[0]), odd = rounded(v.half[1]);
    _mm512_mask_storeu_epi16(p, some, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
}

/* What belongs to each channel, [MOST]: for WIDTH channels those at even places, then those at odd ones. */
static inline int64_t place(int64_t c) { return c / WIDTH * WIDTH + c % 2 * 16 + c % WIDTH / 2; }
static void spread(int64_t channels, const float *from, float *to)
{
    memset(to, 0, sizeof(float) * MOST);
    for (int64_t c = 0; c < channels; c++) to[place(c)] = from[c];
}
static inline Pair at(const float *spread) { return (Pair){{_mm512_load_ps(spread), _mm512_load_ps(spread + 16)}}; }

static inline __m512 limited(__m512 y)              /* keeps NaN, by the order of the arguments */
{
    return _mm512_min_ps(_mm512_set1_ps(4), _mm512_max_ps(_mm512_set1_ps(-4), y));
}
#define STEP(c) p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(c))
static inline __m512 gelu(__m512 y)
{
    __m512 x = limited(y), q = _mm512_mul_ps(x, x), p = _mm512_set1_ps(8.06393316e-11f);
    STEP(-7.00391419e-09f), STEP(2.7163296e-07f), STEP(-6.29540054e-06f), STEP(9.89143647e-05f);
    STEP(-0.00113399404f), STEP(0.00987810264f), STEP(-0.0664148001f), STEP(0.398947965f);
    __m512 cdf = _mm512_fmadd_ps(x, p, _mm512_set1_ps(0.5f));
    cdf = _mm512_min_ps(_mm512_set1_ps(1), _mm512_max_ps(_mm512_setzero_ps(), cdf));
    return _mm512_mul_ps(y, cdf);
}
static inline __m512 slope(__m512 y)
{
    __m512 x = limited(y), q = _mm512_mul_ps(x, x), p = _mm512_set1_ps(-5.24794361e-11f);
    STEP(4.92707742e-09f), STEP(-2.07035156e-07f), STEP(5.18404326e-06f), STEP(-8.7031495e-05f);
    STEP(0.00104358043f), STEP(-0.00920869923f), STEP(0.0594156631f), STEP(-0.265671554f), STEP(0.797826066f);
    return _mm512_fmadd_ps(x, p, _mm512_set1_ps(0.5f));
}

/* z = gelu(scale * x + shift) */
void norm_gelu(int64_t rows, int64_t channels, const bf16 *x, const float *scale, const float *shift, bf16 *z)
{
    _Alignas(64) float s[MOST], t[MOST];
    spread(channels, scale, s), spread(channels, shift, t);
    #pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c += WIDTH) {
            __mmask32 some = some_of(channels, c);
            Pair v = load(some, x + r * channels + c), by = at(s + c), plus = at(t + c);
            EACH_HALF v.half[h] = gelu(_mm512_fmadd_ps(v.half[h], by.half[h], plus.half[h]));
            store(some, z + r * channels + c, v);
        }
}

/* With g = dz * gelu'(scale * x + shift): dx = a * g + b * x + c. */
void norm_gelu_backward(int64_t rows, int64_t channels, const bf16 *dz, const bf16 *x, const float *scale,
                        const float *shift, const float *a, const float *b, const float *c, bf16 *dx)
{
    _Alignas(64) float s[MOST], t[MOST], of_g[MOST], of_x[MOST], rest[MOST];
    spread(channels, scale, s), spread(channels, shift, t);
    spread(channels, a, of_g), spread(channels, b, of_x), spread(channels, c, rest);
    #pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < channels; k += WIDTH) {
            __mmask32 some = some_of(channels, k);
            Pair v = load(some, x + r * channels + k), g = load(some, dz + r * channels + k), by = at(s + k);
            Pair plus = at(t + k), fg = at(of_g + k), fx = at(of_x + k), f = at(rest + k);
            EACH_HALF {
                __m512 d = _mm512_mul_ps(g.half[h], slope(_mm512_fmadd_ps(v.half[h], by.half[h], plus.half[h])));
                v.half[h] = _mm512_fmadd_ps(fg.half[h], d, _mm512_fmadd_ps(fx.half[h], v.half[h], f.half[h]));
            }
            store(some, dx + r * channels + k, v);
        }
}

static inline void add_to(float *sums, Pair v)
{
    EACH_HALF _mm512_store_ps(sums + 16 * h, _mm512_add_ps(_mm512_load_ps(sums + 16 * h), v.half[h]));
}

/* The sums over all rows of g, and of g * x. Returns 0, or 1 where memory was short. */
int norm_gelu_sums(int64_t rows, int64_t channels, const bf16 *dz, const bf16 *x, const float *scale,
                   const float *shift, float *sum_g, float *sum_gx)
{
    _Alignas(64) float s[MOST], t[MOST];
    spread(channels, scale, s), spread(channels, shift, t);
    const size_t bytes = sizeof(float) * ((channels + WIDTH - 1) / WIDTH * WIDTH);
    int most = omp_get_max_threads(), used = 1;
    double *totals = calloc((size_t)most * 2 * channels, sizeof(double));
    if (!totals) return 1;
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), own = omp_get_thread_num();
        double *total = totals + (size_t)own * 2 * channels;
        _Alignas(64) float g_sums[MOST], gx_sums[MOST];
        int64_t end = rows * (own + 1) / threads;
        for (int64_t first = rows * own / threads; first < end; first += BLOCK) {
            memset(g_sums, 0, bytes), memset(gx_sums, 0, bytes);
            for (int64_t r = first; r < end && r < first + BLOCK; r++)
                for (int64_t c = 0; c < channels; c += WIDTH) {
                    __mmask32 some = some_of(channels, c);
                    Pair v = load(some, x + r * channels + c), g = load(some, dz + r * channels + c);
                    Pair by = at(s + c), plus = at(t + c);
                    EACH_HALF {
                        g.half[h] = _mm512_mul_ps(g.half[h], slope(_mm512_fmadd_ps(v.half[h], by.half[h], plus.half[h])));
                        v.half[h] = _mm512_mul_ps(v.half[h], g.half[h]);
                    }
                    add_to(g_sums + c, g), add_to(gx_sums + c, v);
                }
            for (int64_t c = 0; c < channels; c++)
                total[c] += g_sums[place(c)], total[channels + c] += gx_sums[place(c)];
        }
        #pragma omp single
        used = threads;
    }
    for (int64_t c = 0; c < channels; c++) {
        double g = 0, gx = 0;
        for (int k = 0; k < used; k++) g += totals[2 * k * channels + c], gx += totals[(2 * k + 1) * channels + c];
        sum_g[c] = g, sum_gx[c] = gx;
    }
    free(totals);
    return 0;
}

/* The mean over all rows, and the variance: the mean square of the distance from it. Each block of
 * rows has its own mean, and blocks are combined after Chan, Golub and LeVeque, "Algorithms for
 * computing the sample variance", 1983. Several rows of few channels are taken as one of WIDTH, and
 * their sums combined in the end. Returns 0, or 1 where memory was short. */
int moments(int64_t rows, int64_t channels, const bf16 *x, float *var, float *mean)
{
    const int64_t fold = WIDTH % channels == 0 && rows % (WIDTH / channels) == 0 ? WIDTH / channels : 1;
    const int64_t own_channels = channels;
    rows /= fold, channels *= fold;
    const size_t bytes = sizeof(float) * ((channels + WIDTH - 1) / WIDTH * WIDTH);
    int most = omp_get_max_threads(), used = 1;
    double *totals = calloc((size_t)most * 2 * channels, sizeof(double));
    if (!totals) return 1;
    #pragma omp parallel
    {
        int threads = omp_get_num_threads(), own = omp_get_thread_num();
        double *means = totals + (size_t)own * 2 * channels, *squares = means + channels;
        _Alignas(64) float sums[MOST], far[MOST];
        int64_t begin = rows * own / threads, end = rows * (own + 1) / threads;
        for (int64_t first = begin; first < end; first += BLOCK) {
            int64_t last = first + BLOCK < end ? first + BLOCK : end;
            memset(sums, 0, bytes), memset(far, 0, bytes);
            for (int64_t r = first; r < last; r++)
                for (int64_t c = 0; c < channels; c += WIDTH)
                    add_to(sums + c, load(some_of(channels, c), x + r * channels + c));
            const float count = last - first;
            for (int64_t c = 0; c < (channels + WIDTH - 1) / WIDTH * WIDTH; c += 16)
                _mm512_store_ps(sums + c, _mm512_div_ps(_mm512_load_ps(sums + c), _mm512_set1_ps(count)));
            for (int64_t r = first; r < last; r++)
                for (int64_t c = 0; c < channels; c += WIDTH) {
                    Pair v = load(some_of(channels, c), x + r * channels + c), middle = at(sums + c);
                    EACH_HALF {
                        v.half[h] = _mm512_sub_ps(v.half[h], middle.half[h]);
                        v.half[h] = _mm512_mul_ps(v.half[h], v.half[h]);
                    }
                    add_to(far + c, v);
                }
            double before = first - begin, part = count / (before + count);
            for (int64_t c = 0; c < channels; c++) {
                double apart = sums[place(c)] - means[c];
                means[c] += apart * part;
                squares[c] += far[place(c)] + apart * apart * before * part;
            }
        }
        #pragma omp single
        used = threads;
    }
    for (int64_t c = 0; c < own_channels; c++) {
        double all = 0, middle = 0, square = 0;
        for (int k = 0; k < used; k++) {
            double count = rows * (k + 1) / used - rows * k / used;
            if (!count) continue;
            for (int64_t lane = c; lane < channels; lane += own_channels) {
                double apart = totals[2 * k * channels + lane] - middle, part = count / (all + count);
                middle += apart * part;
                square += totals[(2 * k + 1) * channels + lane] + apart * apart * all * part;
                all += count;
            }
        }
        mean[c] = middle, var[c] = square / all;
    }
    free(totals);
    return 0;
}
