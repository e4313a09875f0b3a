/* Pillow's warps, filters and enhancements on planar memory: uint8 [3, height, width], contiguous.

   The bytes are Pillow's (torchvision's where it says so): the same arithmetic in the same order, where Pillow takes
   one pixel at a time through function pointers and torch makes many passes. pixel_ops.py, postprocess.py and
   normalize_erase.py have the Python form of everything, which takes over where this module was not built. Arguments
   are checked there; here only against memory. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../_cpu.h"

typedef uint8_t u8;

#define LIMIT ((ptrdiff_t)INT32_MAX / 16) /* of pixels, and of a side */
#define CHUNK 256 /* pixels worked on at a time, in memory on the stack */
#define BORDER 2  /* pixels repeated around a copy: a cubic reaches two beyond an image */
#define BORDERED(height, width) (((height) + 2 * BORDER) * ((width) + 2 * BORDER))
/* Bytes of scratch memory that everything here makes do with, aligned to 4. */
#define ROOM(height, width) (9 * BORDERED(height, width))

static ptrdiff_t clip(ptrdiff_t i, ptrdiff_t size) { return i < 0 ? 0 : i < size ? i : size - 1; }

/* Exchange the upper part of one word with the lower of another, by parts of `shift` bits. */
static inline void swap(uint64_t *a, uint64_t *b, int shift, uint64_t low)
{
    uint64_t change = (*a >> shift ^ *b) & low;
    *b ^= change;
    *a ^= change << shift;
}

/* [height, width] -> [width, height], in blocks of 8 x 8 that are words of 8 bytes. */
static void transpose(const u8 *in, ptrdiff_t height, ptrdiff_t width, u8 *out)
{
    for (ptrdiff_t y = 0; y < height; y += 8)
        for (ptrdiff_t x = 0; x < width; x += 8) {
            if (y + 8 > height || x + 8 > width) {
                for (ptrdiff_t i = y; i < height && i < y + 8; i++)
                    for (ptrdiff_t j = x; j < width && j < x + 8; j++)
                        out[j * height + i] = in[i * width + j];
                continue;
            }
            uint64_t r[8];
            for (int i = 0; i < 8; i++)
                memcpy(r + i, in + (y + i) * width + x, 8);
            for (int i = 0; i < 8; i += 2)
                swap(r + i, r + i + 1, 8, 0x00ff00ff00ff00ff);
            for (int i = 0; i < 4; i++)
                swap(r + i + (i & 2), r + i + (i & 2) + 2, 16, 0x0000ffff0000ffff);
            for (int i = 0; i < 4; i++)
                swap(r + i, r + i + 4, 32, 0x00000000ffffffff);
            for (int j = 0; j < 8; j++)
                memcpy(out + (x + j) * height + y, r + j, 8);
        }
}

/* ---- affine transforms, bilinear and bicubic: Image.transform and Image.rotate ---- */

struct warp {
    const u8 *in;
    u8 *out, *room;
    ptrdiff_t height, width;
    double matrix[6]; /* output pixel to input pixel */
    u8 fill[3];       /* outside of the image */
    int cubic;
};

#define LINEAR(a, b, d) ((a) + ((b) - (a)) * (d))
#define CUBIC(a, b, c, e, d) \
    ((b) + (d) * ((-(a) + (c)) + (d) * ((2 * ((a) - (b)) + (c) - (e)) + (d) * (-(a) + (b) - (c) + (e)))))

/* The source (u, v) of n pixels of row y from x on. */
EACH_CPU static void sources(const double *m, ptrdiff_t x, ptrdiff_t y, ptrdiff_t n, double *restrict u, double *restrict v)
{
    const double yin = (double)y + 0.5;
    for (ptrdiff_t i = 0; i < n; i++) {
        double xin = (double)(int)(x + i) + 0.5;
        u[i] = m[0] * xin + m[1] * yin + m[2];
        v[i] = m[3] * xin + m[4] * yin + m[5];
    }
}

/* For n sources inside of the image: `at` is the place of the first of the 4 x 4 pixels around each, in a copy with a
   border; u and v become the fractions. Returns whether the places follow one another. */
EACH_CPU static int places(ptrdiff_t stride, ptrdiff_t n, double *restrict u, double *restrict v, int *restrict at)
{
    int apart = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double column = (double)(int)(u[i] -= 0.5), row = (double)(int)(v[i] -= 0.5);
        column -= u[i] < column ? 1.0 : 0.0; /* -0.5 at least: floor */
        row -= v[i] < row ? 1.0 : 0.0;
        u[i] -= column;
        v[i] -= row;
        at[i] = ((int)row + BORDER - 1) * (int)stride + (int)column + BORDER - 1;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        apart |= at[i] - at[0] - (int)i;
    return !apart;
}

static inline u8 cut(double value)
{
    int whole = (int)value;
    return (u8)(whole < 0 ? 0 : whole > 255 ? 255 : whole);
}

/* The four pixels of a row from p on are one word. */
static inline uint32_t four(const u8 *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline double across(const u8 *p, double d)
{
    uint32_t w = four(p);
    int a = w & 255, b = w >> 8 & 255, c = w >> 16 & 255, e = w >> 24;
    return CUBIC(a, b, c, e, d);
}

static inline double across_two(const u8 *p, double d)
{
    uint32_t w = four(p);
    int b = w >> 8 & 255, c = w >> 16 & 255;
    return LINEAR(b, c, d);
}

EACH_CPU static void cubic(const u8 *restrict p, ptrdiff_t stride, const int *restrict at, const double *restrict dx,
                           const double *restrict dy, ptrdiff_t n, u8 *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const u8 *q = p + at[i];
        double a = across(q, dx[i]), b = across(q + stride, dx[i]);
        double c = across(q + 2 * stride, dx[i]), e = across(q + 3 * stride, dx[i]);
        out[i] = cut(CUBIC(a, b, c, e, dy[i]));
    }
}

EACH_CPU static void linear(const u8 *restrict p, ptrdiff_t stride, const int *restrict at, const double *restrict dx,
                            const double *restrict dy, ptrdiff_t n, u8 *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const u8 *q = p + at[i] + stride;
        double a = across_two(q, dx[i]), b = across_two(q + stride, dx[i]);
        out[i] = cut(LINEAR(a, b, dy[i]));
    }
}

/* The same where dy is 0 and the places follow one another, from p on. */
EACH_CPU static void cubic_along(const u8 *restrict p, const double *restrict dx, ptrdiff_t n, u8 *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        int a = p[i], b = p[i + 1], c = p[i + 2], e = p[i + 3];
        out[i] = cut(CUBIC(a, b, c, e, dx[i]));
    }
}

EACH_CPU static void linear_along(const u8 *restrict p, const double *restrict dx, ptrdiff_t n, u8 *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        int b = p[i + 1], c = p[i + 2];
        out[i] = cut(LINEAR(b, c, dx[i]));
    }
}

static void copy_with_border(const u8 *in, ptrdiff_t height, ptrdiff_t width, u8 *copy)
{
    for (ptrdiff_t y = -BORDER; y < height + BORDER; y++, copy += width + 2 * BORDER) {
        const u8 *row = in + clip(y, height) * width;
        memset(copy, row[0], BORDER);
        memcpy(copy + BORDER, row, (size_t)width);
        memset(copy + BORDER + width, row[width - 1], BORDER);
    }
}

/* False for NaN. */
#define INSIDE(i) (u[i] >= 0.0 && u[i] < (double)width && v[i] >= 0.0 && v[i] < (double)height)

static void warp_rows(const struct warp *w)
{
    const ptrdiff_t height = w->height, width = w->width, plane = height * width, stride = width + 2 * BORDER;
    const double *m = w->matrix;
    const int along = m[3] == 0.0 && m[4] == 1.0 && m[5] == 0.0; /* v is the row itself */
    for (int c = 0; c < 3; c++)
        copy_with_border(w->in + c * plane, height, width, w->room + c * BORDERED(height, width));
    for (ptrdiff_t y = 0; y < height; y++)
        for (ptrdiff_t x = 0; x < width; x += CHUNK) {
            double u[CHUNK], v[CHUNK];
            int at[CHUNK];
            ptrdiff_t n = width - x < CHUNK ? width - x : CHUNK, first = 0, end = n;
            sources(m, x, y, n, u, v);
            /* u and v are monotone, so that what lies inside is one run. */
            while (first < end && !INSIDE(first))
                first++;
            while (end > first && !INSIDE(end - 1))
                end--;
            const double *dx = u + first, *dy = v + first;
            const int follow = places(stride, end - first, u + first, v + first, at) && along;
            for (int c = 0; c < 3; c++) {
                const u8 *p = w->room + c * BORDERED(height, width);
                u8 *out = w->out + c * plane + y * width + x;
                memset(out, w->fill[c], (size_t)first);
                memset(out + end, w->fill[c], (size_t)(n - end));
                if (first == end)
                    continue;
                if (follow)
                    (w->cubic ? cubic_along : linear_along)(p + stride + at[0], dx, end - first, out + first);
                else
                    (w->cubic ? cubic : linear)(p, stride, at, dx, dy, end - first, out + first);
            }
        }
}

