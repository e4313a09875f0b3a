/* The region decoder under libFuzzer: any bytes, the size that they claim, a region drawn from them, in memory that is
   not a byte too large; with and without vector instructions and tables of two, and with what is remembered of the
   file, which must agree, in what they refuse, too. Wrong rows with a right checksum may give wrong pixels, and do no
   other harm. Built by `python -m bench native`. */

#define WITHOUT_PYTHON
#include "../../../dali_imagenet/decode/_jpeg.c"

#define PIXELS (1 << 18) /* more would only make it slower */

/* What is wrong with the image; NULL for nothing. */
static const char *run(const uint8_t *data, size_t size, const ptrdiff_t *box, ptrdiff_t height, ptrdiff_t width, int simd,
                       int pairs, uint8_t *out, const uint8_t *slot, size_t room, uint8_t *made, size_t *length)
{
    struct image *m = request(data, (ptrdiff_t)size, (ptrdiff_t[]){height, width}, box, out, room);
    if (m == NULL)
        abort();
    int outcome;
    const char *problem = decode(m, simd, pairs, slot, made, length, &outcome) ? m->problem : NULL;
    if (problem == NULL && m->problem != NULL)
        abort();
    free(m);
    return problem;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ptrdiff_t height = 0, width = 0;
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
    ptrdiff_t top = drawn % height, left = (drawn >> 8) % width;
    ptrdiff_t box[4] = {top, left, 1 + (drawn >> 4) % (height - top), 1 + (drawn >> 12) % (width - left)};
    if (drawn >> 30 == 0)
        box[0] = box[1] = 0, box[2] = height, box[3] = width;
    size_t bytes = 3 * (size_t)box[2] * (size_t)box[3];
    uint8_t *plain = malloc(bytes);
    if (plain == NULL)
        abort();
    size_t room = drawn % 3 ? 65 + 6 * (size_t)height : 1 + drawn % 99, length;
    uint8_t *slot = calloc(1, room), *record = calloc(1, room), *other = malloc(bytes);
    if (slot == NULL || record == NULL || other == NULL)
        abort();
    const char *problem = run(data, size, box, height, width, 0, NEVER, plain, NULL, 0, NULL, &length);
    for (int way = 1; way < 8; way++) {
        int remembers = way & 4;
        const char *now = run(data, size, box, height, width, way & 1, way & 2 ? ALWAYS : NEVER, other,
                              slot, remembers ? room : 0, record, &length);
        if ((problem == NULL) != (now == NULL) || (problem != NULL ? strcmp(problem, now) : memcmp(plain, other, bytes)))
            abort();
        memcpy(slot, record, length);
    }
    for (int i = 0; i < 4 && problem == NULL && room > HEAD; i++) { /* another region, from wrong rows */
        drawn = drawn * 1664525u + 1013904223u;
        slot[sizeof(uint64_t) + drawn % (room - sizeof(uint64_t))] ^= (uint8_t)(drawn >> 24);
        box[0] = drawn % height;
        box[2] = 1 + (drawn >> 9) % (height - box[0]);
        if (3 * (size_t)box[2] * (size_t)box[3] > bytes)
            box[2] = 1;
        struct record r;
        memcpy(&r, slot, HEAD);
        size_t bits = 0;
        for (int j = 0; j < 4; j++)
            bits += r.bits[j];
        size_t used = HEAD + (bits * r.count + 7) / 8;
        r.check = used > room ? 1 : check_of(slot, used, hash_of(data, size, 0));
        memcpy(slot, &r, sizeof r.check);
        run(data, size, box, height, width, 1, NEVER, other, slot, room, record, &length);
    }
    free(slot);
    free(record);
    free(other);
    free(plain);
    return 0;
}
