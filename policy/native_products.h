/* Matrix products, and for which processors the loops of policy/native.c are compiled. */
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
 * result stays in registers, 24 of the 32 that AVX-512 has, while x passes one number at a time. */
typedef float Lanes16 __attribute__((vector_size(64), aligned(4)));
#define TILE_ROWS 6
#define TILE_LANES 4
#define MAX_STEPS 256 /* at a time: the weights of a tile's columns stay in the second-level cache */

typedef struct {
    const float *x, *weights;
    const float *start, *bias; /* NULL for none; a row of start is for rows_per_start neighbouring rows */
    float *out;
    Py_ssize_t row_stride, step_stride, rows_per_start, rows, steps, width;
} Factors;

static ALWAYS_INLINE void tile(const Factors *at, Py_ssize_t row, Py_ssize_t column, int rows, int lanes) {
    Lanes16 sums[TILE_ROWS][TILE_LANES];
    const float *x = at->x + row * at->row_stride, *weights = at->weights + column;
    for (int r = 0; r < rows; r++)
        for (int l = 0; l < lanes; l++) {
            const Py_ssize_t place = column + 16 * l;
            sums[r][l] = (Lanes16){0};
            if (at->start) sums[r][l] += *(const Lanes16 *)(at->start + (row + r) / at->rows_per_start * at->width + place);
            if (at->bias) sums[r][l] += *(const Lanes16 *)(at->bias + place);
        }
    for (Py_ssize_t step = 0; step < at->steps; step++) {
        Lanes16 weight[TILE_LANES];
        for (int l = 0; l < lanes; l++) weight[l] = *(const Lanes16 *)(weights + step * at->width + 16 * l);
        for (int r = 0; r < rows; r++) {
            const float own = x[r * at->row_stride + step * at->step_stride];
            for (int l = 0; l < lanes; l++) sums[r][l] += own * weight[l];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int l = 0; l < lanes; l++) *(Lanes16 *)(at->out + (row + r) * at->width + column + 16 * l) = sums[r][l];
}

static ALWAYS_INLINE void columns(const Factors *at, Py_ssize_t column, int lanes) {
    Py_ssize_t row = 0;
    for (; row + TILE_ROWS <= at->rows; row += TILE_ROWS) tile(at, row, column, TILE_ROWS, lanes);
    for (; row + 2 <= at->rows; row += 2) tile(at, row, column, 2, lanes);
    if (row < at->rows) tile(at, row, column, 1, lanes);
}

VECTORISED static void product(Factors at) {
    const Py_ssize_t steps = at.steps;
    for (Py_ssize_t step = 0; step < steps; step += MAX_STEPS) {
        Factors part = at;
        part.x += step * at.step_stride;
        part.weights += step * at.width;
        part.steps = steps - step < MAX_STEPS ? steps - step : MAX_STEPS;
        if (step) part.start = at.out, part.rows_per_start = 1, part.bias = NULL;
        Py_ssize_t column = 0;
        for (; column + 16 * TILE_LANES <= at.width; column += 16 * TILE_LANES) columns(&part, column, TILE_LANES);
        for (; column < at.width; column += 16) columns(&part, column, 1);
    }
}
