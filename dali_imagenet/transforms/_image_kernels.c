/* Passes over an image that torch and numpy make in many: the resize, the colour matrix, normalization, and the search
   for a JPEG's markers. Each has its Python form beside its caller, which gives the same and takes over where this was
   not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../_cpu.h"

#define CHUNK 256 /* pixels at a time: what is made of them stays in the first cache */

struct image { /* [3, height, width] with strides in bytes */
    const uint8_t *pixels;
    Py_ssize_t height, width, plane, row, column;
};

/* `count` pixels from `at`, as three lines. */
static inline void lines(const struct image *image, const uint8_t *at, int count, uint8_t to[3][CHUNK])
{
    if (image->plane == 1 && image->column == 3) {
        for (int i = 0; i < count; i++)
            for (int c = 0; c < 3; c++)
                to[c][i] = at[3 * i + c];
        return;
    }
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < count; i++)
            to[c][i] = at[c * image->plane + i * image->column];
}

#ifdef X86
/* Of `count` pixels the most that sixteen at a time make; returns how many. Its rounding is to nearest, half to even. */
FOR_CPU("avx2") static int recolor_avx2(uint8_t rgb[3][CHUNK], int count, const float *matrix, uint8_t *to, Py_ssize_t plane)
{
    const __m256 most = _mm256_set1_ps(255.0f);
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        __m256 from[3][2];
        for (int c = 0; c < 3; c++)
            for (int k = 0; k < 2; k++) {
                const __m128i bytes = _mm_loadl_epi64((const __m128i *)(rgb[c] + i + 8 * k));
                from[c][k] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            }
        for (int c = 0; c < 3; c++) {
            __m256i whole[2];
            for (int k = 0; k < 2; k++) {
                __m256 value = _mm256_mul_ps(from[0][k], _mm256_set1_ps(matrix[4 * c]));
                value = _mm256_add_ps(value, _mm256_mul_ps(from[1][k], _mm256_set1_ps(matrix[4 * c + 1])));
                value = _mm256_add_ps(value, _mm256_mul_ps(from[2][k], _mm256_set1_ps(matrix[4 * c + 2])));
                value = _mm256_add_ps(value, _mm256_set1_ps(matrix[4 * c + 3]));
                value = _mm256_min_ps(_mm256_max_ps(value, _mm256_setzero_ps()), most); /* nan is 0 */
                whole[k] = _mm256_cvtps_epi32(value);
            }
            const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xd8);
            const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            _mm_storeu_si128((__m128i *)(to + c * plane + i), bytes);
        }
    }
    return i;
}
#define recolor_vectors(...) (__builtin_cpu_supports("avx2") ? recolor_avx2(__VA_ARGS__) : 0)
#else
#define recolor_vectors(...) 0
#endif

EACH_CPU static void recolor_image(const struct image *image, const float *matrix, uint8_t *out)
{
    const float half = 12582912.0f; /* 1.5 * 2**23: adding it rounds to whole numbers, half to even */
    Py_ssize_t size = image->height * image->width;
    for (Py_ssize_t y = 0; y < image->height; y++)
        for (Py_ssize_t x = 0; x < image->width; x += CHUNK) {
            uint8_t rgb[3][CHUNK], *to = out + y * image->width + x;
            int count = image->width - x < CHUNK ? (int)(image->width - x) : CHUNK;
            lines(image, image->pixels + y * image->row + x * image->column, count, rgb);
            int done = recolor_vectors(rgb, count, matrix, to, size);
            for (int c = 0; c < 3; c++) {
                const float *m = matrix + 4 * c;
                for (int i = done; i < count; i++) {
                    float value = ((rgb[0][i] * m[0] + rgb[1][i] * m[1]) + rgb[2][i] * m[2]) + m[3];
                    value = value > 0.0f ? value : 0.0f;
                    value = value < 255.0f ? value : 255.0f;
                    to[c * size + i] = (uint8_t)(int)((value + half) - half);
                }
            }
        }
}

enum { FLOAT32, BFLOAT16, FLOAT16, UINT8 };

/* A multiple of eight numbers, by an instruction's rounding: to nearest, half to even. */
#ifdef X86
#define HAS_FLOAT16 (__builtin_cpu_supports("avx2") != 0) /* no such processor is without F16C */
FOR_CPU("avx2,f16c") static void to_float16(const float *value, int count, uint16_t *half)
{
    for (int i = 0; i < count; i += 8)
        _mm_storeu_si128((__m128i *)(half + i), _mm256_cvtps_ph(_mm256_loadu_ps(value + i), 0));
}
#elif defined(NEON)
#define HAS_FLOAT16 1
static void to_float16(const float *value, int count, uint16_t *half)
{
    for (int i = 0; i < count; i += 8) {
        const float16x8_t both = vcombine_f16(vcvt_f16_f32(vld1q_f32(value + i)), vcvt_f16_f32(vld1q_f32(value + i + 4)));
        vst1q_u16(half + i, vreinterpretq_u16_f16(both));
    }
}
#else
#define HAS_FLOAT16 0
#endif

