/* Decodes a region of a baseline JPEG: of what lies above and beside it only the codes are read, of what lies below
   nothing; and where it is remembered at which bits the rows begin, nothing of what lies above it and to its right. The
   pixels are bit for bit those that libjpeg-turbo gives for the whole image (its exact inverse DCT, its "fancy" chroma
   upsampling), which is what Pillow shows.

   Gray and YCbCr images with 8 bits a sample, one Huffman-coded scan, chroma in full, half or quarter resolution
   (4:4:4, 4:2:2, 4:2:0). Whatever else there is, or looks damaged, is a ValueError: the caller then asks Pillow.

   Faster than libjpeg-turbo because a code is found together with the bits that belong to it, often two at once, because
   the byte stuffing is taken out beforehand, because blocks that nobody wants are skipped several codes at a time, and
   because two blocks go through the inverse DCT at once. */

#ifndef WITHOUT_PYTHON /* as the fuzzer wants it */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#endif

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../_cpu.h"

#ifdef X86
#define AVX2 FOR_CPU("avx2,bmi,bmi2")
#endif

#define LOOK 9 /* bits of a code, and of what belongs to it, that are looked up at once */
#define RING 32 /* rows of a plane that are kept: two rows of the largest minimum coded unit */
#define PAD 64  /* bytes beside a row of a plane */
#define BLOCKS 6 /* the most of a minimum coded unit */
#define AHEAD (BLOCKS * 64 * 4) /* bytes that its codes can take: at most 31 bits for a coefficient */
#define CHUNK 16384
#define BEHIND 8 /* bytes that the bit buffer holds, kept in front of what is read next */
#define MOST 65500 /* pixels of a side, to libjpeg */
#define MAX_SEGMENTS 4096     /* as in dali_imagenet.jpeg_markers: of a header, */
#define MAX_HEADER (1 << 20) /* and bytes of it, besides metadata */
#define END 128 /* steps that leave a block for "end of block" */

/* Zigzag position -> place in the block; what lies behind its end goes to a place of no account. */
#define NOWHERE 64
#define NO8 NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE, NOWHERE
static const uint8_t NATURAL[64 + END] = {
    0,   1,   8,   16,  9,   2,   3,   10,  17,  24,  32,  25,  18,  11,  4,   5,   12,  19,  26,  33, 40, 48,
    41,  34,  27,  20,  13,  6,   7,   14,  21,  28,  35,  42,  49,  56,  57,  50,  43,  36,  29,  22, 15, 23,
    30,  37,  44,  51,  58,  59,  52,  45,  38,  31,  39,  46,  53,  60,  61,  54,  47,  55,  62,  63, NO8, NO8,
    NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8, NO8};

/* ---- Huffman tables ---- */

/* An entry for the next LOOK bits, 0 where the code is longer: how far the position moves, the number of bits that
   follow the code, the length of the code, and both lengths together. */
#define ENTRY(steps, size, length) ((uint32_t)(steps) << 24 | (size) << 16 | (length) << 8 | ((size) + (length)))
#define STEPS(entry) ((entry) >> 24)
#define SIZE(entry) ((entry) >> 16 & 63)
#define LENGTH(entry) ((entry) >> 8 & 63)
#define TOTAL(entry) ((entry) & 63)

/* An entry for the next TWO bits of a block: one or two coefficients that they hold as a whole, and the block's end where
   they hold it, too. Bits: 0-5 how many of them; 7 whether the block ends; 8-15 how far the position moves; 16-23 and
   24-31 where the coefficients are from it, the same where there is one, NOWHERE for the end alone; 32-47 and 48-63 the
   coefficients. All else is OTHERWISE, a move out of the block, which one comparison finds. */
#define TWO 10
#define ENDS 128
#define OTHERWISE (255 << 8)
#ifndef PAY
#define PAY 1500 /* blocks from which on such a table pays, unless it is as in the image before (measured) */
#endif

struct table {
    uint32_t look[1 << LOOK];
    uint16_t skip[1 << LOOK]; /* as many coefficients as are seen at once: steps << 5 | bits */
    int32_t most[17];   /* the largest code of each length, or -1 */
    int32_t offset[17]; /* from code to place in `symbols` */
    uint8_t symbols[256];
    uint8_t counts[16];
    int defined, is_dc;
    int repeats; /* as in the image before */
};

struct pairs {
    uint64_t entry[1 << TWO];
    int made;
};

static uint32_t entry_of(const struct table *t, int symbol, int length)
{
    int run = symbol >> 4, size = symbol & 15;
    return ENTRY(t->is_dc ? 0 : size ? run + 1 : run == 15 ? 16 : END, size, length);
}

/* T.81, C.2 and F.2.2.3. 0, or -1 where the codes do not fit. */
static int build(struct table *t, const uint8_t *counts, const uint8_t *symbols, int total, int is_dc)
{
    if (t->defined && !memcmp(t->counts, counts, 16) && !memcmp(t->symbols, symbols, (size_t)total)) {
        t->repeats = 1; /* as with encoders that optimize nothing; 980 of 1000 files of ImageNet have their own */
        return 0;
    }
    t->defined = t->repeats = 0;
    t->is_dc = is_dc;
    memcpy(t->counts, counts, 16);
    memcpy(t->symbols, symbols, (size_t)total);
    memset(t->look, 0, sizeof t->look);
    uint32_t code = 0;
    for (int length = 1, at = 0; length <= 16; length++, code <<= 1) {
        t->offset[length] = at - (int32_t)code;
        for (int i = 0; i < counts[length - 1]; i++, at++, code++) {
            if (code >= 1u << length || (is_dc && symbols[at] > 11))
                return -1;
            for (uint32_t j = 0; length <= LOOK && j < 1u << (LOOK - length); j++)
                t->look[(code << (LOOK - length)) + j] = entry_of(t, symbols[at], length);
        }
        if (code >= 1u << length) /* all ones is no code */
            return -1;
        t->most[length] = counts[length - 1] ? (int32_t)code - 1 : -1;
    }
    for (uint32_t i = 0; i < 1 << LOOK && !is_dc; i++) {
        uint32_t bits = 0, steps = 0;
        while (bits < LOOK && steps < END) {
            uint32_t entry = t->look[i << bits & ((1 << LOOK) - 1)];
            if (!entry || bits + LENGTH(entry) > LOOK || (steps + STEPS(entry)) % END >= 63)
                break;
            bits += TOTAL(entry);
            steps += STEPS(entry);
        }
        t->skip[i] = (uint16_t)(steps << 5 | bits);
    }
    t->defined = 1;
    return 0;
}

/* ---- bits ---- */

struct bits {
    const uint8_t *at; /* the next byte that is not in the buffer as a whole */
    uint64_t buffer;   /* from the top */
    int count;         /* of them that are accounted for */
};

