/* What differs between compilers and processors: the three C modules ask for it here alone.

   X86 and NEON say which vector instructions can be written by hand. Each such function has a form in plain C beside it,
   with the same bytes. */

#ifndef DALI_IMAGENET_CPU_H
#define DALI_IMAGENET_CPU_H

#include <stdint.h>

#if UINTPTR_MAX != UINT64_MAX || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
#error "Sizes are checked, and words are taken apart, as on 64-bit processors that begin with the lowest byte."
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#define FOR_CPU(names) __attribute__((target(names))) /* a function for processors that have these instructions */
#elif defined(__GNUC__) && defined(__aarch64__)
#define NEON 1 /* is part of every such processor, and so are fused additions */
#include <arm_neon.h>
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#else
#define INLINE static inline
#define LIKELY(x) (x)
#endif

/* One machine-code form for each instruction set, chosen when the module is loaded. */
#if defined(X86) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#elif defined(X86) && defined(__GLIBC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("default", "avx2")))
#else
#define EACH_CPU
#endif

#endif
