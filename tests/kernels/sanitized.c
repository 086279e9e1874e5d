/* The kernel on arrays of exactly the sizes it may touch. */
#include SOURCE
#include "guarded.h"

static float *array(size_t count)
{
    float *values = guarded(count * sizeof(float));
    for (size_t i = 0; i < count; i++) values[i] = (float)(i * 7919 % 13) - 6;
    return values;
}

static int call(void)
{
    enum { N = 3, IMAGES = N * CIN * H * W, WEIGHTS = COUT * CIN * TAPS, POOLED = N * COUT * CELLS };
    float *x = array(IMAGES), *weight = array(WEIGHTS), *bias = array(COUT), *gradient = array(POOLED);
    float *pooled = array(POOLED), *dx = array(IMAGES), *dw = array(WEIGHTS), *db = array(COUT);
    uint8_t *which = guarded(POOLED);
    int bad = forward(N, x, weight, bias, pooled, which);
    bad |= backward(N, gradient, which, x, weight, dx, dw, db);
    bad |= backward(N, gradient, which, x, weight, NULL, dw, db);
    float *dws = array(N * WEIGHTS), *dbs = array(N * COUT);
    bad |= backward_each(N, gradient, which, x, weight, dx, dws, dbs);
    bad |= backward_each(N, gradient, which, x, weight, NULL, dws, dbs);
    for (int i = 0; i < POOLED; i++) bad |= which[i] > 3;
    return bad;
}

int main(void)
{
    int bad = call();
    at_end = 1;
    return bad | call();
}