static void warp(const struct warp *w)
{
    const ptrdiff_t height = w->height, width = w->width, plane = height * width;
    const double *m = w->matrix;
    if (!(m[0] == 1.0 && m[1] == 0.0 && m[2] == 0.0)) {
        warp_rows(w);
        return;
    }
    /* Up or down only: along the rows of the transposed image. */
    u8 *in = w->room + 3 * BORDERED(height, width), *out = in + 3 * plane;
    struct warp turned = *w;
    turned.in = in, turned.out = out;
    turned.height = width, turned.width = height;
    memcpy(turned.matrix, (const double[]){m[4], m[3], m[5], m[1], m[0], m[2]}, sizeof turned.matrix);
    for (int c = 0; c < 3; c++)
        transpose(w->in + c * plane, height, width, in + c * plane);
    warp_rows(&turned);
    for (int c = 0; c < 3; c++)
        transpose(out + c * plane, width, height, w->out + c * plane);
}

/* ---- Gaussian blur: three box blurs along each axis ---- */

/* One box blur down the columns. Pixels within `radius` weigh `whole`, the next on both sides `part`, of 1 << 24. */
EACH_CPU static void box_blur(const u8 *in, ptrdiff_t height, ptrdiff_t width, float size, uint32_t *restrict sum,
                              u8 *restrict out)
{
    const ptrdiff_t radius = (ptrdiff_t)size;
    const uint32_t whole = (uint32_t)((float)(1 << 24) / (size * 2 + 1));
    const uint32_t part = ((1 << 24) - (uint32_t)(radius * 2 + 1) * whole) / 2;
    for (ptrdiff_t x = 0; x < width; x++)
        sum[x] = in[x] * (uint32_t)(radius + 1);
    for (ptrdiff_t y = 0; y < radius; y++)
        for (ptrdiff_t x = 0; x < width; x++)
            sum[x] += in[clip(y, height) * width + x];
    for (ptrdiff_t y = 0; y < height; y++, out += width) {
        const u8 *before = in + clip(y - radius - 1, height) * width;
        const u8 *last = in + clip(y + radius, height) * width, *after = in + clip(y + radius + 1, height) * width;
        for (ptrdiff_t x = 0; x < width; x++) {
            sum[x] += (uint32_t)last[x] - before[x];
            out[x] = (u8)((sum[x] * whole + (uint32_t)(before[x] + after[x]) * part + (1 << 23)) >> 24);
        }
    }
}

/* The box whose threefold blur has the standard deviation `radius`: Gwosdek et al. 2011, equations 7, 11 and 14. */
static float box_size(float radius)
{
    float variance = radius * radius / 3, length = (float)sqrt(12.0 * variance + 1.0);
    float l = (float)floor((length - 1.0) / 2.0), a = (2 * l + 1) * (l * (l + 1) - 3 * variance);
    a /= 6 * (variance - (l + 1) * (l + 1));
    return l + a;
}

static void gaussian_blur(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t plane = height * width;
    const float size = box_size((float)arg);
    u8 *a = room, *b = a + plane;
    uint32_t *sum = (uint32_t *)room + (2 * plane + 3) / 4;
    for (int c = 0; c < 3; c++, in += plane, out += plane) {
        transpose(in, height, width, a);
        box_blur(a, width, height, size, sum, b);
        box_blur(b, width, height, size, sum, a);
        box_blur(a, width, height, size, sum, b);
        transpose(b, width, height, a);
        box_blur(a, height, width, size, sum, b);
        box_blur(b, height, width, size, sum, a);
        box_blur(a, height, width, size, sum, out);
    }
}

/* ---- eight floats at a time ---- */

#ifdef X86
#define HAS_EIGHT (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define EIGHT FOR_CPU("avx2,fma")
typedef __m256 eight;
EIGHT INLINE eight load(const float *from) { return _mm256_loadu_ps(from); }
EIGHT INLINE void store(float *to, eight x) { _mm256_storeu_ps(to, x); }
EIGHT INLINE eight all(float x) { return _mm256_set1_ps(x); }
EIGHT INLINE eight add(eight sum, eight x, eight factor) { return _mm256_fmadd_ps(x, factor, sum); }

/* Rounded to whole numbers, half to even. */
EIGHT INLINE void store_bytes(u8 *to, eight x)
{
    const __m256i whole = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}