INLINE void refill(struct bits *b)
{
    const uint8_t *p = b->at;
    uint64_t next = (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 | (uint64_t)p[3] << 32 |
                    (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 | (uint64_t)p[6] << 8 | p[7]; /* one instruction */
    b->buffer |= next >> b->count;
    b->at += (63 - b->count) >> 3;
    b->count |= 56;
}

INLINE void drop(struct bits *b, int count)
{
    b->buffer <<= count;
    b->count -= count;
}

/* What the bits behind the code of the entry stand for: T.81, F.2.2.1. Without a branch. */
INLINE int value_of(uint32_t entry, uint64_t buffer)
{
    buffer <<= LENGTH(entry);
    uint64_t negative = ~(uint64_t)((int64_t)buffer >> 63); /* all ones where the first bit is 0 */
    uint64_t size = ((buffer ^ negative) >> 1) >> (63 - SIZE(entry));
    return (int)((size ^ negative) - negative);
}

/* The entry for the next code, 0 where there is none such. */
INLINE uint32_t long_code(const struct table *t, uint64_t buffer)
{
    for (int length = LOOK + 1; length <= 16; length++) {
        int32_t code = (int32_t)(buffer >> (64 - length)), place = code + t->offset[length];
        if (code <= t->most[length])
            return place < 0 || place > 255 ? 0 : entry_of(t, t->symbols[place], length);
    }
    return 0;
}

static void build_pairs(struct pairs *pairs, const struct table *t)
{
    uint8_t bits[1 << TWO], steps[1 << TWO]; /* of the first code; more than TWO bits where they do not hold it */
    int16_t value[1 << TWO];
    for (uint32_t i = 0; i < 1 << TWO; i++) {
        uint64_t buffer = (uint64_t)i << (64 - TWO);
        uint32_t entry = t->look[buffer >> (64 - LOOK)];
        bits[i] = entry && TOTAL(entry) <= TWO ? TOTAL(entry) : TWO + 1;
        steps[i] = STEPS(entry);
        value[i] = (int16_t)value_of(entry, buffer);
    }
    for (uint32_t i = 0; i < 1 << TWO; i++) {
        uint32_t used = bits[i], first = steps[i], moved = first, next = (i << used) & ((1 << TWO) - 1);
        if (used > TWO) {
            pairs->entry[i] = OTHERWISE;
            continue;
        }
        if (first == END) {
            pairs->entry[i] = used | ENDS | NOWHERE << 16 | NOWHERE << 24;
            continue;
        }
        uint16_t values[2] = {(uint16_t)value[i], (uint16_t)value[i]};
        if (used + bits[next] <= TWO && steps[next] != END) {
            values[1] = (uint16_t)value[next];
            moved += steps[next];
            used += bits[next];
            next = (i << used) & ((1 << TWO) - 1);
        }
        int ends = used + bits[next] <= TWO && steps[next] == END;
        pairs->entry[i] = (used + (ends ? bits[next] : 0)) | (ends ? ENDS : 0) | moved << 8 | first << 16 | moved << 24 |
                          (uint64_t)values[0] << 32 | (uint64_t)values[1] << 48;
    }
    pairs->made = 1;
}

INLINE int read_dc(const struct table *t, struct bits *b, uint32_t *predictor)
{
    refill(b);
    uint32_t entry = t->look[b->buffer >> (64 - LOOK)];
    if (!LIKELY(entry) && !(entry = long_code(t, b->buffer)))
        return -1;
    *predictor += (uint32_t)value_of(entry, b->buffer);
    drop(b, TOTAL(entry));
    return 0;
}

/* The coefficients of a block in natural order, `block` being zeros; the position of the last one, or -1. */
INLINE int read_block(const struct table *dc, const struct table *ac, struct bits *bits, uint32_t *predictor, int16_t *block)
{
    if (read_dc(dc, bits, predictor))
        return -1;
    block[0] = (int16_t)*predictor;
    struct bits b = *bits;
    uint32_t entry;
    unsigned at = 0;
    for (;;) {
        refill(&b); /* for two codes of at most LOOK + 15 bits */
        if (!LIKELY(entry = ac->look[b.buffer >> (64 - LOOK)]) && !(entry = long_code(ac, b.buffer)))
            return -1;
        at += STEPS(entry);
        block[NATURAL[at]] = (int16_t)value_of(entry, b.buffer);
        drop(&b, TOTAL(entry));
        if (at >= 63)
            break;
        if (!LIKELY(entry = ac->look[b.buffer >> (64 - LOOK)]))
            continue; /* a longer one */
        at += STEPS(entry);
        block[NATURAL[at]] = (int16_t)value_of(entry, b.buffer);
        drop(&b, TOTAL(entry));
        if (at >= 63)
            break;
    }
    *bits = b;
    return at == 63 || at >= END ? (int)at : -1;
}

/* The same, with the table of two. */
INLINE int read_block_of_pairs(const struct table *dc, const struct table *ac, const uint64_t *pairs, struct bits *bits,
                               uint32_t *predictor, int16_t *block)
{
    if (read_dc(dc, bits, predictor))
        return -1;
    block[0] = (int16_t)*predictor;
    struct bits b = *bits;
    unsigned at = 0;
    for (;;) {
        refill(&b);
        for (int i = 0; i < 5; i++) { /* 5 * TWO bits of 56 */
            uint64_t entry = pairs[b.buffer >> (64 - TWO)];
            unsigned next = at + (entry >> 8 & 255);
            if (!LIKELY(next < 63))
                break;
            block[NATURAL[at + (entry >> 16 & 255)]] = (int16_t)(entry >> 32);
            block[NATURAL[at + (entry >> 24 & 255)]] = (int16_t)(entry >> 48);
            drop(&b, entry & 63);
            at = next;
            if (entry & ENDS) {
                *bits = b;
                return (int)at + END;
            }
        }
        refill(&b);
        uint32_t entry = ac->look[b.buffer >> (64 - LOOK)];
        if (!LIKELY(entry) && !(entry = long_code(ac, b.buffer)))
            return -1;
        at += STEPS(entry);
        block[NATURAL[at]] = (int16_t)value_of(entry, b.buffer);
        drop(&b, TOTAL(entry));
        if (at >= 63)
            break;
    }
    *bits = b;
    return at == 63 || at >= END ? (int)at : -1;
}

INLINE int skip_block(const struct table *dc, const struct table *ac, struct bits *b, uint32_t *predictor)
{
    if (read_dc(dc, b, predictor))
        return -1;
    unsigned at = 0;
    while (at < 63) {
        refill(b);
        uint32_t several = ac->skip[b->buffer >> (64 - LOOK)];
        unsigned next = at + (several >> 5);
        if (LIKELY(several && next % END < 63)) {
            drop(b, several & 31);
            at = next;
            continue;
        }
        uint32_t entry = ac->look[b->buffer >> (64 - LOOK)];
        if (!LIKELY(entry) && !(entry = long_code(ac, b->buffer)))
            return -1;
        drop(b, TOTAL(entry));
        at += STEPS(entry);
    }
    return at == 63 || at >= END ? 0 : -1;
}

/* ---- inverse DCT: libjpeg's jidctint.c, "islow", 13-bit constants ---- */

#define FIX_0_298631336 2446
#define FIX_0_390180644 3196
#define FIX_0_541196100 4433
#define FIX_0_765366865 6270
#define FIX_0_899976223 7373
#define FIX_1_175875602 9633
#define FIX_1_501321110 12299
#define FIX_1_847759065 15137
#define FIX_1_961570560 16069
#define FIX_2_053119869 16819
#define FIX_2_562915447 20995
#define FIX_3_072711026 25172

static uint8_t clamp(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* In 16 and 32 bits as where it is done eight at a time, so that even nonsense gives the same on every processor. */
static void idct_pass(int16_t *v, int step, int shift)
{
    typedef uint32_t word; /* wraps */
    word in2 = (word)v[2 * step], in6 = (word)v[6 * step];
    word odd0 = (word)v[7 * step], odd1 = (word)v[5 * step], odd2 = (word)v[3 * step], odd3 = (word)v[step];
    word even0 = (word)(int16_t)(v[0] + v[4 * step]) << 13, even1 = (word)(int16_t)(v[0] - v[4 * step]) << 13;
    word z1 = (in2 + in6) * FIX_0_541196100;
    word even2 = z1 - in6 * FIX_1_847759065, even3 = z1 + in2 * FIX_0_765366865;
    word z3 = (word)(int16_t)(odd0 + odd2), z4 = (word)(int16_t)(odd1 + odd3), z5 = (z3 + z4) * FIX_1_175875602;
    word za = (odd0 + odd3) * FIX_0_899976223, zb = (odd1 + odd2) * FIX_2_562915447;
    z3 = z5 - z3 * FIX_1_961570560;
    z4 = z5 - z4 * FIX_0_390180644;
    word sum[4] = {even0 + even3, even1 + even2, even1 - even2, even0 - even3};
    word odd[4] = {odd3 * FIX_1_501321110 - za + z4, odd2 * FIX_3_072711026 - zb + z3,
                   odd1 * FIX_2_053119869 - zb + z4, odd0 * FIX_0_298631336 - za + z3};
    for (int i = 0; i < 4; i++) {
        int32_t low = (int32_t)(sum[i] + odd[i] + (1u << (shift - 1))) >> shift;
        int32_t high = (int32_t)(sum[i] - odd[i] + (1u << (shift - 1))) >> shift;
        v[i * step] = (int16_t)(low < -32768 ? -32768 : low > 32767 ? 32767 : low);
        v[(7 - i) * step] = (int16_t)(high < -32768 ? -32768 : high > 32767 ? 32767 : high);
    }
}

struct task { /* a block on its way to its place */
    const int16_t *coefficients, *quant;
    uint8_t *to;
    ptrdiff_t stride;
};

static void idct(const struct task *task)
{
    int16_t work[64];
    for (int i = 0; i < 64; i++)
        work[i] = (int16_t)(task->coefficients[i] * task->quant[i]);
    int only_first_row = 1;
    for (int i = 8; i < 64; i++)
        only_first_row &= task->coefficients[i] == 0;
    for (int i = 0; i < 64 && only_first_row; i++) /* the same, but where damaged data overflow: libjpeg-turbo's wrap */
        work[i] = i < 8 ? (int16_t)((uint32_t)work[i] << 2) : work[i - 8];
    for (int i = 0; i < 8 && !only_first_row; i++)
        idct_pass(work + i, 8, 11);
    for (int i = 0; i < 8; i++) {
        idct_pass(work + 8 * i, 1, 18);
        for (int j = 0; j < 8; j++)
            task->to[i * task->stride + j] = clamp(work[8 * i + j] + 128);
    }
}

#ifdef X86
/* Two blocks, one in each half of every register. */
#define PAIR(a, b) _mm256_set1_epi32((int)((uint32_t)(uint16_t)(b) << 16 | (uint16_t)(a)))

AVX2 INLINE void idct_pass_avx2(__m256i v[8], int shift)
{
    __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (shift - 1));
    __m256i sum16 = _mm256_add_epi16(v[0], v[4]), less16 = _mm256_sub_epi16(v[0], v[4]);
    __m256i z3 = _mm256_add_epi16(v[7], v[3]), z4 = _mm256_add_epi16(v[5], v[1]);
    __m256i done[2][8];
    for (int part = 0; part < 2; part++) {
#define BOTH(a, b) (part ? _mm256_unpackhi_epi16(a, b) : _mm256_unpacklo_epi16(a, b))
        __m256i in26 = BOTH(v[2], v[6]), in34 = BOTH(z3, z4), in71 = BOTH(v[7], v[1]), in53 = BOTH(v[5], v[3]);
        __m256i even0 = _mm256_srai_epi32(BOTH(zero, sum16), 3), even1 = _mm256_srai_epi32(BOTH(zero, less16), 3);
        __m256i even2 = _mm256_madd_epi16(in26, PAIR(FIX_0_541196100, FIX_0_541196100 - FIX_1_847759065));
        __m256i even3 = _mm256_madd_epi16(in26, PAIR(FIX_0_541196100 + FIX_0_765366865, FIX_0_541196100));
        __m256i y3 = _mm256_madd_epi16(in34, PAIR(FIX_1_175875602 - FIX_1_961570560, FIX_1_175875602));
        __m256i y4 = _mm256_madd_epi16(in34, PAIR(FIX_1_175875602, FIX_1_175875602 - FIX_0_390180644));
        __m256i odd0 = _mm256_madd_epi16(in71, PAIR(FIX_0_298631336 - FIX_0_899976223, -FIX_0_899976223));
        __m256i odd3 = _mm256_madd_epi16(in71, PAIR(-FIX_0_899976223, FIX_1_501321110 - FIX_0_899976223));
        __m256i odd1 = _mm256_madd_epi16(in53, PAIR(FIX_2_053119869 - FIX_2_562915447, -FIX_2_562915447));
        __m256i odd2 = _mm256_madd_epi16(in53, PAIR(-FIX_2_562915447, FIX_3_072711026 - FIX_2_562915447));
#undef BOTH
        __m256i sum[4] = {_mm256_add_epi32(even0, even3), _mm256_add_epi32(even1, even2),
                          _mm256_sub_epi32(even1, even2), _mm256_sub_epi32(even0, even3)};
        __m256i odd[4] = {_mm256_add_epi32(odd3, y4), _mm256_add_epi32(odd2, y3), _mm256_add_epi32(odd1, y4),
                          _mm256_add_epi32(odd0, y3)};
        for (int i = 0; i < 4; i++) {
            __m256i rounded = _mm256_add_epi32(sum[i], half);
            done[part][i] = _mm256_srai_epi32(_mm256_add_epi32(rounded, odd[i]), shift);
            done[part][7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(rounded, odd[i]), shift);
        }
    }
    for (int i = 0; i < 8; i++)
        v[i] = _mm256_packs_epi32(done[0][i], done[1][i]);
}

AVX2 INLINE void transpose_avx2(__m256i v[8])
{
    __m256i a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            b[4 * i + 2 * j] = _mm256_unpacklo_epi32(a[4 * i + j], a[4 * i + j + 2]);
            b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(a[4 * i + j], a[4 * i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        v[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
        v[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
    }
}

AVX2 static void idct_two_avx2(const struct task *one, const struct task *two)
{
    __m256i v[8];
    for (int i = 0; i < 8; i++) {
        __m256i c = _mm256_loadu2_m128i((const __m128i *)two->coefficients + i, (const __m128i *)one->coefficients + i);
        __m256i q = _mm256_loadu2_m128i((const __m128i *)two->quant + i, (const __m128i *)one->quant + i);
        v[i] = _mm256_mullo_epi16(c, q);
    }
    __m256i large = _mm256_srli_epi16(_mm256_add_epi16(v[0], _mm256_set1_epi16(8192)), 14);
    if (!_mm256_testz_si256(large, large)) { /* damaged data: where overflows matter */
        idct(one);
        idct(two);
        return;
    }
    idct_pass_avx2(v, 11);
    transpose_avx2(v);
    idct_pass_avx2(v, 18);
    transpose_avx2(v);
    __m256i middle = _mm256_set1_epi8((char)128);
    for (int i = 0; i < 8; i += 2) {
        __m256i rows = _mm256_xor_si256(_mm256_packs_epi16(v[i], v[i + 1]), middle);
        __m128i low = _mm256_castsi256_si128(rows), high = _mm256_extracti128_si256(rows, 1);
        _mm_storel_epi64((__m128i *)(one->to + i * one->stride), low);
        _mm_storel_epi64((__m128i *)(one->to + (i + 1) * one->stride), _mm_unpackhi_epi64(low, low));
        _mm_storel_epi64((__m128i *)(two->to + i * two->stride), high);
        _mm_storel_epi64((__m128i *)(two->to + (i + 1) * two->stride), _mm_unpackhi_epi64(high, high));
    }
}
#endif

#ifdef NEON
INLINE int32x4_t part_of(int16x8_t v, int part, int by) { return vmull_n_s16(part ? vget_high_s16(v) : vget_low_s16(v), (int16_t)by); }
INLINE int32x4_t two_products(int16x8_t a, int by_a, int16x8_t b, int by_b, int part)
{
    return vmlal_n_s16(part_of(a, part, by_a), part ? vget_high_s16(b) : vget_low_s16(b), (int16_t)by_b);
}

/* The factors of two inputs that meet are added beforehand, so that they fit in 16 bits. */
INLINE void idct_pass_neon(int16x8_t v[8], int shift)
{
    const int32x4_t half = vdupq_n_s32(1 << (shift - 1)), right = vdupq_n_s32(-shift);
    const int16x8_t sum16 = vaddq_s16(v[0], v[4]), less16 = vsubq_s16(v[0], v[4]);
    const int16x8_t z3 = vaddq_s16(v[7], v[3]), z4 = vaddq_s16(v[5], v[1]);
    int16x4_t done[2][8];
    for (int part = 0; part < 2; part++) {
        int32x4_t even0 = part_of(sum16, part, 1 << 13), even1 = part_of(less16, part, 1 << 13);
        int32x4_t even2 = two_products(v[2], FIX_0_541196100, v[6], FIX_0_541196100 - FIX_1_847759065, part);
        int32x4_t even3 = two_products(v[2], FIX_0_541196100 + FIX_0_765366865, v[6], FIX_0_541196100, part);
        int32x4_t y3 = two_products(z3, FIX_1_175875602 - FIX_1_961570560, z4, FIX_1_175875602, part);
        int32x4_t y4 = two_products(z3, FIX_1_175875602, z4, FIX_1_175875602 - FIX_0_390180644, part);
        int32x4_t odd0 = two_products(v[7], FIX_0_298631336 - FIX_0_899976223, v[1], -FIX_0_899976223, part);
        int32x4_t odd3 = two_products(v[7], -FIX_0_899976223, v[1], FIX_1_501321110 - FIX_0_899976223, part);
        int32x4_t odd1 = two_products(v[5], FIX_2_053119869 - FIX_2_562915447, v[3], -FIX_2_562915447, part);
        int32x4_t odd2 = two_products(v[5], -FIX_2_562915447, v[3], FIX_3_072711026 - FIX_2_562915447, part);
        int32x4_t sum[4] = {vaddq_s32(even0, even3), vaddq_s32(even1, even2), vsubq_s32(even1, even2),
                            vsubq_s32(even0, even3)};
        int32x4_t odd[4] = {vaddq_s32(odd3, y4), vaddq_s32(odd2, y3), vaddq_s32(odd1, y4), vaddq_s32(odd0, y3)};
        for (int i = 0; i < 4; i++) {
            int32x4_t rounded = vaddq_s32(sum[i], half);
            done[part][i] = vqmovn_s32(vshlq_s32(vaddq_s32(rounded, odd[i]), right));
            done[part][7 - i] = vqmovn_s32(vshlq_s32(vsubq_s32(rounded, odd[i]), right));
        }
    }
    for (int i = 0; i < 8; i++)
        v[i] = vcombine_s16(done[0][i], done[1][i]);
}

INLINE void transpose_neon(int16x8_t v[8])
{
    int32x4x2_t b[4];
    for (int i = 0; i < 2; i++) { /* rows 4 i to 4 i + 3 */
        int16x8x2_t upper = vtrnq_s16(v[4 * i], v[4 * i + 1]), lower = vtrnq_s16(v[4 * i + 2], v[4 * i + 3]);
        for (int j = 0; j < 2; j++)
            b[2 * i + j] = vtrnq_s32(vreinterpretq_s32_s16(upper.val[j]), vreinterpretq_s32_s16(lower.val[j]));
    }
    for (int j = 0; j < 2; j++)
        for (int k = 0; k < 2; k++) {
            int16x8_t upper = vreinterpretq_s16_s32(b[j].val[k]), lower = vreinterpretq_s16_s32(b[2 + j].val[k]);
            v[j + 2 * k] = vcombine_s16(vget_low_s16(upper), vget_low_s16(lower));
            v[4 + j + 2 * k] = vcombine_s16(vget_high_s16(upper), vget_high_s16(lower));
        }
}

static void idct_neon(const struct task *task)
{
    int16x8_t v[8];
    for (int i = 0; i < 8; i++)
        v[i] = vmulq_s16(vld1q_s16(task->coefficients + 8 * i), vld1q_s16(task->quant + 8 * i));
    if (vmaxvq_s16(v[0]) > 8191 || vminvq_s16(v[0]) < -8192) { /* damaged data: where overflows matter */
        idct(task);
        return;
    }
    idct_pass_neon(v, 11);
    transpose_neon(v);
    idct_pass_neon(v, 18);
    transpose_neon(v);
    for (int i = 0; i < 8; i++)
        vst1_u8(task->to + i * task->stride, veor_u8(vreinterpret_u8_s8(vqmovn_s16(v[i])), vdup_n_u8(128)));
}
#endif

/* ---- colour: T.871, libjpeg's 16-bit fixed point ---- */

INLINE void to_rgb(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, ptrdiff_t width, uint8_t *out)
{
    for (ptrdiff_t i = 0; i < width; i++) {
        int u = cb[i] - 128, v = cr[i] - 128;
        out[3 * i] = clamp(y[i] + ((91881 * v + 32768) >> 16));
        out[3 * i + 1] = clamp(y[i] + ((-22554 * u - 46802 * v + 32768) >> 16));
        out[3 * i + 2] = clamp(y[i] + ((116130 * u + 32768) >> 16));
    }
}

#ifdef X86
AVX2 static void to_rgb_avx2(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, ptrdiff_t width, uint8_t *out)
{
    if (width < 16) {
        to_rgb(y, cb, cr, width, out);
        return;
    }
    const __m128i spread[3][3] = {
        {_mm_setr_epi8(0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5),
         _mm_setr_epi8(-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1),
         _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1)},
        {_mm_setr_epi8(-1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1),
         _mm_setr_epi8(5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10),
         _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1)},
        {_mm_setr_epi8(-1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1),
         _mm_setr_epi8(-1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1),
         _mm_setr_epi8(10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15)}};
    const __m256i half = _mm256_set1_epi32(32768), middle = _mm256_set1_epi16(128);
    const __m256i red = PAIR(0, 91881 - 65536), green = PAIR(-22554, 65536 - 46802), blue = PAIR(116130 - 131072, 0);
    for (ptrdiff_t at = 0; at < width; at += 16) {
        if (at > width - 16)
            at = width - 16; /* the last ones once more */
        __m256i l = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(y + at)));
        __m256i u = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(cb + at))), middle);
        __m256i v = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(cr + at))), middle);
        __m256i low = _mm256_unpacklo_epi16(u, v), high = _mm256_unpackhi_epi16(u, v);
