/* The kernels on arrays of exactly the sizes they may touch, for the address sanitizer to watch. */
#include SOURCE

int main(void)
{
    static const int all_channels[] = {8, 16, 24, 32, 40, 64, MOST};
    for (int i = 0; i < 7; i++)
        for (int rows = 0; rows < 200; rows += 67) {
            int channels = all_channels[i], count = rows * channels, bad = 0;
            bf16 *x = calloc(count, sizeof(bf16)), *dz = calloc(count, sizeof(bf16)), *z = calloc(count, sizeof(bf16));
            float *c[7];
            for (int k = 0; k < 7; k++) c[k] = calloc(channels, sizeof(float));
            norm_gelu(rows, channels, x, c[0], c[1], z);
            norm_gelu_backward(rows, channels, dz, x, c[0], c[1], c[2], c[3], c[4], z);
            bad |= norm_gelu_sums(rows, channels, dz, x, c[0], c[1], c[5], c[6]);
            if (rows) bad |= moments(rows, channels, x, c[5], c[6]);
            free(x), free(dz), free(z);
            for (int k = 0; k < 7; k++) free(c[k]);
            if (bad) return 1;
        }
    return 0;
}