#elif defined(NEON)
#define HAS_EIGHT 1
#define EIGHT
typedef float32x4x2_t eight;
INLINE eight load(const float *from) { return (eight){{vld1q_f32(from), vld1q_f32(from + 4)}}; }
INLINE eight all(float x) { return (eight){{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
INLINE void store(float *to, eight x)
{
    vst1q_f32(to, x.val[0]);
    vst1q_f32(to + 4, x.val[1]);
}
INLINE eight add(eight sum, eight x, eight factor)
{
    return (eight){{vfmaq_f32(sum.val[0], x.val[0], factor.val[0]), vfmaq_f32(sum.val[1], x.val[1], factor.val[1])}};
}
INLINE void store_bytes(u8 *to, eight x)
{
    const int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(x.val[0])), high = vqmovn_s32(vcvtnq_s32_f32(x.val[1]));
    vst1_u8(to, vqmovun_s16(vcombine_s16(low, high)));
}
#else
#define HAS_EIGHT 0 /* a fused addition would be a function of the C library */
#endif

/* ---- convolution, as torch's conv2d with groups=3 adds up: one kernel for all planes, row by row, fused ---- */

#define WIDE 16   /* pixels of a row at a time, */
#define HIGH 4    /* and rows, that share what is loaded; their sums stay in registers */
#define WIDEST 63 /* kernel */

#ifdef EIGHT
/* `kernel` has HIGH - 1 rows of zeros above and below: they change no sum. */
EIGHT static void convolve_rows(const float *restrict in, ptrdiff_t stride, ptrdiff_t width, const float *kernel, int size,
                                float *restrict out)
{
    for (ptrdiff_t x = 0; x < width; x += WIDE) {
        if (x > width - WIDE)
            x = width - WIDE; /* the last ones once more */
        eight sum[HIGH][2];
        for (int i = 0; i < HIGH; i++)
            sum[i][0] = sum[i][1] = all(0);
        for (int row = 0; row < size + HIGH - 1; row++)
            for (int column = 0; column < size; column++) {
                const float *from = in + row * stride + x + column;
                const eight left = load(from), right = load(from + 8);
                for (int i = 0; i < HIGH; i++) {
                    const eight factor = all(kernel[(row - i + HIGH - 1) * size + column]);
                    sum[i][0] = add(sum[i][0], left, factor);
                    sum[i][1] = add(sum[i][1], right, factor);
                }
            }
        for (int i = 0; i < HIGH; i++) {
            store(out + i * width + x, sum[i][0]);
            store(out + i * width + x + 8, sum[i][1]);
        }
    }
}

static void convolve(const float *in, const float *kernel, float *out, ptrdiff_t height, ptrdiff_t width, int size)
{
    float padded[(WIDEST + 2 * (HIGH - 1)) * WIDEST];
    const ptrdiff_t stride = width + size - 1, margin = (HIGH - 1) * size;
    memset(padded, 0, sizeof padded);
    memcpy(padded + margin, kernel, sizeof(float) * (size_t)(size * size));
    for (int c = 0; c < 3; c++, in += stride * (height + size - 1), out += height * width)
        for (ptrdiff_t y = 0; y < height; y += HIGH) {
            if (y > height - HIGH)
                y = height - HIGH;
            convolve_rows(in + y * stride, stride, width, padded, size, out + y * width);
        }
}
#endif

/* ---- torchvision's Gaussian blur: the bytes of `convolve`, in two passes ----

   The reference is `convolve`'s sum: its n = size * size products, row by row, each fused with its addition. Two passes,
   down and then across with `line`, whose outer product the kernel is, give nearly the same in 2 * size products. Which
   of the two is rounded to a whole number matters only where the value is so near to a half that they can lie on both
   sides of it; there, and in the pixels beside it that come along for nothing, the reference is summed. How near is
   near follows from the weights alone, `bounds`:

   Pixels are 0..255, weights >= 0. In a sum r[m] = fl(r[m-1] + k[m] * p[m]), rounded to nearest,
     - a step is off by at most half a unit in the last place of what it rounds, which is at most 255 * (k[1] + .. +
       k[m]) + (what the steps before were off by);
     - nor by more than k[m] * p[m], for r[m-1] is a float and would be nearer;
     - r never falls, so that half a unit in the last place of the result bounds each step, too.
   `drift` adds up the smallest of these over a sum's steps. With line[i] = 0 where it is tiny (the two passes leave
   those out), |two passes - reference| is then at most
     drift(kernel, 255)                                          the reference from the exact sum with `kernel`,
     + 255 * sum |line[i] * line[j] - kernel[i, j]|              which is from the exact sum with `line`,
     + drift(line, 255) * sum line                               the first pass, carried through the second,
     + drift(line, 255 * sum line + drift(line, 255))            and the second pass.
   The first depends on the result by its third bound: one number for each binade [2**e, 2**(e+1)) of 1..255 (below 1:
   that of [1, 2)) in which the two passes' value lies. The reference may lie in the next one, but only where the border,
   a whole number, is nearer than the bound: no half is near then, for the bounds are below 1/4 (else all is summed
   again). The numbers are computed in double, with a billionth more for its rounding, and for numbers below 2**-126
   that a processor may be told to take for 0. */

#define STRIP 32                                                 /* pixels of a line at a time */
#define BLOCKS 8                                                 /* runs of 8 pixels that are summed again together */
#define EIGHTS(n) (((n) + 7) / 8 * 8)
#define STRIPS(n) (((n) + STRIP - 1) / STRIP * STRIP)
#define SCALE 0x1p60f
#define TINY 1e-12f                                              /* weights that the two passes leave out */
#define BINADES 8                                                /* of 1..255 */
/* Bytes of scratch memory, aligned to 4: an image's plane and two lines, as floats with a margin. */
#define BLUR_ROOM(height, width, size) (4 * ((height) + 2) * ((width) + (size) + 44) + 32)

/* Half a unit in the last place of the float that x > 0 is rounded to: x's power of two, by 2**-24. */
static inline double half_unit(double x)
{
    uint64_t word;
    memcpy(&word, &x, 8);
    word &= 0x7ff0000000000000u;
    memcpy(&x, &word, 8);
    return x * 0x1p-24;
}

/* How far n such steps with values of 0..top can be from the exact sum, for results of each binade and below. */
static void drift(const float *weight, int n, double top, double off[BINADES])
{
    double sum = 0, all = 0;
    for (int e = 0; e < BINADES; e++)
        off[e] = 0;
    for (int i = 0; i < n; i++) {
        const double term = top * weight[i];
        if (term == 0)
            continue;
        sum += term;
        const double unit = half_unit(sum + all), step = unit < term ? unit : term;
        all += step;
        for (int e = 0; e < BINADES; e++) {
            const double most = 0x1p-24 * (1 << e);
            off[e] += step < most ? step : most;
        }
    }
}

/* How far the two passes can be from the reference, where their value lies in each binade. */
static void bounds(const float *line, const float *kernel, int size, float bound[BINADES])
{
    double whole = 0, apart = 0, lowest = 0, first[BINADES], second[BINADES], reference[BINADES];
    for (int i = 0; i < size; i++) {
        whole += line[i];
        lowest = line[i] < lowest ? line[i] : lowest;
        for (int j = 0; j < size; j++) {
            apart += fabs((double)line[i] * line[j] - kernel[i * size + j]);
            lowest = kernel[i * size + j] < lowest ? kernel[i * size + j] : lowest;
        }
    }
    drift(line, size, 255, first);
    drift(line, size, 255 * whole + first[BINADES - 1], second);
    drift(kernel, size * size, 255, reference);
    for (int e = 0; e < BINADES; e++) {
        double sum = reference[e] + 255 * apart + first[BINADES - 1] * whole + second[BINADES - 1];
        sum = sum * (1 + 1e-9) + 1e-9;
        bound[e] = lowest >= 0 && sum < 0.25 ? nextafterf((float)sum, 1.0f) : 1.0f; /* NaN, too */
    }
}

#ifdef EIGHT
struct blur {
    const float *line, *kernel; /* kernel: SCALE times as large, which no rounding notices: a processor is slow below
                                   2**-126, and multiples of 2**-149 are added exactly there */
    float *plane; /* the first pixel, in rows with a margin of `margin` to the left and right */
    u8 *out;
    float near[BINADES]; /* from here on a distance from the next whole number is too near to a half */
    ptrdiff_t height, width, stride, waiting, again;
    int size, from, to;              /* of `line` only [from, to) is not tiny */
    ptrdiff_t y[BLOCKS], x[BLOCKS];       /* runs of 8 pixels that wait to be summed again */
};

/* Where the row or column i of n is, for i in (-n, 2 * n - 1): borders are mirrored. */
static inline ptrdiff_t mirrored(ptrdiff_t i, ptrdiff_t n) { return i < 0 ? -i : i < n ? i : 2 * n - 2 - i; }

/* What waits, in the reference's order. Independent sums, so that none has to wait for its own last addition. */
EIGHT static void sum_again(struct blur *b)
{
    const int radius = b->size / 2;
    eight sum[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        sum[i] = all(0);
        if (i >= b->waiting) /* with the first once more */
            b->y[i] = b->y[0], b->x[i] = b->x[0];
    }
    for (int row = 0; row < b->size; row++) {
        const float *at[BLOCKS];
        for (int i = 0; i < BLOCKS; i++)
            at[i] = b->plane + mirrored(b->y[i] + row - radius, b->height) * b->stride + b->x[i] - radius;
        for (int column = 0; column < b->size; column++) {
            const float weight = b->kernel[row * b->size + column];
            if (weight == 0)
                continue; /* changes no sum */
            const eight factor = all(weight);
            for (int i = 0; i < BLOCKS; i++)
                sum[i] = add(sum[i], load(at[i] + column), factor);
        }
    }
    for (int i = 0; i < b->waiting; i++) /* a multiplication by a power of two, added to nothing */
        store_bytes(b->out + b->y[i] * b->width + b->x[i], add(all(0), sum[i], all(1 / SCALE)));
    b->again += b->waiting;
    b->waiting = 0;
}

/* STRIP sums, rounded to bytes; a bit for each that is too near to a half. */
#ifdef X86
EIGHT INLINE uint32_t round_strip(const float limits[BINADES], const eight sum[4], u8 *to)
{
    const __m256 near = load(limits), sign = all(-0.0f);
    const __m256i one = _mm256_set1_epi32(127), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i whole[4];
    uint32_t ties = 0;
    for (int k = 0; k < 4; k++) {
        whole[k] = _mm256_cvtps_epi32(sum[k]);
        const __m256 distance = _mm256_andnot_ps(sign, _mm256_sub_ps(sum[k], _mm256_cvtepi32_ps(whole[k])));
        __m256i binade = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(sum[k]), 23), one);
        binade = _mm256_max_epi32(binade, _mm256_setzero_si256());
        const __m256 limit = _mm256_permutevar8x32_ps(near, binade);
        ties |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(distance, limit, _CMP_NLT_UQ)) << (8 * k);
    }
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256((__m256i *)to, _mm256_permutevar8x32_epi32(bytes, order));
    return ties;
}
#else
INLINE uint32_t round_strip(const float limits[BINADES], const eight sum[4], u8 *to)
{
    const uint8x16x2_t near = {{vreinterpretq_u8_f32(vld1q_f32(limits)), vreinterpretq_u8_f32(vld1q_f32(limits + 4))}};
    const uint32x4_t bits = {1, 2, 4, 8};
    uint32_t ties = 0;
    for (int k = 0; k < 8; k++) {
        const float32x4_t x = sum[k / 2].val[k % 2];
        const float32x4_t distance = vabdq_f32(x, vcvtq_f32_s32(vcvtnq_s32_f32(x)));
        int32x4_t binade = vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 23)), vdupq_n_s32(127));
        binade = vmaxq_s32(binade, vdupq_n_s32(0));
        const uint32x4_t place = vmlaq_n_u32(vdupq_n_u32(0x03020100), vreinterpretq_u32_s32(binade), 0x04040404);
        const float32x4_t limit = vreinterpretq_f32_u8(vqtbl2q_u8(near, vreinterpretq_u8_u32(place)));
        ties |= vaddvq_u32(vbicq_u32(bits, vcltq_f32(distance, limit))) << (4 * k);
    }
    for (int k = 0; k < 4; k++)
        store_bytes(to + 8 * k, sum[k]);
    return ties;
}
#endif