#define TIMES(by)                                                                                                      \
    _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(low, by), half), 16),                      \
                       _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(high, by), half), 16))
        __m256i r = _mm256_add_epi16(l, _mm256_add_epi16(v, TIMES(red)));
        __m256i g = _mm256_add_epi16(l, _mm256_sub_epi16(TIMES(green), v));
        __m256i b = _mm256_add_epi16(l, _mm256_add_epi16(_mm256_add_epi16(u, u), TIMES(blue)));
#undef TIMES
        __m256i rg = _mm256_permute4x64_epi64(_mm256_packus_epi16(r, g), 0xD8);
        __m128i part[3] = {_mm256_castsi256_si128(rg), _mm256_extracti128_si256(rg, 1),
                           _mm_packus_epi16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1))};
        for (int i = 0; i < 3; i++) {
            __m128i mixed = _mm_or_si128(_mm_shuffle_epi8(part[0], spread[i][0]), _mm_shuffle_epi8(part[1], spread[i][1]));
            mixed = _mm_or_si128(mixed, _mm_shuffle_epi8(part[2], spread[i][2]));
            _mm_storeu_si128((__m128i *)(out + 3 * at + 16 * i), mixed);
        }
    }
}
#endif

#ifdef NEON
/* x * by / 2**16, rounded; what is missing to the factor is added in whole numbers. */
INLINE int16x8_t times(int16x8_t x, int by)
{
    return vcombine_s16(vrshrn_n_s32(part_of(x, 0, by), 16), vrshrn_n_s32(part_of(x, 1, by), 16));
}

