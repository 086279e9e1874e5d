/* Scales of float16 factors, for bfloat16 numbers. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* The power of two that scales the largest of ``n`` numbers to [2^top, 2^(top + 1)); 1 if that is 0,
 * subnormal, infinite or NaN. Then no sum of float16 overflows that is bounded for such numbers. */
static float scale_of(const uint16_t *p, int64_t n, int top)
{
    if (!FP16) return 1;
    __m512i most = _mm512_setzero_si512(), all = _mm512_set1_epi16(0x7fff);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) most = _mm512_max_epu16(most, _mm512_and_si512(all, _mm512_loadu_si512(p + i)));
    most = _mm512_max_epu16(most, _mm512_and_si512(all, _mm512_maskz_loadu_epi16(((uint64_t)1 << (n - i)) - 1, p + i)));
    uint16_t each[32];
    _mm512_storeu_si512(each, most);
    int largest = 0;
    for (int j = 0; j < 32; j++) largest = each[j] > largest ? each[j] : largest;
    int exponent = largest >> 7;
    if (exponent == 0 || exponent == 255) return 1;
    exponent = 254 - exponent + top;                /* biased by 127 */
    uint32_t bits = (uint32_t)(exponent < 27 ? 27 : exponent > 227 ? 227 : exponent) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return scale;
}