/* STRIP pixels of row y from x on, as the two passes have them; and where they are too near to a half. */
EIGHT static inline void store_strip(struct blur *b, ptrdiff_t y, ptrdiff_t x, const eight sum[4])
{
    u8 *out = b->out + y * b->width + x;
    uint32_t ties;
    if (b->width - x >= STRIP)
        ties = round_strip(b->near, sum, out);
    else {
        u8 last[STRIP];
        ties = round_strip(b->near, sum, last) & ((1u << (b->width - x)) - 1);
        memcpy(out, last, (size_t)(b->width - x));
    }
    while (ties) {
        const int first = __builtin_ctz(ties);
        ties &= first < 24 ? ~(0xffu << first) : 0;
        b->y[b->waiting] = y;
        b->x[b->waiting] = x + first < b->width - 8 ? x + first : b->width - 8;
        if (++b->waiting == BLOCKS) /* its pixels are stored over these */
            sum_again(b);
    }
}

/* Rows y and y + 1 together: so many independent sums hide how long one addition takes. */
EIGHT static void blur_rows(struct blur *b, ptrdiff_t y, float *lines[2])
{
    const ptrdiff_t radius = b->size / 2, width = b->width;
    const float *rows[WIDEST + 1], *weight = b->line;
    const int from = b->from, to = b->to;
    for (int i = from; i <= to; i++)
        rows[i] = b->plane + mirrored(y + i - radius, b->height) * b->stride;
    for (ptrdiff_t x = 0; x < width; x += STRIP) { /* down */
        eight sum[2][4];
        for (int k = 0; k < 4; k++)
            sum[0][k] = sum[1][k] = all(0);
        for (int i = from; i <= to; i++) {
            const eight here = all(weight[i]), below = all(weight[i - 1]);
            for (int k = 0; k < 4; k++) {
                const eight pixels = load(rows[i] + x + 8 * k);
                sum[0][k] = add(sum[0][k], pixels, here);
                sum[1][k] = add(sum[1][k], pixels, below);
            }
        }
        for (int k = 0; k < 4; k++) {
            store(lines[0] + x + 8 * k, sum[0][k]);
            store(lines[1] + x + 8 * k, sum[1][k]);
        }
    }
    for (int n = 0; n < 2; n++)
        for (ptrdiff_t i = 1; i <= radius; i++) {
            lines[n][-i] = lines[n][i];
            lines[n][width - 1 + i] = lines[n][width - 1 - i];
        }
    for (ptrdiff_t x = 0; x < width; x += STRIP) { /* across */
        eight sum[2][4];
        for (int k = 0; k < 4; k++)
            sum[0][k] = sum[1][k] = all(0);
        const float *first = lines[0] + x - radius, *second = lines[1] + x - radius;
        for (int i = from; i < to; i++) {
            const eight factor = all(weight[i]);
            for (int k = 0; k < 4; k++) {
                sum[0][k] = add(sum[0][k], load(first + i + 8 * k), factor);
                sum[1][k] = add(sum[1][k], load(second + i + 8 * k), factor);
            }
        }
        store_strip(b, y, x, sum[0]);
        store_strip(b, y + 1, x, sum[1]);
    }
}

EIGHT static void blur_plane(struct blur *b, const u8 *in, float *lines[2])
{
    const ptrdiff_t radius = b->size / 2, rest = STRIPS(b->width) - b->width;
    for (ptrdiff_t y = 0; y < b->height; y++, in += b->width) {
        float *row = b->plane + y * b->stride;
        for (ptrdiff_t x = 0; x < b->width; x++)
            row[x] = in[x];
        memset(row + b->width, 0, sizeof(float) * (size_t)rest); /* is computed with, and lost */
        for (ptrdiff_t i = 1; i <= radius; i++) {
            row[-i] = row[i];
            row[b->width - 1 + i] = row[b->width - 1 - i];
        }
    }
    for (ptrdiff_t y = 0; y < b->height; y += 2)
        blur_rows(b, y < b->height - 1 ? y : y - 1, lines); /* the last ones perhaps once more */
    if (b->waiting)
        sum_again(b);
}

/* Returns how many runs of 8 pixels were summed again. `slack` scales the bounds: 1, but to see what they are for. */
static ptrdiff_t blur(const u8 *in, const float *line, const float *kernel, int size, ptrdiff_t height, ptrdiff_t width, float slack,
                 float *room, u8 *out)
{
    const ptrdiff_t radius = size / 2, margin = EIGHTS(radius);
    float scaled[WIDEST * WIDEST];
    for (int i = 0; i < size * size; i++)
        scaled[i] = SCALE * kernel[i];
    struct blur b = {.kernel = scaled, .out = out, .height = height, .width = width, .size = size};
    b.stride = STRIPS(width) + 2 * margin;
    room += -((uintptr_t)room / 4) & 7;
    float trimmed[WIDEST + 2] = {0}, *lines[2]; /* trimmed: with a zero before and behind */
    for (int n = 0; n < 2; n++) {
        lines[n] = room + (height + n) * b.stride + margin;
        memset(lines[n] - margin, 0, sizeof(float) * (size_t)b.stride);
    }
    for (b.from = 0; b.from < size && !(line[b.from] > TINY); b.from++)
        ;
    for (b.to = size; b.to > b.from && !(line[b.to - 1] > TINY); b.to--)
        ;
    b.line = memcpy(trimmed + 1, line, sizeof(float) * (size_t)size);
    memset(trimmed, 0, sizeof(float) * (size_t)(b.from + 1));
    memset(trimmed + 1 + b.to, 0, sizeof(float) * (size_t)(size - b.to + 1));
    bounds(b.line, kernel, size, b.near);
    for (int e = 0; e < BINADES; e++)
        b.near[e] = nextafterf(0.5f - slack * b.near[e], -1.0f);
    b.plane = room + margin;
    for (int c = 0; c < 3; c++, in += height * width, b.out += height * width)
        blur_plane(&b, in, lines);
    return b.again;
}
#endif

/* ---- tables ---- */

static void count(const u8 *in, ptrdiff_t n, int64_t counts[256])
{
    uint32_t parts[4][256] = {{0}}; /* neighbours are often equal: each waits less for the last */
    for (ptrdiff_t i = 0; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++)
            parts[k][in[i + k]]++;
    for (ptrdiff_t i = n & ~(ptrdiff_t)3; i < n; i++)
        parts[0][in[i]]++;
    for (int v = 0; v < 256; v++)
        counts[v] = (int64_t)parts[0][v] + parts[1][v] + parts[2][v] + parts[3][v];
}

#ifdef X86
/* As many as fit 32 at a time: each of the table's 16 parts answers for the bytes that lie in it, with 0 for the others. */
EIGHT static ptrdiff_t look_up_32(const u8 *in, ptrdiff_t n, const u8 table[256], u8 *out)
{
    const __m256i width = _mm256_set1_epi8(16), above = _mm256_set1_epi8(0x70); /* from 16 on it sets the highest bit */
    __m256i part[16];
    for (int k = 0; k < 16; k++)
        part[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16 * k)));
    ptrdiff_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(in + i)), found = _mm256_setzero_si256();
        for (int k = 0; k < 16; k++, x = _mm256_sub_epi8(x, width))
            found = _mm256_or_si256(found, _mm256_shuffle_epi8(part[k], _mm256_adds_epu8(x, above)));
        _mm256_storeu_si256((__m256i *)(out + i), found);
    }
    return i;
}
#endif

/* out[i] = table[in[i]] */
static void look_up(const u8 *restrict in, ptrdiff_t n, const u8 table[256], u8 *restrict out)
{
    ptrdiff_t i = 0;
#ifdef X86
    if (HAS_EIGHT)
        i = look_up_32(in, n, table, out);
#endif
    for (; i < n; i++)
        out[i] = table[in[i]];
}

/* out[i] = in[index[i]] of each plane, or its fill where the index is n or more. By way of whole pixels, and the fill as
   the one behind the last: one look-up takes the place of three, and nothing has to be chosen. */