static void to_rgb_neon(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, ptrdiff_t width, uint8_t *out)
{
    if (width < 8) {
        to_rgb(y, cb, cr, width, out);
        return;
    }
    const int16x8_t middle = vdupq_n_s16(128);
    for (ptrdiff_t at = 0; at < width; at += 8) {
        if (at > width - 8)
            at = width - 8; /* the last ones once more */
        int16x8_t l = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(y + at)));
        int16x8_t u = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(cb + at))), middle);
        int16x8_t v = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(cr + at))), middle);
        int32x4_t low = two_products(u, -22554, v, 65536 - 46802, 0), high = two_products(u, -22554, v, 65536 - 46802, 1);
        int16x8_t green = vcombine_s16(vrshrn_n_s32(low, 16), vrshrn_n_s32(high, 16));
        uint8x8x3_t rgb = {{vqmovun_s16(vaddq_s16(l, vaddq_s16(v, times(v, 91881 - 65536)))),
                            vqmovun_s16(vaddq_s16(l, vsubq_s16(green, v))),
                            vqmovun_s16(vaddq_s16(l, vaddq_s16(vaddq_s16(u, u), times(u, 116130 - 131072))))}};
        vst3_u8(out + 3 * at, rgb);
    }
}
#endif

/* ---- the image ---- */

struct component {
    int h, v, id; /* sampling factors */
    const int16_t *quant;
    const struct table *dc, *ac;
    struct pairs *pairs;
    uint32_t predictor;
    ptrdiff_t width, height; /* samples that belong to the image */
    uint8_t *plane;     /* RING rows, from column `first` on */
    ptrdiff_t stride, first;
};

/* Where a row of minimum coded units begins, or the last one ends; before the restart marker, if there is one. */
struct row {
    int64_t at;    /* bits of the file, stuffing and markers among them */
    int16_t dc[3]; /* predictors: more than 16 bits of them have no say */
};

struct image {
    const uint8_t *data, *end, *at;
    ptrdiff_t width, height, top, left, rows, columns; /* rows and columns: of the region */
    int count, interval, restarts;
    struct component components[3];
    uint8_t quant_at[3];
    int16_t quant[4][64];
    int quant_defined[4], dc_defined[4], ac_defined[4];
    const char *problem;
    uint8_t *out, *lines; /* lines: chroma of a row in full resolution */
    struct bits bits;
    const uint8_t *bytes_end;
    ptrdiff_t wanted;                           /* bytes of it to have at once */
    int complete;                               /* the interval's last byte is there */
    uint8_t bytes[BEHIND + CHUNK + AHEAD + 16]; /* codes without stuffing, of the current interval */
    const uint8_t *placed;                      /* one of them, and where it is in the file */
    ptrdiff_t place;
    size_t room;               /* for what is remembered of the file; 0: nothing is */
    struct row *known, start;  /* rows 0, `every`, 2 * `every` ... and, where the last one was read to its end, the end */
    ptrdiff_t count_known, every;
    uint64_t content; /* hash of the file, where it was asked for */
};

static int refuse(struct image *m, const char *problem)
{
    m->problem = problem;
    return -1;
}

/* Tables are kept for the next image. */
static _Thread_local struct table DC[4], AC[4];
static _Thread_local struct pairs PAIRS[4]; /* of AC */

static int read_tables(struct image *m, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        int which = at[0] & 15, is_dc = at[0] >> 4 == 0, total = 0;
        if (end - at < 17 || which > 3 || at[0] >> 4 > 1)
            return refuse(m, "a broken Huffman table");
        for (int i = 1; i <= 16; i++)
            total += at[i];
        if (total > 256 || end - at - 17 < total ||
            build(is_dc ? &DC[which] : &AC[which], at + 1, at + 17, total, is_dc))
            return refuse(m, "a broken Huffman table");
        if (!is_dc && !AC[which].repeats)
            PAIRS[which].made = 0;
        (is_dc ? m->dc_defined : m->ac_defined)[which] = 1;
        at += 17 + total;
    }
    return 0;
}

static int read_quantization(struct image *m, const uint8_t *at, const uint8_t *end)
{
    for (; at < end; at += 65) {
        if (end - at < 65 || at[0] > 3)
            return refuse(m, "a quantization table of another kind");
        for (int i = 0; i < 64; i++)
            m->quant[at[0]][NATURAL[i]] = at[1 + i];
        m->quant_defined[at[0]] = 1;
    }
    return 0;
}

