/* The region decoder under libFuzzer: any bytes, the size that they claim, a region drawn from them, in memory that is
   not a byte too large; with and without vector instructions, which must agree. Built by `python -m bench native`. */

#define WITHOUT_PYTHON
#include "../../../dali_imagenet/decode/_jpeg.c"

#define PIXELS (1 << 18) /* more would only make it slower */

static int run(const uint8_t *data, size_t size, const long *box, long height, long width, int simd, uint8_t *out)
{
    struct image *m = calloc(1, sizeof *m);
    if (m == NULL)
        abort();
    m->data = data;
    m->end = data + size;
    m->height = height;
    m->width = width;
    m->top = box[0];
    m->left = box[1];
    m->rows = box[2];
    m->columns = box[3];
    m->out = out;
    int failed = decode(m, simd);
    if (failed && m->problem == NULL)
        abort();
    free(m);
    return failed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    long height = 0, width = 0;
    uint32_t drawn = 2166136261u;
    if (size < 4)
        return 0; /* as in decode_region */
    for (size_t i = 0; i < size; i++)
        drawn = (drawn ^ data[i]) * 16777619u;
    for (size_t i = 0; i + 9 < size && !width; i++)
        if (data[i] == 0xFF && (data[i + 1] == 0xC0 || data[i + 1] == 0xC1)) {
            height = data[i + 5] << 8 | data[i + 6];
            width = data[i + 7] << 8 | data[i + 8];
        }
    if (height < 1 || width < 1 || height > MOST || width > MOST || height * width > PIXELS)
        return 0;
    long top = drawn % height, left = (drawn >> 8) % width;
    long box[4] = {top, left, 1 + (drawn >> 4) % (height - top), 1 + (drawn >> 12) % (width - left)};
    if (drawn >> 30 == 0)
        box[0] = box[1] = 0, box[2] = height, box[3] = width;
    size_t bytes = 3 * (size_t)box[2] * (size_t)box[3];
    uint8_t *fast = malloc(bytes), *plain = malloc(bytes);
    if (fast == NULL || plain == NULL)
        abort();
    int failed = run(data, size, box, height, width, 1, fast);
    if (failed != run(data, size, box, height, width, 0, plain) || (!failed && memcmp(fast, plain, bytes)))
        abort();
    free(fast);
    free(plain);
    return 0;
}