INLINE void to_bfloat16(const float *value, int count, uint16_t *half)
{
    uint32_t word[CHUNK];
    memcpy(word, value, (size_t)count * sizeof(float));
    for (int i = 0; i < count; i++)
        half[i] = (uint16_t)((word[i] + 0x7fff + (word[i] >> 16 & 1)) >> 16);
}

/* Computed in float32, then rounded to `dtype`: to nearest, half to even. Channels lie in planes, or beside each other. */
INLINE void normalize_as(const struct image *image, const float *scale, const float *bias, int dtype,
                                int interleaved, void *out)
{
    Py_ssize_t size = image->height * image->width;
    for (Py_ssize_t y = 0; y < image->height; y++)
        for (Py_ssize_t x = 0; x < image->width; x += CHUNK) {
            uint8_t rgb[3][CHUNK];
            float value[3][CHUNK];
            uint16_t half[3][CHUNK];
            int count = image->width - x < CHUNK ? (int)(image->width - x) : CHUNK;
            Py_ssize_t at = y * image->width + x;
            lines(image, image->pixels + y * image->row + x * image->column, count, rgb);
            for (int c = 0; c < 3; c++) {
                float *to = dtype == FLOAT32 && !interleaved ? (float *)out + c * size + at : value[c];
                for (int i = 0; i < count; i++)
                    to[i] = rgb[c][i] * scale[c] + bias[c];
                if (dtype == BFLOAT16)
                    to_bfloat16(value[c], count, interleaved ? half[c] : (uint16_t *)out + c * size + at);
#if defined(X86) || defined(NEON)
                if (dtype == FLOAT16) {
                    for (int i = count; i < (count + 7) / 8 * 8; i++)
                        value[c][i] = 0;
                    to_float16(value[c], count, half[c]);
                    if (!interleaved)
                        memcpy((uint16_t *)out + c * size + at, half[c], (size_t)count * 2);
                }
#endif
            }
            for (int i = 0; interleaved && dtype == FLOAT32 && i < count; i++)
                for (int c = 0; c < 3; c++)
                    ((float *)out)[3 * (at + i) + c] = value[c][i];
            for (int i = 0; interleaved && dtype != FLOAT32 && i < count; i++)
                for (int c = 0; c < 3; c++)
                    ((uint16_t *)out)[3 * (at + i) + c] = half[c][i];
        }
}

EACH_CPU static void normalize_image(const struct image *image, const float *numbers, int dtype, int interleaved, void *out)
{
    const float *scale = numbers, *bias = numbers + 3;
    if (dtype == FLOAT32 && !interleaved)
        normalize_as(image, scale, bias, FLOAT32, 0, out);
    else if (dtype == FLOAT32)
        normalize_as(image, scale, bias, FLOAT32, 1, out);
    else if (dtype == BFLOAT16)
        normalize_as(image, scale, bias, BFLOAT16, interleaved, out);
    else
        normalize_as(image, scale, bias, FLOAT16, interleaved, out);
}

/* Whether the buffers are uint8 [3, H, W], `numbers` float32 and room for H * W pixels; else ValueError. */
static int check(const Py_buffer *pixels, const Py_buffer *numbers, Py_ssize_t count, const Py_buffer *out,
                 Py_ssize_t item, struct image *image)
{
    if (pixels->ndim != 3 || pixels->itemsize != 1 || pixels->shape[0] != 3 ||
        numbers->len != count * (Py_ssize_t)sizeof(float) ||
        out->len != 3 * pixels->shape[1] * pixels->shape[2] * item) {
        PyErr_SetString(PyExc_ValueError, "wants uint8 [3, H, W], its numbers as float32, and an output of that shape");
        return -1;
    }
    *image = (struct image){pixels->buf,        pixels->shape[1],   pixels->shape[2],
                            pixels->strides[0], pixels->strides[1], pixels->strides[2]};
    return 0;
}

static Py_ssize_t bytes_of(int dtype) { return dtype == UINT8 ? 1 : dtype == FLOAT32 ? 4 : 2; }

/* Recolours to uint8, else normalizes. */
static PyObject *run(PyObject *source, Py_buffer *numbers, Py_buffer *out, int dtype, int interleaved)
{
    Py_buffer pixels;
    struct image image;
    int failed = PyObject_GetBuffer(source, &pixels, PyBUF_STRIDES);
    if (!failed) {
        failed = check(&pixels, numbers, dtype == UINT8 ? 12 : 6, out, bytes_of(dtype), &image);
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            if (dtype == UINT8)
                recolor_image(&image, numbers->buf, out->buf);
            else
                normalize_image(&image, numbers->buf, dtype, interleaved, out->buf);
            Py_END_ALLOW_THREADS
        }
        PyBuffer_Release(&pixels);
    }
    PyBuffer_Release(numbers);
    PyBuffer_Release(out);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *recolor(PyObject *self, PyObject *args)
{
    PyObject *source;
    Py_buffer numbers, out;
    if (!PyArg_ParseTuple(args, "Oy*w*:recolor", &source, &numbers, &out))
        return NULL;
    return run(source, &numbers, &out, UINT8, 0);
}

static int has_dtype(int dtype) { return dtype == FLOAT32 || dtype == BFLOAT16 || (dtype == FLOAT16 && HAS_FLOAT16); }