static int read_frame(struct image *m, const uint8_t *at, const uint8_t *end)
{
    if (end - at < 6 || at[0] != 8 || m->count || (at[5] != 1 && at[5] != 3) || end - at != 6 + 3 * at[5])
        return refuse(m, "a frame of another kind");
    m->count = at[5];
    if ((at[1] << 8 | at[2]) != m->height || (at[3] << 8 | at[4]) != m->width)
        return refuse(m, "of another size");
    for (int i = 0; i < m->count; i++) {
        struct component *c = &m->components[i];
        c->id = at[6 + 3 * i];
        c->h = at[7 + 3 * i] >> 4;
        c->v = at[7 + 3 * i] & 15;
        m->quant_at[i] = at[8 + 3 * i];
        if (m->quant_at[i] > 3)
            return refuse(m, "a frame of another kind");
        if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4)
            return refuse(m, "a frame of another kind");
        if (m->count == 1)
            c->h = c->v = 1; /* one component alone is never interleaved */
        else if (i ? c->h != 1 || c->v != 1 : c->h > 2 || c->v > c->h)
            return refuse(m, "another chroma subsampling");
    }
    struct component *y = &m->components[0];
    for (int i = 0; i < m->count; i++) {
        struct component *c = &m->components[i];
        c->width = (m->width * c->h + y->h - 1) / y->h;
        c->height = (m->height * c->v + y->v - 1) / y->v;
        if (c->h < y->h && c->width < 3)
            return refuse(m, "chroma too narrow to be interpolated");
    }
    return 0;
}

static int read_scan(struct image *m, const uint8_t *at, const uint8_t *end)
{
    if (!m->count || end - at != 4 + 2 * m->count || at[0] != m->count || at[end - at - 3] != 0 ||
        at[end - at - 2] != 63 || at[end - at - 1] != 0)
        return refuse(m, "a scan of another kind");
    for (int i = 0; i < m->count; i++) {
        struct component *c = &m->components[i];
        int dc = at[2 + 2 * i] >> 4, ac = at[2 + 2 * i] & 15, quant = m->quant_at[i];
        if (at[1 + 2 * i] != c->id || dc > 3 || ac > 3 || !m->dc_defined[dc] || !m->ac_defined[ac] ||
            !m->quant_defined[quant])
            return refuse(m, "a scan of another kind");
        c->dc = &DC[dc];
        c->ac = &AC[ac];
        c->pairs = &PAIRS[ac];
        c->quant = m->quant[quant];
    }
    return 0;
}

/* Everything up to the codes. */
static int read_header(struct image *m)
{
    int jfif = 0, adobe = -1, count = 0;
    ptrdiff_t looked = 0;
    const uint8_t *at = m->data + 2;
    if (m->data[0] != 0xFF || m->data[1] != 0xD8)
        return refuse(m, "no JPEG");
    while (m->end - at >= 4 && at[0] == 0xFF) {
        int marker = at[1], length = at[2] << 8 | at[3], failed = 0;
        const uint8_t *body = at + 4;
        if (length < (marker == 0xE0 || marker == 0xEE ? 9 : 2) || m->end - at - 2 < length)
            break; /* Pillow refuses JFIF and Adobe segments that end before their version */
        int metadata = (marker > 0xE0 && marker <= 0xEF && marker != 0xEE) || marker == 0xFE;
        looked += metadata ? 0 : 2 + length;
        if (++count > MAX_SEGMENTS || looked > MAX_HEADER)
            return refuse(m, "a header that is too long");
        at += 2 + length;
        if (marker == 0xC0 || marker == 0xC1)
            failed = read_frame(m, body, at);
        else if (marker == 0xC4)
            failed = read_tables(m, body, at);
        else if (marker == 0xDB)
            failed = read_quantization(m, body, at);
        else if (marker == 0xDD)
            failed = length == 4 ? (m->interval = body[0] << 8 | body[1], 0) : refuse(m, "a broken restart interval");
        else if (marker == 0xE0)
            jfif |= length >= 16 && !memcmp(body, "JFIF", 5);
        else if (marker == 0xEE)
            adobe = length >= 14 && !memcmp(body, "Adobe", 5) ? body[11] : adobe;
        else if (marker == 0xDA) {
            const struct component *c = m->components;
            if (read_scan(m, body, at))
                return -1;
            if (m->count == 3 && !jfif && (adobe >= 0 ? adobe != 1 : c[0].id != 1 || c[1].id != 2 || c[2].id != 3))
                return refuse(m, "other colours than YCbCr");
            m->at = at;
            return 0;
        } else if (!metadata)
            return refuse(m, "a JPEG of another kind");
        if (failed)
            return -1;
    }
    return refuse(m, "a broken header");
}

/* Brings `placed`, of which one knows where it is in the file, to a later byte. */
static void place(struct image *m, const uint8_t *to)
{
    ptrdiff_t count = to - m->placed;
    if (count <= 0)
        return;
    m->place += count;
    while (count > 0) {
        uint8_t stuffed = 0;
        int few = count < 128 ? (int)count : 128;
        for (int i = 0; i < few; i++)
            stuffed += m->placed[i] == 0xFF;
        m->place += stuffed;
        m->placed += few;
        count -= few;
    }
}

/* Whether the codes of a whole minimum coded unit are there from `at` on, as far as there are any. */
INLINE int is_supplied(const struct image *m, const uint8_t *at) { return m->complete || m->bytes_end - at >= AHEAD; }

/* Sees to it that the codes of a whole minimum coded unit are in `bytes`, as far as there are any. */
INLINE void supply(struct image *m)
{
    if (LIKELY(is_supplied(m, m->bits.at)))
        return;
    size_t left = (size_t)(m->bytes_end - m->bits.at);
    if (m->room) {
        place(m, m->bits.at - BEHIND);
        m->placed -= m->bits.at - BEHIND - m->bytes;
    }
    memmove(m->bytes, m->bits.at - BEHIND, BEHIND + left);
    m->bits.at = m->bytes + BEHIND;
    uint8_t *to = m->bytes + BEHIND + left, *full = m->bytes + BEHIND + m->wanted;
    m->wanted = CHUNK;
    while (to < full) {
        size_t count = (size_t)(full - to);
        if (count > (size_t)(m->end - m->at))
            count = (size_t)(m->end - m->at);
        const uint8_t *stop = memchr(m->at, 0xFF, count);
        if (stop != NULL)
            count = (size_t)(stop - m->at);
        memcpy(to, m->at, count);
        to += count;
        m->at += count;
        if (stop == NULL && m->at < m->end)
            continue; /* full */
        if (stop == NULL || m->end - m->at < 2 || m->at[1] != 0) {
            m->complete = 1; /* at a marker, or at the end of the data */
            break;
        }
        *to++ = 0xFF;
        m->at += 2;
    }
    m->bytes_end = to;
    memset(to, 0, AHEAD + 8); /* what is read beyond the end */
}

/* Bits that are left of the interval, as far as it has been read; below 0: more were used than there are. */
INLINE ptrdiff_t bits_left(const struct image *m, struct bits bits)
{
    return (m->bytes_end - bits.at) * 8 + bits.count;
}

static void start_interval(struct image *m)
{
    m->bytes_end = m->bytes + BEHIND;
    m->bits = (struct bits){m->bytes_end, 0, 0};
    m->wanted = CHUNK;
    m->complete = 0;
    m->placed = m->bytes_end;
    m->place = m->at - m->data;
    for (int i = 0; i < m->count; i++)
        m->components[i].predictor = 0;
}

static int restart(struct image *m)
{
    supply(m); /* unless much is left, to where the marker must be */
    ptrdiff_t left = bits_left(m, m->bits);
    if (!m->complete || left < 0 || left > 7 || m->end - m->at < 2 || m->at[0] != 0xFF || m->at[1] != 0xD0 + m->restarts++ % 8)
        return refuse(m, "a restart marker is missing");
    m->at += 2;
    start_interval(m);
    return 0;
}

/* That the rest of the data holds restart markers in order, and then the end: what `dali_imagenet.jpeg_markers` asks. */
static int check_rest(struct image *m)
{
    const uint8_t *at = m->at;
    while (m->end - at > 1 && (at = memchr(at, 0xFF, (size_t)(m->end - at - 1))) != NULL) {
        if (at[1] == 0xD9)
            return 0;
        if (at[1] != 0 && (!m->interval || at[1] != 0xD0 + m->restarts++ % 8))
            break;
        at += 2;
    }
    return refuse(m, "a marker where none belongs, or no end");
}

INLINE uint8_t *line(const struct component *c, ptrdiff_t row) { return c->plane + (row % RING) * c->stride; }

/* Chroma of half the width, and perhaps of half the height, at columns 2 * from .. 2 * (from + count). */
INLINE void upsample(const struct component *c, const struct component *luma, ptrdiff_t row, ptrdiff_t from, ptrdiff_t count, uint8_t *to)
{
    const uint8_t *near = line(c, row) + from - c->first;
    if (luma->v == 1) {
        for (ptrdiff_t i = 0; i < count; i++) {
            to[2 * i] = (uint8_t)((3 * near[i] + near[i - 1] + 1) >> 2);
            to[2 * i + 1] = (uint8_t)((3 * near[i] + near[i + 1] + 2) >> 2);
        }
        return;
    }
    near = line(c, row / 2) + from - c->first;
    ptrdiff_t other = row % 2 ? row / 2 + 1 : row / 2 - 1;
    other = other < 0 ? 0 : other >= c->height ? c->height - 1 : other;
    const uint8_t *far = line(c, other) + from - c->first;
    for (ptrdiff_t i = 0; i < count; i++) {
        int before = 3 * near[i - 1] + far[i - 1], here = 3 * near[i] + far[i], after = 3 * near[i + 1] + far[i + 1];
        to[2 * i] = (uint8_t)((3 * here + before + 8) >> 4);
        to[2 * i + 1] = (uint8_t)((3 * here + after + 7) >> 4);
    }
}