EACH_CPU static void gather(const u8 *restrict in, ptrdiff_t n, const uint32_t *restrict index, const u8 fill[3],
                            uint32_t *restrict room, u8 *restrict out)
{
    for (ptrdiff_t i = 0; i < n; i++)
        room[i] = in[i] | (uint32_t)in[n + i] << 8 | (uint32_t)in[2 * n + i] << 16;
    room[n] = fill[0] | (uint32_t)fill[1] << 8 | (uint32_t)fill[2] << 16;
    for (ptrdiff_t start = 0; start < n; start += CHUNK, out += CHUNK, index += CHUNK) {
        uint32_t pixels[CHUNK];
        const ptrdiff_t size = n - start < CHUNK ? n - start : CHUNK;
        for (ptrdiff_t i = 0; i < size; i++)
            pixels[i] = room[index[i] < (uint32_t)n ? index[i] : (uint32_t)n];
        for (int c = 0; c < 3; c++)
            for (ptrdiff_t i = 0; i < size; i++)
                out[c * n + i] = (u8)(pixels[i] >> 8 * c);
    }
}

/* Moved by whole pixels, down and to the right; what is left empty is filled. */
static void shift(const u8 *in, ptrdiff_t height, ptrdiff_t width, ptrdiff_t down, ptrdiff_t right, const u8 fill[3], u8 *out)
{
    const ptrdiff_t left = right > 0 ? right < width ? right : width : 0;
    const ptrdiff_t kept = right < -width || right > width ? 0 : width - (right > 0 ? right : -right);
    for (int c = 0; c < 3; c++)
        for (ptrdiff_t y = 0; y < height; y++, out += width) {
            const ptrdiff_t from = y - down;
            const ptrdiff_t some = from >= 0 && from < height ? kept : 0;
            memset(out, fill[c], (size_t)width);
            if (some)
                memcpy(out + left, in + (c * height + from) * width + (right < 0 ? -right : 0), (size_t)some);
        }
}

/* ---- enhancements: Image.blend with a gray, a constant or a blur ---- */

/* Any number; none is 0. */
static inline u8 cut_any(float value)
{
    return (u8)(int)(value > 0.0f ? value < 255.0f ? value : 255.0f : 0.0f);
}

/* One within 2**31, as factors within 1e6 make it. Whole numbers are compared, which compilers do in one instruction each,
   for eight at a time. */
static inline u8 cut_float(float value)
{
    const int whole = (int)value, least = whole > 0 ? whole : 0;
    return (u8)(least < 255 ? least : 255);
}

static inline u8 blend(int from, int to, float factor)
{
    return cut_float((float)from + factor * (float)(to - from));
}

/* ITU-R 601 luma in 16 bits, as Image.convert("L"). */
static inline int luma(int red, int green, int blue)
{
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
}

/* ImageFilter.SMOOTH: nine pixels, the middle one five times, of at most CHUNK pixels, whose number is returned. The
   quotient is exact to 6563. */
INLINE ptrdiff_t smoothed(const u8 *restrict in, ptrdiff_t start, ptrdiff_t n, ptrdiff_t width, int16_t *restrict soft)
{
    const ptrdiff_t size = n - width - 1 - start < CHUNK ? n - width - 1 - start : CHUNK;
    const u8 *p = in + start, *above = p - width, *below = p + width;
    for (ptrdiff_t i = 0; i < size; i++) {
        const uint16_t outer = (uint16_t)(above[i - 1] + above[i] + above[i + 1] + below[i - 1] + below[i] + below[i + 1]);
        const uint16_t sum = (uint16_t)(outer + p[i - 1] + 5 * p[i] + p[i + 1] + 6);
        soft[i] = (int16_t)((uint32_t)sum * 5042 >> 16); /* sum / 13, rounded */
    }
    return size;
}

EACH_CPU static void color(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    const float factor = (float)arg;
    for (ptrdiff_t i = 0; i < n; i++) {
        int gray = luma(in[i], in[n + i], in[2 * n + i]);
        out[i] = blend(gray, in[i], factor);
        out[n + i] = blend(gray, in[n + i], factor);
        out[2 * n + i] = blend(gray, in[2 * n + i], factor);
    }
}

EACH_CPU static void contrast(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    const float factor = (float)arg;
    uint64_t sum = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        sum += (uint32_t)luma(in[i], in[n + i], in[2 * n + i]);
    const int mean = (int)((double)sum / n + 0.5);
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = blend(mean, v, factor);
    look_up(in, 3 * n, table, out);
}

static void brightness(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = blend(0, v, (float)arg);
    look_up(in, 3 * height * width, table, out);
}

EACH_CPU static void grayscale(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    for (ptrdiff_t i = 0; i < n; i++)
        out[i] = out[n + i] = out[2 * n + i] = (u8)luma(in[i], in[n + i], in[2 * n + i]);
}

/* The outermost pixels as they were. */
static void keep_edges(const u8 *in, ptrdiff_t height, ptrdiff_t width, u8 *out)
{
    memcpy(out, in, (size_t)width);
    memcpy(out + (height - 1) * width, in + (height - 1) * width, (size_t)width);
    for (ptrdiff_t y = 0; y < height; y++) {
        out[y * width] = in[y * width];
        out[y * width + width - 1] = in[y * width + width - 1];
    }
}

EACH_CPU static void sharpness(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    const float factor = (float)arg;
    for (int c = 0; c < 3; c++, in += n, out += n) {
        for (ptrdiff_t start = width + 1; start < n - width - 1; start += CHUNK) { /* across the edges, too: lost below */
            int16_t soft[CHUNK];
            const ptrdiff_t size = smoothed(in, start, n, width, soft);
            for (ptrdiff_t i = 0; i < size; i++)
                out[start + i] = blend(soft[i], in[start + i], factor);
        }
        keep_edges(in, height, width, out);
    }
}

/* ---- torchvision's, on tensors: in float ---- */

static int fused; /* whether torch adds a product in one step on this CPU; Python has tried */

#define PLUS(a, factor, b) (fma ? fmaf(factor, b, a) : (a) + (factor) * (b))
/* rgb_to_grayscale, not rounded. */
#define GRAY(i) PLUS(PLUS(in[i] * 0.2989f, 0.587f, (float)in[n + (i)]), 0.114f, (float)in[2 * n + (i)])

EACH_CPU static void torch_color(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width,
                                 double arg)
{
    const ptrdiff_t n = height * width;
    const int fma = fused;
    const float factor = (float)arg, rest = (float)(1.0 - arg);
    for (ptrdiff_t start = 0; start < n; start += CHUNK) {
        float gray[CHUNK];
        const ptrdiff_t size = n - start < CHUNK ? n - start : CHUNK;
        for (ptrdiff_t i = 0; i < size; i++)
            gray[i] = (float)(int)GRAY(start + i);
        for (ptrdiff_t at = start; at < 3 * n; at += n)
            for (ptrdiff_t i = 0; i < size; i++)
                out[at + i] = cut_float(PLUS(factor * in[at + i], rest, gray[i]));
    }
}

/* For at most 65793 pixels: then torch's float32 sum of whole numbers is exact in any order. */
EACH_CPU static void torch_contrast(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width,
                                    double arg)
{
    const ptrdiff_t n = height * width;
    const int fma = fused;
    const float factor = (float)arg, rest = (float)(1.0 - arg);
    ptrdiff_t sum = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        sum += (int)GRAY(i);
    const float mean = (float)sum / (float)n;
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = cut_float(PLUS(factor * (float)v, rest, mean));
    look_up(in, 3 * n, table, out);
}

EACH_CPU static void torch_grayscale(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width,
                                     double arg)
{
    const ptrdiff_t n = height * width;
    const int fma = fused;
    for (ptrdiff_t i = 0; i < n; i++)
        out[i] = out[n + i] = out[2 * n + i] = (u8)(int)GRAY(i);
}

EACH_CPU static void torch_sharpness(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width,
                                     double arg)
{
    const ptrdiff_t n = height * width;
    const int fma = fused;
    const float rest = (float)(1.0 - arg);
    for (int c = 0; c < 3; c++, in += n, out += n) {
        for (ptrdiff_t start = width + 1; start < n - width - 1; start += CHUNK) { /* as above */
            int16_t soft[CHUNK];
            const ptrdiff_t size = smoothed(in, start, n, width, soft);
            for (ptrdiff_t i = 0; i < size; i++)
                out[start + i] = cut_float(PLUS((float)in[start + i], rest, (float)(soft[i] - in[start + i])));
        }
        keep_edges(in, height, width, out);
    }
}

