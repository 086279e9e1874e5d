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
    enum { N = 2 * GROUP + 1, INPUTS = N * CIN * H * W, WEIGHTS = COUT * CIN * TAPS, RESULTS = N * GRADIENT };
    bf16 *x = array(INPUTS), *weight = array(WEIGHTS), *gradient = array(RESULTS), *y = array(RESULTS);
    bf16 *dx = array(INPUTS), *dw = array(WEIGHTS);
    uint8_t *which = POOL ? malloc(RESULTS) : NULL;
    int bad = forward(N, x, weight, y, which);
    bad |= forward(1, x, weight, y, NULL);
    bad |= forward(0, x, weight, y, which);
    bad |= backward(N, gradient, which, x, weight, dx, dw);
    bad |= backward(1, gradient, which, x, weight, dx, NULL);
    bad |= backward(N, gradient, which, x, weight, NULL, dw);
    bad |= backward(0, gradient, which, x, weight, dx, dw);
    free(x), free(weight), free(gradient), free(y), free(dx), free(dw), free(which);
    return bad;
}
