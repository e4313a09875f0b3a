/* Passes over an image that torch and numpy make in many: the colour matrix, normalization, and the search for a JPEG's
   markers. Each has its Python form beside its caller, which gives the same and takes over where this was not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* One machine-code form for each instruction set, chosen when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_CPU __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#elif defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("default", "avx2")))
#else
#define EACH_CPU
#endif

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

EACH_CPU static void recolor_image(const struct image *image, const float *matrix, uint8_t *out)
{
    const float half = 12582912.0f; /* 1.5 * 2**23: adding it rounds to whole numbers, half to even */
    Py_ssize_t size = image->height * image->width;
    for (Py_ssize_t y = 0; y < image->height; y++)
        for (Py_ssize_t x = 0; x < image->width; x += CHUNK) {
            uint8_t rgb[3][CHUNK];
            int count = image->width - x < CHUNK ? (int)(image->width - x) : CHUNK;
            lines(image, image->pixels + y * image->row + x * image->column, count, rgb);
            float r[CHUNK], g[CHUNK], b[CHUNK];
            for (int i = 0; i < count; i++) {
                r[i] = rgb[0][i];
                g[i] = rgb[1][i];
                b[i] = rgb[2][i];
            }
            for (int c = 0; c < 3; c++) {
                const float *m = matrix + 4 * c;
                uint8_t *to = out + c * size + y * image->width + x;
                for (int i = 0; i < count; i++) {
                    float value = ((r[i] * m[0] + g[i] * m[1]) + b[i] * m[2]) + m[3];
                    value = value > 0.0f ? value : 0.0f;
                    value = value < 255.0f ? value : 255.0f;
                    to[i] = (uint8_t)(int)((value + half) - half);
                }
            }
        }
}

EACH_CPU static void normalize_image(const struct image *image, const float *scale, const float *bias, float *out)
{
    Py_ssize_t size = image->height * image->width;
    for (Py_ssize_t y = 0; y < image->height; y++)
        for (Py_ssize_t x = 0; x < image->width; x += CHUNK) {
            uint8_t rgb[3][CHUNK];
            int count = image->width - x < CHUNK ? (int)(image->width - x) : CHUNK;
            lines(image, image->pixels + y * image->row + x * image->column, count, rgb);
            for (int c = 0; c < 3; c++) {
                float *to = out + c * size + y * image->width + x;
                for (int i = 0; i < count; i++)
                    to[i] = rgb[c][i] * scale[c] + bias[c];
            }
        }
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

static PyObject *run(PyObject *args, const char *format, Py_ssize_t count, Py_ssize_t item)
{
    PyObject *source;
    Py_buffer pixels, numbers, out;
    struct image image;
    if (!PyArg_ParseTuple(args, format, &source, &numbers, &out))
        return NULL;
    if (PyObject_GetBuffer(source, &pixels, PyBUF_STRIDES) < 0) {
        PyBuffer_Release(&numbers);
        PyBuffer_Release(&out);
        return NULL;
    }
    int failed = check(&pixels, &numbers, count, &out, item, &image);
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        if (item == 1)
            recolor_image(&image, numbers.buf, out.buf);
        else
            normalize_image(&image, numbers.buf, (const float *)numbers.buf + 3, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&out);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *recolor(PyObject *self, PyObject *args) { return run(args, "Oy*w*:recolor", 12, 1); }

static PyObject *normalize(PyObject *self, PyObject *args) { return run(args, "Oy*w*:normalize", 6, sizeof(float)); }

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

static PyMethodDef methods[] = {
    {"markers", markers, METH_VARARGS,
     "markers(data, start) -> list[int]\n\nWhere, from `start` on, 0xFF is followed by anything but 0."},
    {"recolor", recolor, METH_VARARGS,
     "recolor(pixels, matrix, out)\n\n"
     "out = round(clamp(matrix @ (r, g, b, 1))): pixels uint8 [3, H, W] with any strides, matrix float32 [3, 4],\n"
     "out uint8 [3, H, W], contiguous."},
    {"normalize", normalize, METH_VARARGS,
     "normalize(pixels, numbers, out)\n\n"
     "out = pixels * scale + bias: pixels uint8 [3, H, W] with any strides, numbers float32 [6] (three scales, three\n"
     "biases), out float32 [3, H, W], contiguous."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