static PyObject *normalize(PyObject *self, PyObject *args)
{
    PyObject *source;
    Py_buffer numbers, out;
    int dtype = FLOAT32, interleaved = 0;
    if (!PyArg_ParseTuple(args, "Oy*w*|ip:normalize", &source, &numbers, &out, &dtype, &interleaved))
        return NULL;
    if (has_dtype(dtype))
        return run(source, &numbers, &out, dtype, interleaved);
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&out);
    PyErr_SetString(PyExc_ValueError, "dtype: must be 0 for float32, 1 for bfloat16, or 2 for float16 with AVX2");
    return NULL;
}

/* ---- torch's antialiased resize of uint8 images, to the bit ----

   What torch.ops.aten._upsample_bilinear2d_aa and _upsample_bicubic2d_aa give: weights made in double and rounded to
   int16 with as many bits as the largest allows; first across, rounded to uint8, then down. Here only what a window
   needs is computed, and of what lies in between only the lines are kept that the next line of the output looks at:
   they stay in the first cache. They are kept in pairs, pixel beside pixel, as the instruction wants them that
   multiplies two by two and adds. */

#define LIMIT ((Py_ssize_t)1 << 24) /* of sizes, scales and weights: their products stay far from overflow */
#define STEP 32                     /* pixels of a line computed at a time: lines have room for a multiple */

struct axis { /* what each pixel of the window is made of, along one axis */
    Py_ssize_t in, out, first, count; /* sizes before and after, and the window of the latter */
    double scale;
    int taps, precision; /* weights a pixel, an even number; their bits behind the point */
    int32_t *start;      /* [padded(count)] the first pixel that is looked at */
    int16_t *weight;     /* [padded(count), taps] */
    void *memory;
};

static Py_ssize_t padded(Py_ssize_t count) { return (count + STEP - 1) / STEP * STEP; }

static inline double filter(double x, int cubic)
{
    const double a = -0.5;
    x = fabs(x);
    if (!cubic)
        return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    return x < 2.0 ? ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a : 0.0;
}

/* The weights of one pixel of the output; returns how many, and from where. */
static inline int weigh(const struct axis *axis, int cubic, double support, int most, Py_ssize_t i, double *weight,
                        int32_t *from)
{
    double center = axis->scale * (i + 0.5), inverse = axis->scale >= 1.0 ? 1.0 / axis->scale : 1.0, total = 0;
    int64_t low = (int64_t)(center - support + 0.5), high = (int64_t)(center + support + 0.5);
    low = low < 0 ? 0 : low;
    high = high > axis->in ? axis->in : high;
    int64_t found = high - low;
    int count = found < 0 ? 0 : found > most ? most : (int)found;
    for (int j = 0; j < count; j++) {
        weight[j] = filter((j + low - center + 0.5) * inverse, cubic);
        total += weight[j];
    }
    for (int j = 0; j < count && total != 0.0; j++)
        weight[j] /= total;
    *from = (int32_t)(low < axis->in ? low : axis->in - 1);
    return count;
}

/* Fill the tables, each start a multiple of `even`. 0, -1 out of memory, or -2 where integers cannot hold the sums. */
static int fill(struct axis *axis, int cubic, int even, int mirrored)
{
    double support = (cubic ? 2 : 1) * (axis->scale >= 1.0 ? axis->scale : 1.0), limit = ceil(support) * 2 + 1;
    Py_ssize_t most = limit < axis->in ? (Py_ssize_t)limit : axis->in, count = axis->count, room = padded(count);
    if (most > 16 * LIMIT / (room + 1))
        return -2;
    size_t size = (count + 1) * most * sizeof(double) + (2 * count + 2 + room) * sizeof(int32_t);
    double *exact = axis->memory = malloc(size + room * (most + 2) * sizeof(int16_t));
    if (exact == NULL)
        return -1;
    int32_t *from = (int32_t *)(exact + (count + 1) * most), *taps = from + count + 1;
    axis->start = taps + count + 1;
    axis->weight = (int16_t *)(axis->start + room);

    double largest = 0; /* of all of the output: it decides the precision */
    axis->taps = 2;
    for (Py_ssize_t i = 0; i < axis->out; i++) {
        Py_ssize_t at = i - axis->first;
        int inside = at >= 0 && at < count;
        at = inside ? at : count; /* what is outside is forgotten */
        double *weight = exact + at * most;
        if (axis->in == axis->out) { /* torch leaves such an axis alone, whatever the factor */
            from[at] = (int32_t)i;
            taps[at] = 1;
            *weight = 1;
        } else
            taps[at] = weigh(axis, cubic, support, (int)most, i, weight, from + at);
        for (int j = 0; j < taps[at]; j++)
            largest = weight[j] > largest ? weight[j] : largest;
        int wanted = (from[at] % even + taps[at] + 1) & ~1;
        axis->taps = inside && wanted > axis->taps ? wanted : axis->taps;
    }
    if (!(largest < 1 << 13))
        return -2;
    for (axis->precision = 0; axis->precision < 22; axis->precision++)
        if ((int)(0.5 + largest * (1 << (axis->precision + 1))) >= 1 << 15)
            break;

    memset(axis->weight, 0, room * axis->taps * sizeof(int16_t));
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t at = mirrored ? count - 1 - i : i;
        int16_t *weight = axis->weight + at * axis->taps + from[i] % even;
        int32_t sum = 0;
        axis->start[at] = from[i] / even * even;
        for (int j = 0; j < taps[i]; j++) {
            double value = exact[i * most + j] * (1 << axis->precision);
            if (!(fabs(value) < 32767))
                return -2;
            weight[j] = (int16_t)(value < 0 ? value - 0.5 : value + 0.5);
            sum += weight[j] < 0 ? -weight[j] : weight[j];
            if (sum > 1 << 23) /* 255 times as much would leave int32 */
                return -2;
        }
    }
    for (Py_ssize_t i = count; i < room; i++)
        axis->start[i] = axis->start[count - 1];
    return 0;
}

