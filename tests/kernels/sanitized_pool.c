/* The kernel on arrays of exactly the sizes it may touch, for the address sanitizer to watch. */
#include <stdlib.h>
#include SOURCE

int main(void)
{
    for (int height = 2; height < 6; height++)
        for (int width = 2; width < 6; width++)
            for (int channels = LANES; channels <= 3 * LANES; channels += LANES) {
                int n = 3, cells = n * (height / 2) * (width / 2) * channels;
                uint16_t *y = calloc(n * height * width * channels, sizeof(uint16_t));
                uint16_t *pooled = calloc(cells, sizeof(uint16_t));
                uint8_t *which = calloc(cells, 1);
                max_pool(n, height, width, channels, y, pooled, which);
                free(y), free(pooled), free(which);
            }
    return 0;
}
