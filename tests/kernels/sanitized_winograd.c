/* The kernel on arrays of exactly the sizes it may touch, for the address sanitizer to watch. */
#include SOURCE

static bf16 *array(size_t count)
{
    static const bf16 small[] = {0, 0x3f80, 0xbf80, 0x4000, 0xc000};    /* 0, 1, -1, 2, -2 */
    bf16 *values = malloc(count * sizeof(bf16));
    for (size_t i = 0; i < count; i++) values[i] = small[i * 7919 % 5];
    return values;
}

int main(void)
{
    enum { N = 2 * GROUP + 1, INPUTS = N * CIN * H * W, WEIGHTS = COUT * CIN * TAPS };
    enum { RESULTS = N * COUT * (POOL ? TILES : H * W) };
    bf16 *x = array(INPUTS), *weight = array(WEIGHTS), *y = array(RESULTS);
    uint8_t *which = POOL ? malloc(RESULTS) : NULL;
    int bad = forward(N, x, weight, y, which);
    bad |= forward(1, x, weight, y, NULL);
    bad |= forward(0, x, weight, y, which);
#if !POOL
    bf16 *gradient = array(RESULTS), *dx = array(INPUTS), *dw = array(WEIGHTS);
    bad |= backward(N, gradient, x, weight, dx, dw);
    bad |= backward(1, gradient, x, weight, dx, NULL);
    bad |= backward(N, gradient, x, weight, NULL, dw);
    bad |= backward(0, gradient, x, weight, dx, dw);
    free(gradient), free(dx), free(dw);
#endif
    free(x), free(weight), free(y), free(which);
    return bad;
}