static inline uint8_t clamped(int32_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* Four lines of RGB across, into two pairs: three planes of pixels of the one line beside pixels of the other. */
static void across_plain(const struct axis *axis, const uint8_t *const rows[4], uint8_t *const to[2])
{
    Py_ssize_t width = padded(axis->count);
    for (Py_ssize_t x = 0; x < axis->count; x++) {
        const int16_t *weight = axis->weight + x * axis->taps;
        int taps = axis->taps;
        while (taps > 1 && weight[taps - 1] == 0)
            taps--; /* so that nothing is read behind the line */
        for (int row = 0; row < 4; row++)
            for (int c = 0; c < 3; c++) {
                const uint8_t *at = rows[row] + 3 * axis->start[x] + c;
                int32_t sum = 1 << (axis->precision - 1);
                for (int j = 0; j < taps; j++)
                    sum += weight[j] * at[3 * j];
                to[row / 2][2 * (c * width + x) + row % 2] = clamped(sum >> axis->precision);
            }
    }
}

/* One plane of one line of the output, of `pairs` pairs of lines. */
EACH_CPU static void down_plain(const uint8_t *const *lines, Py_ssize_t offset, int pairs, const int16_t *weight,
                                int precision, Py_ssize_t width, uint8_t *out)
{
    for (Py_ssize_t x = 0; x < width; x += CHUNK) {
        int count = width - x < CHUNK ? (int)(width - x) : CHUNK;
        int32_t sum[CHUNK];
        for (int i = 0; i < count; i++)
            sum[i] = 1 << (precision - 1);
        for (int p = 0; p < pairs; p++) {
            const uint8_t *line = lines[p] + offset + 2 * x;
            for (int i = 0; i < count; i++)
                sum[i] += weight[2 * p] * line[2 * i] + weight[2 * p + 1] * line[2 * i + 1];
        }
        for (int i = 0; i < count; i++)
            out[x + i] = clamped(sum[i] >> precision);
    }
}

#ifdef X86
#define AVX2 FOR_CPU("avx2")

AVX2 INLINE __m256i two_weights(const int16_t *at)
{
    int32_t both;
    memcpy(&both, at, sizeof both);
    return _mm256_set1_epi32(both);
}

/* 16 bytes of each of two lines. */
AVX2 INLINE __m256i two_lines(const uint8_t *const rows[2], Py_ssize_t at)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows[0] + at))),
                                   _mm_loadu_si128((const __m128i *)(rows[1] + at)), 1);
}

/* Reads 16 bytes for each four taps. */
AVX2 INLINE void across_line(const struct axis *axis, const uint8_t *const rows[4], uint8_t *const to[2], int pairs)
{
    /* of 16 bytes the first two pixels, then the next two: red beside red, green beside green, as int16 */
    const __m256i spread[2] = {_mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                                0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1),
                               _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
                                                6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1)};
    const __m256i planes = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i half = _mm256_set1_epi32(1 << (axis->precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(axis->precision);
    Py_ssize_t plane = 2 * padded(axis->count);
    for (Py_ssize_t x = 0; x < axis->count; x += 4) {
        __m256i sum[2][4]; /* RGB0 of the one line and of the other, as int32 */
        for (int k = 0; k < 4; k++) {
            const int16_t *weight = axis->weight + (x + k) * 2 * pairs;
            Py_ssize_t at = 3 * (Py_ssize_t)axis->start[x + k];
            __m256i a = half, b = half;
            for (int p = 0; p < pairs; p += 2) {
                __m256i first = two_lines(rows, at + 6 * p), second = two_lines(rows + 2, at + 6 * p);
                for (int i = 0; i < 2 && p + i < pairs; i++) {
                    __m256i weights = two_weights(weight + 2 * (p + i));
                    a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_shuffle_epi8(first, spread[i]), weights));
                    b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_shuffle_epi8(second, spread[i]), weights));
                }
            }
            sum[0][k] = _mm256_sra_epi32(a, shift);
            sum[1][k] = _mm256_sra_epi32(b, shift);
        }
        for (int i = 0; i < 2; i++) {
            __m256i four = _mm256_packus_epi16(_mm256_packs_epi32(sum[i][0], sum[i][1]),
                                               _mm256_packs_epi32(sum[i][2], sum[i][3]));
            four = _mm256_shuffle_epi8(four, planes);
            __m128i upper = _mm256_castsi256_si128(four), lower = _mm256_extracti128_si256(four, 1);
            __m128i both = _mm_unpacklo_epi8(upper, lower);
            _mm_storel_epi64((__m128i *)(to[i] + 2 * x), both);
            _mm_storel_epi64((__m128i *)(to[i] + plane + 2 * x), _mm_unpackhi_epi64(both, both));
            _mm_storel_epi64((__m128i *)(to[i] + 2 * plane + 2 * x), _mm_unpackhi_epi8(upper, lower));
        }
    }
}