/* Rows [from, to) of the image, whose samples are there, to the output. */
INLINE void write_rows(struct image *m, ptrdiff_t from, ptrdiff_t to, int simd)
{
    const struct component *c = m->components;
    for (ptrdiff_t row = from; row < to; row++) {
        uint8_t *out = m->out + (row - m->top) * m->columns * 3;
        const uint8_t *y = line(&c[0], row) + m->left - c[0].first, *cb = y, *cr = y;
        if (m->count == 1) {
            for (ptrdiff_t i = 0; i < m->columns; i++)
                out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = y[i];
            continue;
        }
        if (c[0].h == 1) {
            cb = line(&c[1], row) + m->left - c[1].first;
            cr = line(&c[2], row) + m->left - c[2].first;
        } else {
            ptrdiff_t first = m->left / 2, count = (m->left + m->columns - 1) / 2 - first + 1;
            uint8_t *lines[2] = {m->lines, m->lines + m->columns + PAD};
            for (int i = 0; i < 2; i++)
                upsample(&c[1 + i], &c[0], row, first, count, lines[i]);
            cb = lines[0] + m->left % 2;
            cr = lines[1] + m->left % 2;
        }
#ifdef X86
        if (simd) {
            to_rgb_avx2(y, cb, cr, m->columns, out);
            continue;
        }
#endif
#ifdef NEON
        if (simd) {
            to_rgb_neon(y, cb, cr, m->columns, out);
            continue;
        }
#endif
        to_rgb(y, cb, cr, m->columns, out);
    }
}

/* Makes chroma interpolate with itself beyond the image's left and right edge. */
static void mend_edges(struct image *m, ptrdiff_t unit_row)
{
    for (int i = 1; i < m->count && m->components[0].h > 1; i++) {
        const struct component *c = &m->components[i];
        for (ptrdiff_t row = 8 * unit_row; row < 8 * unit_row + 8; row++) {
            uint8_t *samples = line(c, row);
            if (c->first == 0)
                samples[-1] = samples[0];
            if (c->width - c->first <= c->stride - 2 * PAD)
                samples[c->width - c->first] = samples[c->width - c->first - 1];
        }
    }
}

struct span { ptrdiff_t first, last; }; /* minimum coded units */

static ptrdiff_t units_down(const struct image *m)
{
    int v = m->components[0].v;
    return (m->height + 8 * v - 1) / (8 * v);
}

/* The units that hold samples begin..end (of luma), and the chroma beside them that is interpolated with. */
static struct span units(ptrdiff_t begin, ptrdiff_t end, int factor, ptrdiff_t extent)
{
    ptrdiff_t first = begin / factor - (factor > 1), last = (end - 1) / factor + (factor > 1);
    ptrdiff_t most = (extent + factor - 1) / factor - 1;
    return (struct span){(first < 0 ? 0 : first) / 8, (last > most ? most : last) / 8};
}

INLINE void zero(int16_t *block)
{
    static const int64_t nothing[4];
    for (int i = 0; i < 4; i++)
        memcpy(block + 16 * i, nothing, 32);
}

/* ---- what is remembered of an image ---- */

/* What a slot begins with. Behind it, `count` times as many bits as `bits` say: by how much the row's length is above
   `least`, and the predictors above `least_dc`. In the byte order of the machine. */
struct record {
    uint64_t check; /* of all that follows, and of the file; 0 where there is none */
    uint32_t least;
    int16_t least_dc[3];
    uint16_t count; /* rows, without the first of all */
    uint8_t every, bits[4];
};
#define HEAD (offsetof(struct record, bits) + 4)

/* Not against malice. A change of one word always changes it, other damage all but once in 2^64 times. */
static uint64_t hash_of(const uint8_t *data, size_t size, uint64_t seed)
{
    const uint64_t odd = 0x9E3779B185EBCA87u;
    uint64_t lane[8], word[8] = {0}, hash = seed ^ size * odd; /* so many multiplications are in flight at once */
    for (int i = 0; i < 8; i++)
        lane[i] = odd * (seed + (uint64_t)i + 1);
#define TAKE                                                                                                           \
    for (int i = 0; i < 8; i++) {                                                                                      \
        uint64_t mixed = lane[i] ^ word[i];                                                                            \
        lane[i] = (mixed << 29 | mixed >> 35) * odd;                                                                   \
    }
    for (; size >= sizeof word; data += sizeof word, size -= sizeof word) {
        memcpy(word, data, sizeof word);
        TAKE
    }
    memset(word, 0, sizeof word);
    memcpy(word, data, size);
    TAKE
    for (int i = 0; i < 8; i++) {
        hash ^= lane[i];
        hash = (hash << 29 | hash >> 35) * odd;
        hash ^= hash >> 32;
    }
    return hash;
}
#undef TAKE

struct packer {
    uint8_t *to;
    uint64_t held;
    int count;
};

static void put(struct packer *p, uint64_t value, int bits)
{
    p->held |= value << p->count;
    for (p->count += bits; p->count >= 8; p->count -= 8, p->held >>= 8)
        *p->to++ = (uint8_t)p->held;
}

static int width_of(uint64_t largest)
{
    int bits = 0;
    for (; largest; largest >>= 1)
        bits++;
    return bits;
}

/* The number that the end has among what is known. */
static ptrdiff_t last_number(const struct image *m) { return (units_down(m) + m->every - 1) / m->every; }

/* Every other row is forgotten, but the end is not. */
static void thin_out(struct image *m)
{
    ptrdiff_t last = last_number(m), ended = m->count_known == last + 1, count = 0;
    struct row end = m->known[m->count_known - 1];
    for (ptrdiff_t i = 0; i < m->count_known; i += 2)
        m->known[count++] = m->known[i];
    m->every *= 2;
    if (ended && last % 2)
        m->known[count++] = end;
    m->count_known = count;
}

static uint64_t check_of(const uint8_t *record, size_t size, uint64_t content)
{
    return hash_of(record + sizeof(uint64_t), size - sizeof(uint64_t), content);
}

/* What is known as a record of at most `room` bytes; its length, or 0 where it cannot be. */
static size_t pack(struct image *m, uint8_t *record)
{
    for (;; thin_out(m)) {
        ptrdiff_t count = m->count_known - 1;
        if (count < 1 || m->every > 128)
            return 0;
        int64_t least = INT64_MAX, most = 0;
        int low[3] = {INT16_MAX, INT16_MAX, INT16_MAX}, high[3] = {INT16_MIN, INT16_MIN, INT16_MIN};
        for (ptrdiff_t i = 1; i <= count; i++) {
            int64_t length = m->known[i].at - m->known[i - 1].at;
            least = length < least ? length : least;
            most = length > most ? length : most;
            for (int c = 0; c < 3; c++) {
                int dc = m->known[i].dc[c];
                low[c] = dc < low[c] ? dc : low[c];
                high[c] = dc > high[c] ? dc : high[c];
            }
        }
        if (most > UINT32_MAX)
            return 0;
        struct record r = {.least = (uint32_t)least, .count = (uint16_t)count, .every = (uint8_t)m->every};
        r.bits[0] = (uint8_t)width_of((uint64_t)(most - least));
        size_t bits = r.bits[0];
        for (int c = 0; c < 3; c++) {
            r.least_dc[c] = (int16_t)low[c];
            r.bits[1 + c] = (uint8_t)width_of((uint64_t)(high[c] - low[c]));
            bits += r.bits[1 + c];
        }
        size_t size = HEAD + (bits * (size_t)count + 7) / 8;
        if (size > m->room)
            continue;
        struct packer p = {record + HEAD, 0, 0};
        for (ptrdiff_t i = 1; i <= count; i++) {
            put(&p, (uint64_t)(m->known[i].at - m->known[i - 1].at - least), r.bits[0]);
            for (int c = 0; c < 3; c++)
                put(&p, (uint64_t)(m->known[i].dc[c] - low[c]), r.bits[1 + c]);
        }
        put(&p, 0, 7);
        memcpy(record, &r, HEAD);
        r.check = check_of(record, size, m->content);
        memcpy(record, &r, sizeof r.check);
        return size;
    }
}

static uint64_t take(const uint8_t *bytes, size_t *at, int bits)
{
    const uint8_t *p = bytes + *at / 8;
    uint64_t value = p[0] | p[1] << 8 | p[2] << 16 | (uint64_t)p[3] << 24 | (uint64_t)p[4] << 32;
    value >>= *at % 8;
    *at += (size_t)bits;
    return value & (((uint64_t)1 << bits) - 1);
}

