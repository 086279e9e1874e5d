/* The instructions for float16 of the kernels, by those for float32: for processors without them.
 *
 * A sum of two float16 numbers in float32, rounded to float16, is the sum in float16. A product is
 * exact in float32, so that its sum with another number is rounded twice.
 */
#include <immintrin.h>

static inline __m512 single(__m512h v, int half)
{
    __m512i all = (__m512i)v;
    return _mm512_cvtph_ps(half ? _mm512_extracti64x4_epi64(all, 1) : _mm512_castsi512_si256(all));
}
static inline __m256i rounded(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline __m512h joined(__m512 low, __m512 high)
{
    return (__m512h)_mm512_inserti64x4(_mm512_castsi256_si512(rounded(low)), rounded(high), 1);
}
static inline __m512h sum_of(__m512h a, __m512h b)
{
    return joined(_mm512_add_ps(single(a, 0), single(b, 0)), _mm512_add_ps(single(a, 1), single(b, 1)));
}
static inline __m512h difference_of(__m512h a, __m512h b)
{
    return joined(_mm512_sub_ps(single(a, 0), single(b, 0)), _mm512_sub_ps(single(a, 1), single(b, 1)));
}
static inline __m512h product_plus(__m512h a, __m512h b, __m512h c)
{
    return joined(_mm512_fmadd_ps(single(a, 0), single(b, 0), single(c, 0)),
                  _mm512_fmadd_ps(single(a, 1), single(b, 1), single(c, 1)));
}
#define COMPARED(a, b, how, half) ((__mmask32)_mm512_cmp_ps_mask(single(a, half), single(b, half), how) << 16 * half)

#undef _mm512_cmp_ph_mask
#define _mm512_cmp_ph_mask(a, b, how) (COMPARED(a, b, how, 0) | COMPARED(a, b, how, 1))
#define _mm512_add_ph sum_of
#define _mm512_sub_ph difference_of
#define _mm512_fmadd_ph product_plus
#define _mm512_cvtxph_ps(v) _mm512_cvtph_ps((__m256i)(v))
#define _mm512_cvtxps_ph(v) ((__m256h)rounded(v))