AVX2 static void across_avx2(const struct axis *axis, const uint8_t *const rows[4], uint8_t *const to[2])
{
    switch (axis->taps / 2) { /* a loop of known length is no loop */
    case 1: across_line(axis, rows, to, 1); break;
    case 2: across_line(axis, rows, to, 2); break;
    case 3: across_line(axis, rows, to, 3); break;
    case 4: across_line(axis, rows, to, 4); break;
    default: across_line(axis, rows, to, axis->taps / 2);
    }
}

AVX2 static void down_avx2(const uint8_t *const *lines, Py_ssize_t offset, int pairs, const int16_t *weight,
                           int precision, Py_ssize_t width, uint8_t *out)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m128i shift = _mm_cvtsi32_si128(precision);
    for (Py_ssize_t x = 0; x < width; x += STEP) {
        __m256i sum[4];
        for (int k = 0; k < 4; k++)
            sum[k] = _mm256_set1_epi32(1 << (precision - 1));
        for (int p = 0; p < pairs; p++) {
            const uint8_t *line = lines[p] + offset + 2 * x;
            __m256i weights = two_weights(weight + 2 * p);
            for (int k = 0; k < 4; k++) {
                __m256i pixels = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(line + 16 * k)));
                sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(pixels, weights));
            }
        }
        for (int k = 0; k < 4; k++)
            sum[k] = _mm256_sra_epi32(sum[k], shift);
        __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
        all = _mm256_permutevar8x32_epi32(all, order);
        if (width - x >= STEP) {
            _mm256_storeu_si256((__m256i *)(out + x), all);
        } else {
            uint8_t last[STEP];
            _mm256_storeu_si256((__m256i *)last, all);
            memcpy(out + x, last, width - x);
        }
    }
}
#define HAS_VECTORS __builtin_cpu_supports("avx2")
#define across_vectors across_avx2
#define down_vectors down_avx2
#else
#define HAS_VECTORS 0
#define across_vectors across_plain
#define down_vectors down_plain
#endif

/* The window, as `across` and `down` describe it. -1 out of memory. */
static int resize_window(const uint8_t *pixels, Py_ssize_t stride, const struct axis *across, const struct axis *down,
                         int vflip, int plain, uint8_t *out)
{
    plain = plain || !HAS_VECTORS;
    Py_ssize_t width = across->count, height = down->count, plane = 2 * padded(width), line = 3 * across->in;
    Py_ssize_t reach = line; /* bytes of a line that are read: beyond its end only what weighs nothing */
    for (Py_ssize_t x = 0; x < width && !plain; x++) {
        Py_ssize_t end = 3 * (Py_ssize_t)across->start[x] + 6 * ((across->taps / 2 - 1) & ~1) + 16;
        reach = end > reach ? end : reach;
    }
    int pairs = down->taps / 2, slots = pairs + 1; /* two pairs are made at a time */
    uint8_t *memory = calloc(1, pairs * sizeof(uint8_t *) + 64 + slots * 3 * plane + 4 * reach);
    if (memory == NULL)
        return -1;
    const uint8_t **lines = (const uint8_t **)memory;
    uint8_t *ring = memory + pairs * sizeof(uint8_t *);
    ring += -(uintptr_t)ring & 63;
    uint8_t *copies = ring + slots * 3 * plane;

    Py_ssize_t last = (down->in - 1) / 2, ready = 0; /* pairs of lines of the input */
    for (Py_ssize_t y = 0; y < height; y++) {
        Py_ssize_t first = down->start[y] / 2;
        for (ready = ready < first ? first : ready; ready < first + pairs && ready <= last; ready += 2) {
            const uint8_t *rows[4];
            uint8_t *to[2] = {ring + ready % slots * 3 * plane, ring + (ready + 1) % slots * 3 * plane};
            for (int i = 0; i < 4; i++) {
                Py_ssize_t row = 2 * ready + i < down->in ? 2 * ready + i : down->in - 1;
                rows[i] = pixels + row * stride;
                if (reach > line && (stride <= 0 || row * stride + reach > (down->in - 1) * stride + line))
                    rows[i] = memcpy(copies + i * reach, rows[i], line);
            }
            (plain ? across_plain : across_vectors)(across, rows, to);
        }
        for (int p = 0; p < pairs; p++) /* behind the last pair they weigh nothing */
            lines[p] = ring + (first + p < last ? first + p : last) % slots * 3 * plane;
        for (int c = 0; c < 3; c++)
            (plain ? down_plain : down_vectors)(lines, c * plane, pairs, down->weight + y * down->taps, down->precision,
                                             width, out + (c * height + (vflip ? height - 1 - y : y)) * width);
    }
    free(memory);
    return 0;
}