/* The rows that a record knows; -1 where it is another file's, or not whole. */
static int unpack(struct image *m, const uint8_t *record)
{
    struct record r;
    memcpy(&r, record, HEAD);
    size_t bits = 0, at = 8 * HEAD, size = (size_t)(m->end - m->data);
    for (int i = 0; i < 4; i++)
        bits += r.bits[i];
    size_t length = HEAD + (bits * r.count + 7) / 8;
    m->content = hash_of(m->data, size, 0);
    if (length > m->room || r.check != check_of(record, length, m->content))
        return -1;
    if (!r.every || r.bits[0] > 32 || r.bits[1] > 16 || r.bits[2] > 16 || r.bits[3] > 16)
        return -1; /* nobody writes this, but it must not do harm */
    m->every = r.every;
    if (r.count > last_number(m))
        return -1;
    for (int i = 1; i <= r.count; i++) {
        struct row *row = &m->known[i];
        row->at = row[-1].at + r.least + (int64_t)take(record, &at, r.bits[0]);
        for (int c = 0; c < 3; c++)
            row->dc[c] = (int16_t)(r.least_dc[c] + (int)take(record, &at, r.bits[1 + c]));
        if (row->at > 8 * (int64_t)size)
            return -1;
    }
    m->count_known = r.count + 1;
    return 0;
}

/* ---- rows that are gone to ---- */

static int is_known(const struct image *m, ptrdiff_t row)
{
    return row % m->every == 0 && row / m->every < m->count_known;
}

/* To where a row begins: the number of it among those that are known. */
static void go_to(struct image *m, ptrdiff_t number, ptrdiff_t units_x)
{
    const struct row *row = &m->known[number];
    ptrdiff_t unit = number * m->every * units_x;
    m->at = m->data + row->at / 8;
    start_interval(m);
    m->restarts = m->interval && unit ? (int)((unit - 1) / m->interval) : 0;
    ptrdiff_t enough = number + 1 < m->count_known ? (row[1].at - row->at) / 8 + AHEAD + 16 : CHUNK;
    m->wanted = enough < CHUNK ? enough : CHUNK; /* all of the row at once, and little more */
    supply(m);
    if (row->at % 8) {
        refill(&m->bits);
        drop(&m->bits, (int)(row->at % 8));
    }
    for (int i = 0; i < m->count; i++)
        m->components[i].predictor = (uint32_t)(int32_t)row->dc[i];
}

static struct row row_here(struct image *m)
{
    struct row here = {0, {0, 0, 0}};
    place(m, m->bits.at - (m->bits.count + 7) / 8);
    here.at = 8 * (int64_t)m->place + (8 - m->bits.count % 8) % 8;
    for (int i = 0; i < m->count; i++)
        here.dc[i] = (int16_t)m->components[i].predictor;
    return here;
}

/* Remembers where the row begins that would be read next, or compares it; -1 where it is not where it was. */
static int note_row(struct image *m, ptrdiff_t row, ptrdiff_t units_y)
{
    ptrdiff_t number = (row + m->every - 1) / m->every;
    if (row % m->every && row < units_y)
        return 0;
    struct row here = row_here(m), *known = &m->known[number];
    if (number < m->count_known)
        return known->at == here.at && !memcmp(known->dc, here.dc, sizeof here.dc) ? 0 : refuse(m, "another row");
    if (number == m->count_known)
        m->known[m->count_known++] = here;
    return 0;
}

#define MOST_PARTS 12 /* of three components, 2 x 2 each */
/* A block of each unit of a row: its tables, and where its samples go. */
struct part {
    const struct component *of;
    uint32_t *predictor;
    uint8_t *to;
    ptrdiff_t across; /* to the next unit */
};

static int parts_of(struct image *m, ptrdiff_t row, struct part parts[MOST_PARTS])
{
    int count = 0;
    for (int i = 0; i < m->count; i++) {
        struct component *c = &m->components[i];
        for (int part = 0; part < c->h * c->v; part++)
            parts[count++] = (struct part){c, &c->predictor, line(c, (row * c->v + (part >> (c->h - 1))) * 8) +
                                           (part & (c->h - 1)) * 8, 8 * c->h};
    }
    return count;
}

INLINE int decode_scan(struct image *m, int simd, int pairs)
{
    struct component *luma = &m->components[0];
    int h = luma->h, v = luma->v;
    struct span x = units(m->left, m->left + m->columns, h, m->width), y = units(m->top, m->top + m->rows, v, m->height);
    ptrdiff_t units_x = (m->width + 8 * h - 1) / (8 * h), units_y = units_down(m), written = m->top;
    _Alignas(32) int16_t blocks[2][64 + 16];
    struct task waiting = {NULL, NULL, NULL, 0};
    ptrdiff_t nearest = y.first / m->every < m->count_known ? y.first / m->every : m->count_known - 1;
    go_to(m, nearest, units_x);
    for (ptrdiff_t row = nearest * m->every; row <= y.last; row++) {
        int leap = row < y.last && is_known(m, row + 1);
        ptrdiff_t end = leap || row == y.last ? x.last + 1 : units_x, unit = row * units_x;
        ptrdiff_t first = row < y.first ? end : x.first, last = x.last; /* columns that are wanted */
        struct part parts[MOST_PARTS];
        const int count = parts_of(m, row, parts);
        struct bits bits = m->bits;
        for (ptrdiff_t column = 0; column < end; column++, unit++) {
            if (m->interval && unit && unit % m->interval == 0) {
                m->bits = bits;
                if (restart(m))
                    return -1;
                bits = m->bits;
            }
            if (!LIKELY(is_supplied(m, bits.at))) {
                m->bits = bits;
                supply(m);
                bits = m->bits;
            }
            if (column < first || column > last) {
                for (int i = 0; i < count; i++)
                    if (skip_block(parts[i].of->dc, parts[i].of->ac, &bits, parts[i].predictor))
                        return refuse(m, "a code that does not exist");
            } else
                for (int i = 0; i < count; i++) {
                    struct part *part = &parts[i];
                    const struct component *c = part->of;
                    uint8_t *to = part->to;
                    part->to += part->across;
                    int16_t *block = blocks[waiting.to != NULL];
                    zero(block);
                    int last_at = pairs ? read_block_of_pairs(c->dc, c->ac, c->pairs->entry, &bits, part->predictor, block)
                                        : read_block(c->dc, c->ac, &bits, part->predictor, block);
                    if (last_at < 0)
                        return refuse(m, "a code that does not exist");
                    if (last_at == END) { /* one value: what the inverse DCT comes to */
                        int value = (int16_t)((uint32_t)(block[0] * c->quant[0]) << 2);
                        value = clamp(((value + 16) >> 5) + 128);
                        for (int j = 0; j < 8; j++)
                            memset(to + j * c->stride, value, 8);
                        continue;
                    }
                    struct task task = {block, c->quant, to, c->stride};
#ifdef X86
                    if (simd) {
                        if (waiting.to != NULL) {
                            idct_two_avx2(&waiting, &task);
                            waiting.to = NULL;
                        } else
                            waiting = task;
                        continue;
                    }
#endif
#ifdef NEON
                    if (simd) {
                        idct_neon(&task);
                        continue;
                    }
#endif
                    idct(&task);
                }
            if (bits_left(m, bits) < 0)
                return refuse(m, "the data end too early");
        }
        m->bits = bits;
        if (m->room && end == units_x && note_row(m, row + 1, units_y))
            return -1;
        if (leap && end < units_x)
            go_to(m, (row + 1) / m->every, units_x);
        if (row < y.first)
            continue;
        if (waiting.to != NULL) {
            idct(&waiting);
            waiting.to = NULL;
        }
        mend_edges(m, row);
        /* The last row of a unit with halved chroma is interpolated with the next unit's first. */
        ptrdiff_t ready = row == y.last ? m->top + m->rows : (row + 1) * 8 * v - (v > 1);
        if (ready > m->top + m->rows)
            ready = m->top + m->rows;
        if (ready > written) {
            write_rows(m, written, ready, simd);
            written = ready;
        }
    }
    return 0;
}

#ifdef X86
AVX2 static int decode_scan_avx2(struct image *m, int pairs) { return decode_scan(m, 1, pairs); }
#elif defined(NEON)
static int decode_scan_neon(struct image *m, int pairs) { return decode_scan(m, 1, pairs); }
#endif
static int decode_scan_plain(struct image *m, int pairs) { return decode_scan(m, 0, pairs); }

enum { NEVER, WHERE_IT_PAYS, ALWAYS }; /* to use the tables of two */

/* Makes them; whether they are to be used. */
static int make_pairs(struct image *m, int when)
{
    const struct component *c = m->components;
    struct span x = units(m->left, m->left + m->columns, c->h, m->width), y = units(m->top, m->top + m->rows, c->v, m->height);
    ptrdiff_t blocks = 0;
    int there = 1;
    for (int i = 0; i < m->count; i++) {
        blocks += (x.last - x.first + 1) * (y.last - y.first + 1) * c[i].h * c[i].v;
        there &= c[i].pairs->made || c[i].ac->repeats;
    }
    if (when == NEVER || (when == WHERE_IT_PAYS && !there && blocks < PAY))
        return 0;
    for (int i = 0; i < m->count; i++)
        if (!c[i].pairs->made)
            build_pairs(c[i].pairs, c[i].ac);
    return 1;
}

