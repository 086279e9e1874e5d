/* max_pool2d(y, 2) in bfloat16, and which of the four each value was. */
#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };                                    /* channels in a vector */

static inline __m512 load(const uint16_t *p)
{
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}

/* y [n, height, width, channels] -> pooled, which [n, height / 2, width / 2, channels]. The first of
 * equals is taken, and NaN above all, as PyTorch does it. Channels are a multiple of LANES. */
void max_pool(int64_t n, int64_t height, int64_t width, int64_t channels,
              const uint16_t *y, uint16_t *pooled, uint8_t *which)
{
    int64_t rows = height / 2, row = width / 2 * channels;
    #pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n * rows; r++) {
        const uint16_t *upper = y + (r / rows * height + r % rows * 2) * width * channels;
        const uint16_t *lower = upper + width * channels;
        for (int64_t left = 0, i = r * row; i < (r + 1) * row; left += channels)
            for (int64_t end = left + channels; left < end; left += LANES, i += LANES) {
                const uint16_t *next[] = {upper + left + channels, lower + left, lower + left + channels};
                __m512 best = load(upper + left);
                __m512i number = _mm512_setzero_si512();
                for (int k = 0; k < 3; k++) {
                    __m512 v = load(next[k]);
                    __mmask16 more = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
                    best = _mm512_mask_mov_ps(best, more, v);
                    number = _mm512_mask_set1_epi32(number, more, k + 1);
                }
                __m512i bits = _mm512_srli_epi32((__m512i)best, 16);
                _mm256_storeu_si256((__m256i *)(pooled + i), _mm512_cvtepi32_epi16(bits));
                _mm_storeu_si128((__m128i *)(which + i), _mm512_cvtepi32_epi8(number));
            }
    }
}
