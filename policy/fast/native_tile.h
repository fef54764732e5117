/* Included once for each size of vector that processors have: VECTOR_SIZE numbers; NAMED makes a name of it. */

typedef float NAMED(Vector) __attribute__((vector_size(4 * VECTOR_SIZE), aligned(4)));

/* `rows` x `count` vectors of the result. */
static ALWAYS_INLINE void NAMED(tile)(const Factors *at, Py_ssize_t row, Py_ssize_t column, int rows, int count) {
    NAMED(Vector) sums[6][4];
    const float *x = at->x + row * at->row_stride, *weights = at->weights + column / 16 * at->panel_stride;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < count; v++) {
            const Py_ssize_t place = column + VECTOR_SIZE * v;
            sums[r][v] = (NAMED(Vector)){0};
            if (at->start)
                sums[r][v] += *(const NAMED(Vector) *)(at->start + (row + r) / at->rows_per_start * at->width + place);
            if (at->bias) sums[r][v] += *(const NAMED(Vector) *)(at->bias + place);
        }
    for (Py_ssize_t step = 0; step < at->steps; step++) {
        NAMED(Vector) weight[4];
        for (int v = 0; v < count; v++) {
            const Py_ssize_t panel = VECTOR_SIZE * v / 16 * at->panel_stride;
            weight[v] = *(const NAMED(Vector) *)(weights + step * at->weight_stride + panel + VECTOR_SIZE * v % 16);
        }
        for (int r = 0; r < rows; r++) {
            const float own = x[r * at->row_stride + step * at->step_stride];
            for (int v = 0; v < count; v++) sums[r][v] += own * weight[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < count; v++)
            *(NAMED(Vector) *)(at->out + (row + r) * at->width + column + VECTOR_SIZE * v) = sums[r][v];
}

static ALWAYS_INLINE void NAMED(columns)(const Factors *at, Py_ssize_t column, int count) {
    Py_ssize_t row = 0;
    for (; row + 6 <= at->rows; row += 6) NAMED(tile)(at, row, column, 6, count);
    for (; row + 4 <= at->rows; row += 4) NAMED(tile)(at, row, column, 4, count);
    for (; row + 2 <= at->rows; row += 2) NAMED(tile)(at, row, column, 2, count);
    if (row < at->rows) NAMED(tile)(at, row, column, 1, count);
}
