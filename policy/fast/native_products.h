/* Matrix products, and for which processors the loops of native.c are compiled. */
#pragma once
#include <Python.h>

#ifdef __GNUC__
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#error "needs the vector types of GCC or Clang"
#endif

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#define HAS_CLONES 1
#define HAS_AVX512 __builtin_cpu_supports("avx512f")
#else /* without them the loops would be for the oldest processor of the kind: slower than PyTorch's */
#define VECTORISED
#define HAS_CLONES 0
#define HAS_AVX512 0
#endif

/* Products: out (rows, width) = x (rows, steps) weights (steps, width) + start + bias, width a multiple of 16. A tile of the
 * result stays in registers while x passes one number at a time: 6 x 64 in 24 of the 32 that AVX-512 has, 6 x 16 in 12 of
 * AVX2's 16, which are half as wide. */
#define MAX_STEPS 256 /* at a time: the weights of a tile's columns stay in the second-level cache */

typedef struct {
    const float *x, *weights;
    const float *start, *bias; /* NULL for none; a row of start is for rows_per_start neighbouring rows */
    float *out;
    Py_ssize_t row_stride, step_stride, rows_per_start, rows, steps, width;
    Py_ssize_t weight_stride, panel_stride; /* of the weights: from step to step, and between panels of 16 columns */
} Factors;

#define VECTOR_SIZE 16
#define NAMED(name) name##_of_16
#include "native_tile.h"
#undef VECTOR_SIZE
#undef NAMED
#define VECTOR_SIZE 8
#define NAMED(name) name##_of_8
#include "native_tile.h"

VECTORISED static void product(Factors at) {
    const Py_ssize_t steps = at.steps;
    for (Py_ssize_t step = 0; step < steps; step += MAX_STEPS) {
        Factors part = at;
        part.x += step * at.step_stride;
        part.weights += step * at.weight_stride;
        part.steps = steps - step < MAX_STEPS ? steps - step : MAX_STEPS;
        if (step) part.start = at.out, part.rows_per_start = 1, part.bias = NULL;
        Py_ssize_t column = 0;
        if (HAS_AVX512) {
            for (; column + 64 <= at.width; column += 64) columns_of_16(&part, column, 4);
            for (; column < at.width; column += 16) columns_of_16(&part, column, 1);
        } else {
            for (; column < at.width; column += 16) columns_of_8(&part, column, 2);
        }
    }
}
