/* The kernel on arrays of exactly the sizes it may touch. */
#include SOURCE
#include "guarded.h"

static bf16 *array(size_t count)
{
    static const bf16 small[] = {0, 0x3f80, 0xbf80, 0x4000, 0xc000};    /* 0, 1, -1, 2, -2 */
    bf16 *values = guarded(count * sizeof(bf16));
    for (size_t i = 0; i < count; i++) values[i] = small[i * 7919 % 5];
    return values;
}

static int call(void)
{
    enum { N = 5, INPUTS = N * CIN * H * W, WEIGHTS = COUT * CIN * TAPS, POOLED = N * COUT * CELLS };
    bf16 *x = array(INPUTS), *weight = array(WEIGHTS), *gradient = array(POOLED);
    bf16 *dx = array(INPUTS), *dw = array(WEIGHTS);
    uint8_t *which = guarded(POOLED);
    for (int i = 0; i < POOLED; i++) which[i] = i * 7919 % 11 % 4;
    int bad = backward(N, gradient, which, x, weight, dx, dw);
    bad |= backward(1, gradient, which, x, weight, dx, NULL);
    bad |= backward(N, gradient, which, x, weight, NULL, dw);
    bad |= backward(0, gradient, which, x, weight, dx, dw);
    return bad;
}

int main(void)
{
    int bad = call();
    at_end = 1;
    return bad | call();
}
