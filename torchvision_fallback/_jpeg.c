/* Decodes a region of a JPEG with libjpeg-turbo: rows below are not read, blocks beside and above it are entropy-decoded
   but not transformed. The pixels are bit for bit those of the whole image.

   Whatever looks wrong, a warning of libjpeg included, is a ValueError: the caller then asks Pillow. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

/* Chroma of a pixel is interpolated from its neighbours, so more columns than asked for are made exact. */
#define MARGIN 16
#define ROWS 16

struct errors {
    struct jpeg_error_mgr base;
    jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
};

static void stop(j_common_ptr jpeg)
{
    struct errors *errors = (struct errors *)jpeg->err;
    errors->base.format_message(jpeg, errors->text);
    longjmp(errors->jump, 1);
}

static void message(j_common_ptr jpeg, int level)
{
    if (level < 0) /* a warning: damaged data */
        stop(jpeg);
}

struct region {
    long size_h, size_w;            /* that the image must have */
    long top, left, height, width;  /* wanted */
    long first, columns;            /* made: columns [first, first + columns) */
};

/* 0, or -1 with the reason in errors->text. No Python in here: other threads run meanwhile. */
static int decode(const Py_buffer *data, const Py_buffer *out, struct region *r, struct errors *errors)
{
    struct jpeg_decompress_struct jpeg;
    jpeg.err = jpeg_std_error(&errors->base);
    errors->base.error_exit = stop;
    errors->base.emit_message = message;
    if (setjmp(errors->jump)) {
        jpeg_destroy_decompress(&jpeg);
        return -1;
    }
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, (unsigned char *)data->buf, (unsigned long)data->len);
    jpeg_read_header(&jpeg, TRUE);
    if ((long)jpeg.image_height != r->size_h || (long)jpeg.image_width != r->size_w) {
        snprintf(errors->text, sizeof errors->text, "%ux%u pixels instead of %ldx%ld", jpeg.image_height,
                 jpeg.image_width, r->size_h, r->size_w);
        jpeg_destroy_decompress(&jpeg);
        return -1;
    }
    if (jpeg.num_components != 1 && jpeg.num_components != 3) {
        snprintf(errors->text, sizeof errors->text, "%d components", jpeg.num_components);
        jpeg_destroy_decompress(&jpeg);
        return -1;
    }
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    JDIMENSION first = r->left > MARGIN ? (JDIMENSION)(r->left - MARGIN) : 0;
    JDIMENSION end = (JDIMENSION)(r->left + r->width + MARGIN);
    JDIMENSION columns = (end < jpeg.output_width ? end : jpeg.output_width) - first;
    if (jpeg.progressive_mode) { /* blocks may be smoothed with their neighbours, at the crop's edges too */
        first = 0;
        columns = jpeg.output_width;
    }
    if (columns < jpeg.output_width)
        jpeg_crop_scanline(&jpeg, &first, &columns);
    size_t stride = (size_t)columns * 3;
    if ((size_t)out->len < stride * (size_t)r->height) {
        snprintf(errors->text, sizeof errors->text, "the buffer is too small");
        jpeg_destroy_decompress(&jpeg);
        return -1;
    }
    if (r->top > 0)
        jpeg_skip_scanlines(&jpeg, (JDIMENSION)r->top);
    for (long row = 0; row < r->height;) {
        JSAMPROW rows[ROWS];
        long count = r->height - row < ROWS ? r->height - row : ROWS;
        for (long i = 0; i < count; i++)
            rows[i] = (unsigned char *)out->buf + (size_t)(row + i) * stride;
        row += jpeg_read_scanlines(&jpeg, rows, (JDIMENSION)count);
    }
    jpeg_destroy_decompress(&jpeg);
    r->first = first;
    r->columns = columns;
    return 0;
}

static PyObject *decode_region(PyObject *self, PyObject *args)
{
    Py_buffer data, out;
    struct region r;
    struct errors errors;
    int failed;
    if (!PyArg_ParseTuple(args, "y*(ll)(llll)w*", &data, &r.size_h, &r.size_w, &r.top, &r.left, &r.height, &r.width,
                          &out))
        return NULL;
    if (r.top < 0 || r.left < 0 || r.height < 1 || r.width < 1 || r.height > r.size_h || r.width > r.size_w ||
        r.top > r.size_h - r.height || r.left > r.size_w - r.width) {
        failed = -1;
        snprintf(errors.text, sizeof errors.text, "the region leaves the image");
    } else {
        Py_BEGIN_ALLOW_THREADS
        failed = decode(&data, &out, &r, &errors);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (failed) {
        PyErr_SetString(PyExc_ValueError, errors.text);
        return NULL;
    }
    return Py_BuildValue("(ll)", r.first, r.columns);
}

static PyMethodDef methods[] = {
    {"decode_region", decode_region, METH_VARARGS,
     "decode_region(data, (height, width), (top, left, height, width), out) -> (first, columns)\n\n"
     "Writes uint8 [height, columns, 3] RGB to `out`: the columns from `first` on, a few more than asked for.\n"
     "ValueError: damaged, of another size, or neither gray nor colour."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&module); }