/* What follows the header, as far as the region goes. */
static int decode_body(struct image *m, int simd, int pairs)
{
    struct component *luma = &m->components[0];
    struct span x = units(m->left, m->left + m->columns, luma->h, m->width);
    ptrdiff_t strides[3], total = 0;
    for (int i = 0; i < m->count; i++) {
        strides[i] = (x.last - x.first + 1) * 8 * m->components[i].h + 2 * PAD;
        total += strides[i] * RING;
    }
    uint8_t *memory = malloc((size_t)(total + 2 * (m->columns + PAD)));
    if (memory == NULL)
        return refuse(m, "no memory left");
    uint8_t *at = memory;
    for (int i = 0; i < m->count; i++) {
        struct component *c = &m->components[i];
        c->stride = strides[i];
        c->first = x.first * 8 * c->h;
        c->plane = at + PAD;
        at += c->stride * RING;
    }
    m->lines = at;
#ifdef X86
    simd = simd && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    int failed = (simd ? decode_scan_avx2 : decode_scan_plain)(m, pairs);
#elif defined(NEON)
    int failed = (simd ? decode_scan_neon : decode_scan_plain)(m, pairs);
#else
    int failed = decode_scan_plain(m, pairs);
#endif
    free(memory);
    return failed;
}

enum { FROM_THE_TOP, FROM_A_ROW, DROPPED }; /* DROPPED: from the top, because what was remembered does not fit */

/* 0, or -1 with the reason in m->problem. No Python in here: other threads run meanwhile.

   `slot`: NULL, or m->room bytes that hold what is remembered of the file; other processes may write to them. `made`: as
   many zeros, for what is to be remembered from now on, of that length (0: nothing new). */
static int decode(struct image *m, int simd, int pairs, const uint8_t *slot, uint8_t *made, size_t *length, int *outcome)
{
    *length = 0;
    *outcome = FROM_THE_TOP;
    m->known = &m->start;
    m->count_known = m->every = 1;
    if (read_header(m))
        return -1;
    m->start.at = 8 * (int64_t)(m->at - m->data);
    pairs = make_pairs(m, pairs);
    if (m->room < HEAD)
        m->room = 0;
    ptrdiff_t before = 1;
    uint8_t *copy = NULL;
    if (m->room) {
        size_t rows = (size_t)last_number(m) + 1, bytes = rows * sizeof(struct row);
        copy = calloc(1, bytes + m->room + sizeof(uint64_t));
        if (copy == NULL)
            return refuse(m, "no memory left");
        m->known = (struct row *)copy;
        m->known[0] = m->start;
        uint8_t *record = copy + bytes;
        memcpy(record, slot, m->room); /* as it is now */
        uint64_t check;
        memcpy(&check, record, sizeof check);
        if (check)
            *outcome = unpack(m, record) ? DROPPED : FROM_A_ROW;
        before = m->count_known;
    }
    int failed = *outcome == FROM_A_ROW ? decode_body(m, simd, pairs) : -1;
    if (failed) {
        if (*outcome == FROM_A_ROW)
            *outcome = DROPPED;
        m->problem = NULL;
        m->count_known = m->every = before = 1;
        failed = decode_body(m, simd, pairs);
        failed = failed ? failed : check_rest(m); /* of a file that is remembered it has been checked */
    }
    if (!failed && m->room && m->count_known > before) {
        if (*outcome != FROM_A_ROW)
            m->content = hash_of(m->data, (size_t)(m->end - m->data), 0);
        *length = pack(m, made);
    }
    free(copy);
    m->known = &m->start;
    return failed;
}

/* Asks for a box (top, left, height, width) of an image (height, width); to be freed. NULL: no memory left. `room`: bytes
   of what is remembered of the file. */
static struct image *request(const uint8_t *data, ptrdiff_t size, const ptrdiff_t image[2], const ptrdiff_t box[4],
                             uint8_t *out, size_t room)
{
    struct image *m = calloc(1, sizeof *m);
    if (m == NULL)
        return NULL;
    m->data = data;
    m->end = data + size;
    m->height = image[0];
    m->width = image[1];
    m->top = box[0];
    m->left = box[1];
    m->rows = box[2];
    m->columns = box[3];
    m->out = out;
    m->room = room;
    return m;
}

/* What is wrong with a request; NULL for nothing. */
static const char *wrong_region(const struct image *m, ptrdiff_t room)
{
    if (m->top < 0 || m->left < 0 || m->rows < 1 || m->columns < 1 || m->height > MOST || m->width > MOST ||
        m->rows > m->height || m->columns > m->width || m->top > m->height - m->rows || m->left > m->width - m->columns)
        return "the region leaves the image";
    if (room / 3 / m->columns < m->rows)
        return "the buffer is too small";
    return m->end - m->data < 4 ? "a broken header" : NULL;
}

/* What `decoder` holds, for `_image_kernels.row`, which declares it, too; without Python, and for any thread. `out` has
   room for the box. 0, or -1 where the file is left to others. */
static int decode_box(const uint8_t *data, ptrdiff_t size, const ptrdiff_t image[2], const ptrdiff_t box[4], uint8_t *out,
                      const uint8_t *slot, uint8_t *made, size_t room, size_t *length, int *outcome)
{
    struct image *m = request(data, size, image, box, out, room);
    if (m == NULL)
        return -1;
    int failed = wrong_region(m, PTRDIFF_MAX) != NULL || decode(m, 1, WHERE_IT_PAYS, slot, made, length, outcome);
    free(m);
    return failed ? -1 : 0;
}

#ifndef WITHOUT_PYTHON
static PyObject *decode_region(PyObject *self, PyObject *args)
{
    Py_buffer data, out, slot = {0};
    ptrdiff_t image[2], box[4];
    int simd = 1, pairs = WHERE_IT_PAYS, failed = -1, outcome = FROM_THE_TOP;
    if (!PyArg_ParseTuple(args, "y*(nn)(nnnn)w*|piy*:decode_region", &data, &image[0], &image[1], &box[0], &box[1], &box[2],
                          &box[3], &out, &simd, &pairs, &slot))
        return NULL;
    size_t room = slot.buf == NULL ? 0 : (size_t)slot.len, length = 0;
    struct image *m = request(data.buf, data.len, image, box, out.buf, room);
    uint8_t *made = calloc(1, room + 1);
    const char *problem = "no memory left";
    if (m != NULL && made != NULL) {
        problem = pairs < NEVER || pairs > ALWAYS ? "pairs: must be 0, 1 or 2" : wrong_region(m, out.len);
        if (problem == NULL) {
            Py_BEGIN_ALLOW_THREADS
            failed = decode(m, simd, pairs, slot.buf, made, &length, &outcome);
            Py_END_ALLOW_THREADS
            problem = m->problem;
        }
    }
    free(m);
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (slot.buf != NULL)
        PyBuffer_Release(&slot);
    PyObject *result = NULL;
    if (failed && room) {
        PyObject *told = Py_BuildValue("si", problem, outcome);
        if (told != NULL)
            PyErr_SetObject(PyExc_ValueError, told);
        Py_XDECREF(told);
    } else if (failed)
        PyErr_SetString(PyExc_ValueError, problem);
    else
        result = Py_BuildValue("iy#", outcome, made, (Py_ssize_t)length);
    free(made);
    return result;
}

static PyMethodDef methods[] = {
    {"decode_region", decode_region, METH_VARARGS,
     "decode_region(data, (height, width), (top, left, rows, columns), out, simd=True, pairs=1, slot=b'')\n\n"
     "Writes uint8 [rows, columns, 3] RGB to the start of `out`. ValueError: no JPEG, damaged, with markers where none\n"
     "belong (as `jpeg_markers.find_marker_anomaly` finds them), of another size, or of a kind that is not known here. For\n"
     "tests, with the same bits: simd=False, without this processor's vector instructions; pairs, the tables of two\n"
     "coefficients: 0 never, 1 where they pay, 2 always.\n\n"
     "`slot` holds what is remembered of the file, zeros for nothing. Returns how it was decoded (0 from the top, 1 from a\n"
     "row, 2 from the top because what was remembered does not fit), and what is to be remembered from now on, b\"\" where\n"
     "that is nothing new; in a ValueError how it was decoded comes second."},
    {NULL, NULL, 0, NULL}};

/* The module's docstring: setup.py gives the hash of this text, which Python compares. */
#ifndef SOURCE
#define SOURCE NULL
#endif
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg", SOURCE, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void)
{
    PyObject *made = PyModule_Create(&module), *decoder = PyCapsule_New((void *)decode_box, "decode_box", NULL);
    if (made != NULL && (decoder == NULL || PyModule_AddObjectRef(made, "decoder", decoder) < 0))
        Py_CLEAR(made);
    Py_XDECREF(decoder);
    return made;
}
#endif