/* adjust_hue: to HSV and back, `arg` turns on. */
EACH_CPU static void hue(const u8 *restrict in, u8 *restrict out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    const float turns = (float)arg, unit = (float)(1.0 / 255), scale = (float)(255 + 1.0 - 1e-3);
    for (ptrdiff_t i = 0; i < n; i++) {
        float r = in[i] * unit, g = in[n + i] * unit, b = in[2 * n + i] * unit;
        float rg = r > g ? r : g, low = r < g ? r : g, v = rg > b ? rg : b;
        float span = v - (low < b ? low : b);
        float gray = span > 0 ? 0.0f : 1.0f;
        float s = span / (v + gray), d = span + gray;
        float rc = (v - r) / d, gc = (v - g) / d, bc = (v - b) / d;
        float at_b = (gc + 4.0f) - rc, at_g = (rc + 2.0f) - bc, h = bc - gc; /* the largest is blue, green, red */
        at_b = gc > 0.0f ? at_b : at_g;
        h = rc > 0.0f ? at_b : h;
        h = h * (float)(1.0 / 6.0) + 1.0f; /* above 0 */
        h -= (float)(int)h;
        h += turns;
        float whole = (float)(int)h;
        h -= h < whole ? whole - 1.0f : whole;
        h *= 6.0f;
        int sector = (int)h;
        float f = h - (float)sector, sf = s * f, p = (1.0f - s) * v, q = (1.0f - sf) * v, t = (sf + (1.0f - s)) * v;
        t = t < 1.0f ? t : 1.0f;
        /* The sectors 0 to 5 (6 is 0: a turn added to a tiny negative hue rounds) go through red v q p p t v, green
           t v v q p p and blue p p t v v q. */
        float red = t, green = p, blue = v;
        red = sector == 3 ? p : red, green = sector == 3 ? q : green;
        red = sector == 2 ? p : red, green = sector == 2 ? v : green, blue = sector == 2 ? t : blue;
        red = sector == 1 ? q : red, green = sector == 1 ? v : green, blue = sector == 1 ? p : blue;
        red = sector % 6 == 0 ? v : red, green = sector % 6 == 0 ? t : green, blue = sector % 6 == 0 ? p : blue;
        red = sector == 5 ? v : red, blue = sector == 5 ? q : blue;
        out[i] = (u8)(int)(red * scale);
        out[n + i] = (u8)(int)(green * scale);
        out[2 * n + i] = (u8)(int)(blue * scale);
    }
}

/* ---- operations that are tables ---- */

static void posterize(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const int bits = arg > 0 ? arg < 8 ? (int)arg : 8 : 0;
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = (u8)(v & (0xFF00 >> bits));
    look_up(in, 3 * height * width, table, out);
}

static void solarize(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = (u8)(v >= arg ? 255 - v : v);
    look_up(in, 3 * height * width, table, out);
}

static void solarize_add(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    u8 table[256];
    for (int v = 0; v < 256; v++) {
        const int more = v + (int)arg;
        table[v] = (u8)(v < 128 ? more > 0 ? more < 255 ? more : 255 : 0 : v);
    }
    look_up(in, 3 * height * width, table, out);
}

static void invert(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    u8 table[256];
    for (int v = 0; v < 256; v++)
        table[v] = (u8)(255 - v);
    look_up(in, 3 * height * width, table, out);
}

/* PIL's and torchvision's, each plane by itself. */
static void equalize(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    for (int c = 0; c < 3; c++, in += n, out += n) {
        int64_t counts[256];
        u8 table[256];
        count(in, n, counts);
        int last = 255;
        while (counts[last] == 0)
            last--;
        const int64_t step = (n - counts[last]) / 255;
        int64_t sum = step / 2;
        for (int v = 0; v < 256; sum += counts[v++]) {
            const int64_t value = step ? sum / step : v;
            table[v] = (u8)(value < 255 ? value : 255);
        }
        look_up(in, n, table, out);
    }
}

EACH_CPU static void extremes(const u8 *in, ptrdiff_t n, u8 *low, u8 *high)
{
    u8 least = 255, most = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        least = in[i] < least ? in[i] : least;
        most = in[i] > most ? in[i] : most;
    }
    *low = least, *high = most;
}

static void pil_auto_contrast(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    for (int c = 0; c < 3; c++, in += n, out += n) {
        u8 low, high, table[256];
        extremes(in, n, &low, &high);
        const double scale = 255.0 / (low == high ? 1 : high - low);
        for (int v = 0; v < 256; v++) {
            const double value = v * scale - low * scale;
            table[v] = (u8)(low == high ? v : value > 0 ? value < 255 ? (int)value : 255 : 0);
        }
        look_up(in, n, table, out);
    }
}

static void torch_auto_contrast(const u8 *in, u8 *out, u8 *room, ptrdiff_t height, ptrdiff_t width, double arg)
{
    const ptrdiff_t n = height * width;
    for (int c = 0; c < 3; c++, in += n, out += n) {
        u8 low, high, table[256];
        extremes(in, n, &low, &high);
        const float scale = low == high ? 1 : (float)(high - low) * (float)(1.0 / 255);
        for (int v = 0; v < 256; v++)
            table[v] = low == high ? (u8)v : cut_float((float)(v - low) / scale);
        look_up(in, n, table, out);
    }
}

/* ---- AugMix ---- */

/* out = image + share * (mixed - image), where mixed = scale * image + the sum of weight * chain; both are cut to
   0..255 and to whole numbers, as Pillow's blend does. */
EACH_CPU static void mix(const u8 *image, const u8 *chains, ptrdiff_t n, const float *weights, ptrdiff_t count, float scale,
                         float share, u8 *out) /* which may be the image */
{
    for (ptrdiff_t start = 0; start < n; start += CHUNK) {
        float sum[CHUNK];
        const ptrdiff_t size = n - start < CHUNK ? n - start : CHUNK;
        for (ptrdiff_t i = 0; i < size; i++)
            sum[i] = scale * (float)image[start + i];
        for (ptrdiff_t k = 0; k < count; k++)
            for (ptrdiff_t i = 0; i < size; i++)
                sum[i] += weights[k] * (float)chains[k * n + start + i];
        for (ptrdiff_t i = 0; i < size; i++)
            out[start + i] = cut_any((float)image[start + i] + share * (float)(cut_any(sum[i]) - image[start + i]));
    }
}

/* ---- Mixup and CutMix of two normalized images ---- */

struct mixing {
    float lam, rest; /* own and the other's share; where it is no cut */
    int cut;
    ptrdiff_t top, bottom, left, right; /* of the other's pixels that are pasted */
};

EACH_CPU static void weigh(float *restrict out, const float *restrict own, const float *restrict other, ptrdiff_t n,
                           float lam, float rest)
{
    const int fma = fused;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float kept = own[i] * lam;
        out[i] = PLUS(kept, rest, other[i]);
    }
}

/* Values [x, x + n) of a row, in which a pixel has `depth`. */
static void mix_values(float *out, const float *own, const float *other, ptrdiff_t x, ptrdiff_t n, ptrdiff_t depth,
                       const struct mixing *m)
{
    if (!m->cut) {
        if (m->lam != 1)
            weigh(out, own, other, n, m->lam, m->rest);
        return;
    }
    const ptrdiff_t first = m->left * depth > x ? m->left * depth - x : 0;
    const ptrdiff_t end = m->right * depth - x < n ? m->right * depth - x : n;
    if (first < end)
        memcpy(out + first, other + first, sizeof(float) * (size_t)(end - first));
}

static int touches(const struct mixing *m, ptrdiff_t y) { return m->cut ? y >= m->top && y < m->bottom : m->lam != 1; }

static void mix_pair(float *a, float *b, ptrdiff_t planes, ptrdiff_t height, ptrdiff_t width, ptrdiff_t depth,
                     const struct mixing m[2])
{
    const ptrdiff_t line = width * depth;
    for (ptrdiff_t row = 0; row < planes * height; row++, a += line, b += line) {
        if (!touches(m, row % height) && !touches(m + 1, row % height))
            continue;
        for (ptrdiff_t x = 0; x < line; x += CHUNK) {
            float old[2][CHUNK];
            const ptrdiff_t n = line - x < CHUNK ? line - x : CHUNK;
            memcpy(old[0], a + x, sizeof(float) * (size_t)n);
            memcpy(old[1], b + x, sizeof(float) * (size_t)n);
            if (touches(m, row % height))
                mix_values(a + x, old[0], old[1], x, n, depth, m);
            if (touches(m + 1, row % height))
                mix_values(b + x, old[1], old[0], x, n, depth, m + 1);
        }
    }
}