/* Whether sizes, factor and window make sense. */
static int set_axis(struct axis *axis, double factor)
{
    axis->scale = factor == 0 ? (double)axis->in / axis->out : 1.0 / factor;
    return axis->in >= 1 && axis->in <= LIMIT && axis->out >= 1 && axis->out <= LIMIT && axis->scale > 0 &&
           axis->scale <= LIMIT && axis->first >= 0 && axis->count >= 1 && axis->count <= axis->out &&
           axis->first <= axis->out - axis->count;
}

static PyObject *resize(PyObject *self, PyObject *args)
{
    PyObject *source;
    Py_buffer pixels, out;
    struct axis down = {0}, across = {0};
    double factors[2];
    int cubic, vflip, hflip, plain = 0;
    if (!PyArg_ParseTuple(args, "O(nn)(dd)p(nnnn)(pp)w*|p:resize", &source, &down.out, &across.out, factors, factors + 1,
                          &cubic, &down.first, &across.first, &down.count, &across.count, &vflip, &hflip, &out, &plain))
        return NULL;
    if (PyObject_GetBuffer(source, &pixels, PyBUF_STRIDES) < 0) {
        PyBuffer_Release(&out);
        return NULL;
    }
    int failed = -2;
    if (pixels.ndim == 3 && pixels.itemsize == 1 && pixels.shape[2] == 3 && pixels.strides[2] == 1 &&
        (pixels.shape[1] == 1 || pixels.strides[1] == 3)) {
        down.in = pixels.shape[0];
        across.in = pixels.shape[1];
        if (set_axis(&down, factors[0]) && set_axis(&across, factors[1]) &&
            out.len == 3 * down.count * across.count) {
            Py_BEGIN_ALLOW_THREADS
            failed = fill(&down, cubic, 2, 0);
            failed = failed ? failed : fill(&across, cubic, 1, hflip);
            failed = failed ? failed : resize_window(pixels.buf, pixels.strides[0], &across, &down, vflip, plain, out.buf);
            free(down.memory);
            free(across.memory);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&out);
    if (failed == -1)
        return PyErr_NoMemory();
    if (failed) {
        PyErr_SetString(PyExc_ValueError, "wants uint8 [H, W, 3] with lines of whole pixels, sizes and factors that "
                                          "fit, a window inside of the output, and room for it");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- a whole row: file, decoder, resize, colour, normalize ---- */

#ifndef _WIN32
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* What `_jpeg.decoder` holds: 0, or -1 where the file is left to others. */
typedef int decode_box(const uint8_t *data, ptrdiff_t size, const ptrdiff_t image[2], const ptrdiff_t box[4], uint8_t *out,
                       const uint8_t *slot, uint8_t *made, size_t room, size_t *length, int *outcome);

struct row {
    const char *path; /* of the file; NULL: `data` are its bytes */
    const uint8_t *data;
    Py_ssize_t size, image[2], box[4];
    struct axis down, across;
    int cubic, vflip, hflip, dtype, interleaved;
    const float *color, *numbers; /* NULL: no such step */
    uint8_t *memory, *out;        /* of `needed` bytes, and of the row */
    const uint8_t *slot;
    uint8_t *made; /* what is to be remembered of the file, `length` of `room` bytes */
    size_t room, length;
    int outcome;
};

static Py_ssize_t box_bytes(const struct row *r) { return 3 * r->box[2] * r->box[3]; }
static Py_ssize_t pixel_bytes(const struct row *r) { return 3 * r->down.count * r->across.count; }

/* Of what lies between the steps: the file and a byte more, the box, and the pixels twice. */
static Py_ssize_t needed(const struct row *r)
{
    return (r->path != NULL ? r->size + 1 : 0) + box_bytes(r) + 2 * pixel_bytes(r);
}

/* Whether a file has that many bytes, which are written. Not blocking: a pipe may have taken its place. */
static int read_file(const char *path, uint8_t *to, Py_ssize_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    Py_ssize_t found = 0, more = 1;
    while (found <= size && more != 0) {
        more = read(fd, to + found, (size_t)(size + 1 - found));
        if (more < 0 && errno != EINTR)
            break;
        found += more > 0 ? more : 0;
    }
    close(fd);
    return more >= 0 && found == size;
}

/* Whether it could be made like this. */
static int make_row(struct row *r, decode_box *decode)
{
    uint8_t *at = r->memory;
    if (r->path != NULL) {
        if (!read_file(r->path, at, r->size))
            return 0;
        r->data = at;
        at += r->size + 1;
    }
    if (decode(r->data, r->size, r->image, r->box, at, r->slot, r->made, r->room, &r->length, &r->outcome))
        return 0;
    uint8_t *resized = r->color != NULL || r->numbers != NULL ? at + box_bytes(r) : r->out;
    int failed = fill(&r->down, r->cubic, 2, 0) || fill(&r->across, r->cubic, 1, r->hflip) ||
                 resize_window(at, 3 * r->across.in, &r->across, &r->down, r->vflip, 0, resized);
    free(r->down.memory);
    free(r->across.memory);
    if (failed)
        return 0;
    Py_ssize_t width = r->across.count;
    struct image image = {resized, r->down.count, width, r->down.count * width, width, 1};
    if (r->color != NULL) {
        uint8_t *to = r->numbers != NULL ? resized + pixel_bytes(r) : r->out;
        recolor_image(&image, r->color, to);
        image.pixels = to;
    }
    if (r->numbers != NULL)
        normalize_image(&image, r->numbers, r->dtype, r->interleaved, r->out);
    return 1;
}

/* Whether the numbers make sense, and fit the memory. */
static int set_row(struct row *r, const double factors[2], const Py_buffer *color, const Py_buffer *numbers,
                   const Py_buffer *memory, const Py_buffer *out, Py_ssize_t number)
{
    r->down.in = r->box[2];
    r->across.in = r->box[3];
    r->color = color->buf;
    r->numbers = numbers->buf;
    r->memory = memory->buf;
    if (!set_axis(&r->down, factors[0]) || !set_axis(&r->across, factors[1]) || r->size < 0 ||
        r->size > PY_SSIZE_T_MAX / 2 || needed(r) > memory->len ||
        (r->color != NULL && color->len != 12 * (Py_ssize_t)sizeof(float)) ||
        (r->numbers != NULL && numbers->len != 6 * (Py_ssize_t)sizeof(float)) ||
        (r->numbers != NULL ? !has_dtype(r->dtype) : r->dtype != UINT8))
        return 0;
    Py_ssize_t bytes = pixel_bytes(r) * bytes_of(r->dtype);
    r->out = (uint8_t *)out->buf + (number < 0 ? 0 : number) * bytes;
    return number >= 0 && number < out->len / bytes;
}

static PyObject *row(PyObject *self, PyObject *args)
{
    PyObject *capsule, *file, *result = NULL;
    Py_buffer data = {0}, color, numbers, memory, out, slot;
    struct row r = {0};
    double factors[2];
    Py_ssize_t number;
    if (!PyArg_ParseTuple(args, "O(On)(nn)(nnnn)((nn)(dd)p)(nnnn)(pp)z*z*w*(w*nip)z*:row", &capsule, &file, &r.size,
                          &r.image[0], &r.image[1], &r.box[0], &r.box[1], &r.box[2], &r.box[3], &r.down.out,
                          &r.across.out, &factors[0], &factors[1], &r.cubic, &r.down.first, &r.across.first,
                          &r.down.count, &r.across.count, &r.vflip, &r.hflip, &color, &numbers, &memory, &out, &number,
                          &r.dtype, &r.interleaved, &slot))
        return NULL;
    decode_box *decode = (decode_box *)PyCapsule_GetPointer(capsule, "decode_box");
    char *path = NULL;
    if (r.size >= 0)
        r.path = PyBytes_AsStringAndSize(file, &path, NULL) ? NULL : path;
    else if (PyObject_GetBuffer(file, &data, PyBUF_SIMPLE) == 0) {
        r.data = data.buf;
        r.size = data.len;
    }
    r.slot = slot.buf;
    r.room = slot.buf == NULL ? 0 : (size_t)slot.len;
    int made = 0;
    if (PyErr_Occurred())
        ;
    else if (!set_row(&r, factors, &color, &numbers, &memory, &out, number))
        PyErr_SetString(PyExc_ValueError, "wants a file, sizes and factors that fit, a window inside of the output, numbers "
                                          "as float32, a dtype that there is, and enough memory");
    else if ((r.made = calloc(1, r.room + 1)) != NULL) {
        Py_BEGIN_ALLOW_THREADS
        made = make_row(&r, decode);
        Py_END_ALLOW_THREADS
    }
    if (made)
        result = Py_BuildValue("iy#", r.outcome, r.made, (Py_ssize_t)r.length);
    else if (!PyErr_Occurred()) {
        Py_INCREF(Py_None);
        result = Py_None;
    }
    free(r.made);
    Py_buffer *buffers[] = {&data, &color, &numbers, &memory, &out, &slot};
    for (int i = 0; i < 6; i++)
        PyBuffer_Release(buffers[i]); /* does nothing to what is None */
    return result;
}
#endif

static PyObject *markers(PyObject *self, PyObject *args)
{
    Py_buffer data;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "y*n:markers", &data, &start))
        return NULL;
    PyObject *found = PyList_New(0);
    const uint8_t *bytes = data.buf, *end = bytes + data.len, *at = bytes + (start < 0 ? 0 : start > data.len ? data.len : start);
    while (found != NULL && end - at > 1 && (at = memchr(at, 0xFF, (size_t)(end - at - 1))) != NULL) {
        if (at[1] != 0) {
            PyObject *place = PyLong_FromSsize_t(at - bytes);
            if (place == NULL || PyList_Append(found, place) < 0)
                Py_CLEAR(found);
            Py_XDECREF(place);
        }
        at++;
    }
    PyBuffer_Release(&data);
    return found;
}

enum { MAX_SEGMENTS = 4096, MAX_HEADER = 1 << 20, MAX_SCANS = 100 }; /* as in dali_imagenet.jpeg_markers */

/* Its `find_marker_anomaly`, which says what is wrong; here only whether anything is. */
static int usual(const uint8_t *bytes, ptrdiff_t size)
{
    ptrdiff_t at = 2, looked = 0;
    int frame = 0, restarts = 0, total = 0, scans = 0;
    while (size - at >= 2 && bytes[at] == 0xFF) {
        int marker = bytes[at + 1], length = size - at >= 4 ? bytes[at + 2] << 8 | bytes[at + 3] : 0;
        int application = marker >= 0xE0 && marker <= 0xEF, versioned = marker == 0xE0 || marker == 0xEE;
        int huffman = marker == 0xC0 || marker == 0xC1 || marker == 0xC2;
        int table = marker == 0xC4 || marker == 0xDA || marker == 0xDD;
        ptrdiff_t end = at + 2 + length;
        if (marker == 0xD9 && scans)
            return 1;
        if (!scans && !(application && !versioned) && marker != 0xFE)
            looked += end - at;
        if (++total > MAX_SEGMENTS || looked > MAX_HEADER)
            return 0;
        if (scans ? !(frame == 0xC2 && table) : !(huffman || table || application || marker == 0xDB || marker == 0xFE))
            return 0;
        if (length < (versioned ? 9 : 2) || end > size)
            return 0;
        if (huffman) {
            if (frame || length < 8 || (bytes[at + 9] != 1 && bytes[at + 9] != 3))
                return 0;
            frame = marker;
        } else if (marker == 0xDD) {
            restarts = 0;
            for (ptrdiff_t i = at + 4; i < end; i++)
                restarts |= bytes[i];
        }
        at = end;
        if (marker != 0xDA)
            continue;
        if (!frame || ++scans > MAX_SCANS)
            return 0;
        for (int count = 0;; at++) { /* to the marker behind the scan */
            const uint8_t *next = size - at > 1 ? memchr(bytes + at, 0xFF, (size_t)(size - at - 1)) : NULL;
            if (next == NULL)
                return 0;
            at = next - bytes;
            if (next[1] == 0)
                continue;
            if (next[1] < 0xD0 || next[1] > 0xD7)
                break;
            if (!restarts || next[1] != 0xD0 + count++ % 8)
                return 0;
        }
    }
    return 0;
}

static PyObject *usual_markers(PyObject *self, PyObject *argument)
{
    Py_buffer data;
    int found;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    found = usual(data.buf, data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyBool_FromLong(found);
}

static PyMethodDef methods[] = {
    {"usual_markers", usual_markers, METH_O,
     "usual_markers(data) -> bool\n\nWhether `jpeg_markers.find_marker_anomaly` finds nothing. Other threads run meanwhile."},
    {"markers", markers, METH_VARARGS,
     "markers(data, start) -> list[int]\n\nWhere, from `start` on, 0xFF is followed by anything but 0."},
    {"recolor", recolor, METH_VARARGS,
     "recolor(pixels, matrix, out)\n\n"
     "out = round(clamp(matrix @ (r, g, b, 1))): pixels uint8 [3, H, W] with any strides, matrix float32 [3, 4],\n"
     "out uint8 [3, H, W], contiguous."},
    {"normalize", normalize, METH_VARARGS,
     "normalize(pixels, numbers, out, dtype=0, interleaved=False)\n\n"
     "out = pixels * scale + bias: pixels uint8 [3, H, W] with any strides, numbers float32 [6] (three scales, three\n"
     "biases), out [3, H, W], or [H, W, 3] where interleaved, contiguous, of float32 (dtype 0), bfloat16 (1) or float16\n"
     "(2, with AVX2 or NEON alone)."},
    {"resize", resize, METH_VARARGS,
     "resize(pixels, size, factors, cubic, window, flips, out, plain=False)\n\n"
     "A window of the antialiased bilinear or bicubic resize that torch gives, flipped: pixels uint8 [H, W, 3], lines\n"
     "any number of bytes apart; size: height and width that they are resized to; factors: by how much, or 0 where the\n"
     "sizes say it; window: top, left, height, width; flips: vertical, horizontal; out uint8 [3, height, width],\n"
     "contiguous. plain: without AVX2."},
#ifndef _WIN32
    {"row", row, METH_VARARGS,
     "row(decoder, (file, bytes), size, box, (resized, factors, cubic), window, flips, matrix, numbers, memory,\n"
     "    (out, number, dtype, interleaved), slot) -> (outcome, record) or None\n\n"
     "Reads the file of that name and so many bytes or, where they are -1, takes it for the content; decodes the box with\n"
     "`_jpeg.decoder`, and does what `resize`, `recolor` (matrix: None for none) and `normalize` do, into one of the images [3, H, W], or\n"
     "[H, W, 3] where interleaved, of a contiguous batch; without `numbers` it is uint8, dtype 3. `memory`: a byte, the file,\n"
     "the box and twice the image. `slot` (None: none) and the result are those of `_jpeg.decode_region`. None: the row\n"
     "could not be made, and holds anything; why, the others say. Other threads run meanwhile."},
#endif
    {NULL, NULL, 0, NULL}};

/* The module's docstring: setup.py gives the hash of this text, which Python compares. */
#ifndef SOURCE
#define SOURCE NULL
#endif
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_image_kernels", SOURCE, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__image_kernels(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "float16", HAS_FLOAT16) < 0)
        Py_CLEAR(made);
    return made;
}
