/* The kernels on arrays of exactly the sizes they may touch. */
#include SOURCE
#include "guarded.h"

static int call(void)
{
    static const int all_channels[] = {8, 16, 24, 32, 40, 64, MOST};
    for (int i = 0; i < 7; i++)
        for (int rows = 0; rows < 200; rows += 67) {
            int channels = all_channels[i], count = rows * channels, bad = 0;
            bf16 *x = guarded(count * sizeof(bf16)), *dz = guarded(count * sizeof(bf16)), *z = guarded(count * sizeof(bf16));
            float *c[7];
            for (int k = 0; k < 7; k++) c[k] = guarded(channels * sizeof(float));
            norm_gelu(rows, channels, x, c[0], c[1], z);
            norm_gelu_backward(rows, channels, dz, x, c[0], c[1], c[2], c[3], c[4], z);
            bad |= norm_gelu_sums(rows, channels, dz, x, c[0], c[1], c[5], c[6]);
            if (rows) bad |= moments(rows, channels, x, c[5], c[6]);
            if (bad) return 1;
        }
    return 0;
}

int main(void)
{
    int bad = call();
    at_end = 1;
    return bad | call();
}