/* ---- random erasing: the uniform numbers of normalize_erase.noise, before log and cos ---- */

EACH_CPU static void hash_line(uint64_t key, uint64_t place, ptrdiff_t n, float *restrict radius, float *restrict angle)
{
    for (ptrdiff_t i = 0; i < n; i++) { /* splitmix64 */
        uint64_t z = key + (place + (uint64_t)i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        radius[i] = ((float)(uint32_t)(z >> 32) + 1.0f) * 0x1p-32f;
        angle[i] = (float)(uint32_t)z * (float)(0x1p-32 * 2 * 3.141592653589793);
    }
}

/* ---- Python ---- */

static PyObject *bad(const char *what)
{
    PyErr_SetString(PyExc_ValueError, what);
    return NULL;
}

/* Whether the buffers are such images, whose 3 * height * width fits an int. */
static int are_images(ptrdiff_t height, ptrdiff_t width, const Py_buffer *in, const Py_buffer *out)
{
    return height > 0 && width > 0 && height < LIMIT && width < LIMIT / height && in->len == 3 * height * width &&
           out->len == in->len;
}

static int fits(ptrdiff_t height, ptrdiff_t width, const Py_buffer *in, const Py_buffer *out, const Py_buffer *room)
{
    return are_images(height, width, in, out) && room->len >= ROOM(height, width) && (uintptr_t)room->buf % 4 == 0;
}

/* (in, out, room, height, width, arg) */
static PyObject *run(PyObject *args, void (*job)(const u8 *, u8 *, u8 *, ptrdiff_t, ptrdiff_t, double))
{
    Py_buffer in, out, room;
    ptrdiff_t height, width;
    double arg;
    if (!PyArg_ParseTuple(args, "y*w*w*nnd", &in, &out, &room, &height, &width, &arg))
        return NULL;
    const int ok = fits(height, width, &in, &out, &room) && arg >= -1e6 && arg <= 1e6; /* no endless loop, no NaN */
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        job(in.buf, out.buf, room.buf, height, width, arg);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    PyBuffer_Release(&room);
    return ok ? Py_NewRef(Py_None) : bad("the memory does not fit the image, or the argument is beyond 1e6");
}

#define METHOD(name) \
    static PyObject *run_##name(PyObject *self, PyObject *args) { return run(args, name); }
METHOD(gaussian_blur)
METHOD(color)
METHOD(contrast)
METHOD(brightness)
METHOD(grayscale)
METHOD(sharpness)
METHOD(torch_color)
METHOD(torch_contrast)
METHOD(torch_grayscale)
METHOD(torch_sharpness)
METHOD(hue)
METHOD(posterize)
METHOD(solarize)
METHOD(solarize_add)
METHOD(invert)
METHOD(equalize)
METHOD(pil_auto_contrast)
METHOD(torch_auto_contrast)

static PyObject *set_fused(PyObject *self, PyObject *value)
{
    const int truth = PyObject_IsTrue(value);
    if (truth < 0)
        return NULL;
    fused = truth;
    Py_RETURN_NONE;
}

static PyObject *run_affine(PyObject *self, PyObject *args)
{
    struct warp w;
    Py_buffer in, out, room;
    double *m = w.matrix;
    if (!PyArg_ParseTuple(args, "y*w*w*nn(dddddd)(bbb)p", &in, &out, &room, &w.height, &w.width, m, m + 1, m + 2,
                           m + 3, m + 4, m + 5, w.fill, w.fill + 1, w.fill + 2, &w.cubic))
        return NULL;
    const int ok = fits(w.height, w.width, &in, &out, &room);
    if (ok) {
        w.in = in.buf, w.out = out.buf, w.room = room.buf;
        Py_BEGIN_ALLOW_THREADS
        warp(&w);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    PyBuffer_Release(&room);
    return ok ? Py_NewRef(Py_None) : bad("the memory does not fit the image");
}

static PyObject *run_convolve(PyObject *self, PyObject *args)
{
    Py_buffer in, kernel, out;
    ptrdiff_t height, width;
    int size;
    if (!PyArg_ParseTuple(args, "y*y*w*nni", &in, &kernel, &out, &height, &width, &size))
        return NULL;
    const int sane = size > 0 && size <= WIDEST && height >= HIGH && height < 65536 && width >= WIDE && width < 65536;
    const ptrdiff_t stride = width + size - 1, rows = height + size - 1;
    const int ok = sane && HAS_EIGHT && in.len == 12 * stride * rows && kernel.len == 4 * size * size &&
                   out.len == 12 * height * width &&
                   ((uintptr_t)in.buf | (uintptr_t)kernel.buf | (uintptr_t)out.buf) % 4 == 0;
#ifdef EIGHT
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        convolve(in.buf, kernel.buf, out.buf, height, width, size);
        Py_END_ALLOW_THREADS
    }
#endif
    PyBuffer_Release(&in);
    PyBuffer_Release(&kernel);
    PyBuffer_Release(&out);
    return ok ? Py_NewRef(Py_None) : bad("wants AVX2 and FMA, or NEON, 4 x 16 pixels or more, a kernel of 63 at most, and memory of the sizes that follow");
}

static PyObject *run_blur(PyObject *self, PyObject *args)
{
    Py_buffer in, line, kernel, out, room;
    ptrdiff_t height, width, again = 0;
    float slack = 1;
    if (!PyArg_ParseTuple(args, "y*y*y*w*w*nn|f", &in, &line, &kernel, &out, &room, &height, &width, &slack))
        return NULL;
    const ptrdiff_t size = (ptrdiff_t)(line.len / 4);
    const int sane = size > 0 && size <= WIDEST && size % 2 == 1 && height >= HIGH && height < 65536 &&
                     width >= WIDE && width < 65536 && size / 2 < height && size / 2 < width;
    const int ok = sane && HAS_EIGHT && in.len == 3 * height * width && out.len == in.len && line.len == 4 * size &&
                   kernel.len == 4 * size * size && room.len >= BLUR_ROOM(height, width, size) &&
                   ((uintptr_t)line.buf | (uintptr_t)kernel.buf | (uintptr_t)room.buf) % 4 == 0;
#ifdef EIGHT
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        again = blur(in.buf, line.buf, kernel.buf, (int)size, height, width, slack, room.buf, out.buf);
        Py_END_ALLOW_THREADS
    }
#endif
    PyBuffer_Release(&in);
    PyBuffer_Release(&line);
    PyBuffer_Release(&kernel);
    PyBuffer_Release(&out);
    PyBuffer_Release(&room);
    return ok ? PyLong_FromSsize_t(again) : bad("wants AVX2 and FMA, or NEON, 4 x 16 pixels or more, and more than the odd kernel's "
                                             "half, which is 63 at most, and memory of the sizes that follow");
}

static PyObject *run_blur_bounds(PyObject *self, PyObject *args)
{
    Py_buffer line, kernel;
    float bound[BINADES];
    if (!PyArg_ParseTuple(args, "y*y*", &line, &kernel))
        return NULL;
    const Py_ssize_t size = line.len / 4;
    const int ok = size > 0 && size <= WIDEST && line.len == 4 * size && kernel.len == 4 * size * size &&
                   ((uintptr_t)line.buf | (uintptr_t)kernel.buf) % 4 == 0;
    if (ok)
        bounds(line.buf, kernel.buf, (int)size, bound);
    PyBuffer_Release(&line);
    PyBuffer_Release(&kernel);
    if (!ok)
        return bad("a line of 63 float32 at most and their outer product");
    PyObject *result = PyTuple_New(BINADES);
    for (int e = 0; result != NULL && e < BINADES; e++) {
        PyObject *number = PyFloat_FromDouble(bound[e]);
        if (number == NULL || PyTuple_SetItem(result, e, number) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *run_gather(PyObject *self, PyObject *args)
{
    Py_buffer in, out, index, room;
    u8 fill[3];
    if (!PyArg_ParseTuple(args, "y*w*y*w*(bbb)", &in, &out, &index, &room, fill, fill + 1, fill + 2))
        return NULL;
    const Py_ssize_t n = in.len / 3;
    const int ok = in.len % 3 == 0 && n < INT32_MAX && out.len == in.len && index.len == 4 * n &&
                   room.len >= 4 * n + 4 && ((uintptr_t)index.buf | (uintptr_t)room.buf) % 4 == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        gather(in.buf, n, index.buf, fill, room.buf, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    PyBuffer_Release(&index);
    PyBuffer_Release(&room);
    return ok ? Py_NewRef(Py_None) : bad("three planes, an int32 for each pixel, and as many in room, and one more");
}

static PyObject *run_shift(PyObject *self, PyObject *args)
{
    Py_buffer in, out;
    ptrdiff_t height, width, down, right;
    u8 fill[3];
    if (!PyArg_ParseTuple(args, "y*w*nnnn(bbb)", &in, &out, &height, &width, &down, &right, fill, fill + 1, fill + 2))
        return NULL;
    const int ok = are_images(height, width, &in, &out) && down > -LIMIT && down < LIMIT && right > -LIMIT && right < LIMIT;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        shift(in.buf, height, width, down, right, fill, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    return ok ? Py_NewRef(Py_None) : bad("the memory does not fit the image, or the way is too long");
}

static PyObject *run_mix(PyObject *self, PyObject *args)
{
    Py_buffer image, chains, weights, out;
    float scale, share;
    if (!PyArg_ParseTuple(args, "y*y*y*ffw*", &image, &chains, &weights, &scale, &share, &out))
        return NULL;
    const Py_ssize_t count = weights.len / 4;
    const int ok = out.len == image.len && weights.len % 4 == 0 && (uintptr_t)weights.buf % 4 == 0 &&
                   (count == 0 ? chains.len == 0 : chains.len % count == 0 && chains.len / count == image.len);
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        mix(image.buf, chains.buf, image.len, weights.buf, count, scale, share, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&chains);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&out);
    return ok ? Py_NewRef(Py_None) : bad("a chain of the image's size for each float32 weight");
}

static PyObject *run_mix_pair(PyObject *self, PyObject *args)
{
    Py_buffer a, b;
    ptrdiff_t planes, height, width, depth;
    struct mixing m[2];
    double lam[2];
    if (!PyArg_ParseTuple(args, "w*w*(nnnn)(dp(nnnn))(dp(nnnn))", &a, &b, &planes, &height, &width, &depth, lam, &m[0].cut,
                          &m[0].top, &m[0].bottom, &m[0].left, &m[0].right, lam + 1, &m[1].cut, &m[1].top, &m[1].bottom,
                          &m[1].left, &m[1].right))
        return NULL;
    const ptrdiff_t limit = 1 << 24;
    int ok = planes > 0 && planes < 16 && depth > 0 && depth < 16 && height > 0 && height < limit && width > 0 &&
             width < limit && a.len == 4 * planes * height * width * depth && b.len == a.len &&
             ((uintptr_t)a.buf | (uintptr_t)b.buf) % 4 == 0;
    for (int i = 0; i < 2; i++) {
        m[i].lam = (float)lam[i];
        m[i].rest = (float)(1 - lam[i]);
        ok = ok && m[i].left >= 0 && m[i].right <= width; /* rows beyond are never met */
    }
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        mix_pair(a.buf, b.buf, planes, height, width, depth, m);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&a);
    PyBuffer_Release(&b);
    return ok ? Py_NewRef(Py_None) : bad("two float32 [planes, height, width, depth], and boxes inside");
}

static PyObject *run_hash_noise(PyObject *self, PyObject *args)
{
    unsigned long long key, stream;
    ptrdiff_t top, left, height, width, stride;
    Py_buffer radius, angle;
    if (!PyArg_ParseTuple(args, "KK(nnnn)nw*w*", &key, &stream, &top, &left, &height, &width, &stride, &radius, &angle))
        return NULL;
    const ptrdiff_t limit = 1 << 24;
    const int ok = height > 0 && height < limit && width > 0 && width < limit && radius.len == 12 * height * width &&
                   angle.len == radius.len && ((uintptr_t)radius.buf | (uintptr_t)angle.buf) % 4 == 0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        for (ptrdiff_t row = 0; row < 3 * height; row++) {
            uint64_t place = (uint64_t)(top + row % height) * (uint64_t)stride + (uint64_t)left;
            place += ((uint64_t)stream + (uint64_t)(row / height)) << 32;
            hash_line(key, place, width, (float *)radius.buf + row * width, (float *)angle.buf + row * width);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&radius);
    PyBuffer_Release(&angle);
    return ok ? Py_NewRef(Py_None) : bad("two float32 [3, height, width]");
}

#define IMAGE_ARG "(in, out, room, height, width, arg): "
static PyMethodDef methods[] = {
    {"affine", run_affine, METH_VARARGS, "(in, out, room, height, width, matrix, fill, cubic): bicubic or bilinear"},
    {"gaussian_blur", run_gaussian_blur, METH_VARARGS, IMAGE_ARG "radius"},
    {"color", run_color, METH_VARARGS, IMAGE_ARG "factor"},
    {"contrast", run_contrast, METH_VARARGS, IMAGE_ARG "factor"},
    {"brightness", run_brightness, METH_VARARGS, IMAGE_ARG "factor"},
    {"sharpness", run_sharpness, METH_VARARGS, IMAGE_ARG "factor"},
    {"grayscale", run_grayscale, METH_VARARGS, IMAGE_ARG "ignored"},
    {"torch_color", run_torch_color, METH_VARARGS, IMAGE_ARG "factor"},
    {"torch_contrast", run_torch_contrast, METH_VARARGS, IMAGE_ARG "factor; at most 65793 pixels"},
    {"torch_sharpness", run_torch_sharpness, METH_VARARGS, IMAGE_ARG "factor"},
    {"torch_grayscale", run_torch_grayscale, METH_VARARGS, IMAGE_ARG "ignored"},
    {"hue", run_hue, METH_VARARGS, IMAGE_ARG "turns"},
    {"posterize", run_posterize, METH_VARARGS, IMAGE_ARG "bits that are kept"},
    {"solarize", run_solarize, METH_VARARGS, IMAGE_ARG "threshold"},
    {"solarize_add", run_solarize_add, METH_VARARGS, IMAGE_ARG "what is added"},
    {"invert", run_invert, METH_VARARGS, IMAGE_ARG "ignored"},
    {"equalize", run_equalize, METH_VARARGS, IMAGE_ARG "ignored"},
    {"pil_auto_contrast", run_pil_auto_contrast, METH_VARARGS, IMAGE_ARG "ignored"},
    {"torch_auto_contrast", run_torch_auto_contrast, METH_VARARGS, IMAGE_ARG "ignored"},
    {"set_fused", set_fused, METH_O, "(bool): whether torch adds a product in one step"},
    {"convolve", run_convolve, METH_VARARGS,
     "(in, kernel, out, height, width, size): float32 [3, height + size - 1, width + size - 1], [size, size] and\n"
     "[3, height, width]; 4 x 16 pixels or more, size 63 at most. ValueError, too, with neither AVX2 and FMA nor NEON"},
    {"blur", run_blur, METH_VARARGS,
     "(in, line, kernel, out, room, height, width, slack=1.0): what `convolve` gives, rounded, of uint8 [3, height, width]\n"
     "with mirrored borders; line: float32 [size], odd; kernel: its outer product; room: 4 * (height + 2) * (width + size +\n"
     "44) + 32 bytes. Returns how many runs of 8 pixels were summed a second time; slack scales what counts as too near\n"
     "to a half. ValueError, too, with neither AVX2 and FMA nor NEON"},
    {"blur_bounds", run_blur_bounds, METH_VARARGS,
     "(line, kernel): how far blur's first sum can be from the second, for values below 2, 4, .. 256"},
    {"gather", run_gather, METH_VARARGS, "(in, out, index, room, fill): one int32 index for each pixel; beyond is fill"},
    {"shift", run_shift, METH_VARARGS, "(in, out, height, width, down, right, fill): by whole pixels"},
    {"mix", run_mix, METH_VARARGS, "(image, chains, weights, scale, share, out): AugMix"},
    {"mix_pair", run_mix_pair, METH_VARARGS,
     "(a, b, (planes, height, width, depth), one, other): Mixup and CutMix of two float32 images in place; one and other:\n"
     "(lam, cut, (top, bottom, left, right)) of each"},
    {"hash_noise", run_hash_noise, METH_VARARGS,
     "(key, stream, (top, left, height, width), stride, radius, angle): the uniform numbers of a box, float32 [3, height,\n"
     "width], in an image `stride` pixels wide; the channels have the streams stream, stream + 1, stream + 2"},
    {NULL, NULL, 0, NULL}};

/* The module's docstring: setup.py gives the hash of this text, which Python compares. */
#ifndef SOURCE
#define SOURCE NULL
#endif
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pixel_ops", SOURCE, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pixel_ops(void) { return PyModule_Create(&module); }
