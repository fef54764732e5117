/* The inner loops of updates on a CPU, float32: matrix products, and what takes PyTorch several operations in one pass
 * over memory; and whole networks in one call. native_kernels.py checks what it passes and calls them;
 * without them the same numbers come from PyTorch.
 *
 * Arguments are addresses and counts. Memory is contiguous but for x of `product`, whose strides are given, and the
 * weights of native_networks.h. Outputs may be inputs of the same shape, but not where there are products. The compiler
 * turns the loops into vectors, for each kind of processor where it can.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native_adam.h"
#include "native_networks.h"

#define VERSION 5 /* as in native_kernels.py; another one for other functions or arguments */
#define LANES 32

/* sums = the state's part, once for each of its `per_state` rows, + the level's part if any + x weights: a first layer of
 * few inputs (rows, inputs), weights (inputs, width). For widths and processors that `product` is not for. */
VECTORISED static void first_sums(const float *states, const float *level, const float *x, const float *weights,
                                  float *sums, Py_ssize_t per_state, Py_ssize_t rows, Py_ssize_t width,
                                  Py_ssize_t inputs) {
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *state = states + row / per_state * width;
        float *sum = sums + row * width;
        if (level) {
#pragma omp simd
            for (Py_ssize_t i = 0; i < width; i++) sum[i] = state[i] + level[i];
        } else {
            memcpy(sum, state, sizeof(float) * width);
        }
        for (Py_ssize_t input = 0; input < inputs; input++) {
            const float value = x[row * inputs + input], *weight = weights + input * width;
#pragma omp simd
            for (Py_ssize_t i = 0; i < width; i++) sum[i] += value * weight[i];
        }
    }
}

/* For each row the sum over quantiles and atoms of w c (u - c / 2) and its derivative in each quantile, the sum over
 * atoms of -w c: error u = atom - quantile, c = clip(u, -kappa, kappa), w = tau or 1 - tau by the sign of u. */
VECTORISED static void quantile_huber(const float *quantiles, const float *atoms, const float *tau, float kappa,
                                      float *losses, float *derivatives, Py_ssize_t rows, Py_ssize_t num_quantiles,
                                      Py_ssize_t num_atoms) {
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *atom = atoms + row * num_atoms;
        float row_loss = 0.0f;
        for (Py_ssize_t begin = 0; begin < num_quantiles; begin += LANES) { /* quantiles side by side, atoms in turn */
            const Py_ssize_t count = num_quantiles - begin < LANES ? num_quantiles - begin : LANES;
            float quantile[LANES] = {0}, above[LANES] = {0}, below[LANES], loss[LANES] = {0}, pull[LANES] = {0};
            memcpy(quantile, quantiles + row * num_quantiles + begin, sizeof(float) * count);
            memcpy(above, tau + begin, sizeof(float) * count);
            for (int lane = 0; lane < LANES; lane++) below[lane] = 1.0f - above[lane];
            for (Py_ssize_t j = 0; j < num_atoms; j++) {
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++) {
                    const float u = atom[j] - quantile[lane];
                    float c = u > kappa ? kappa : u;
                    c = c < -kappa ? -kappa : c;
                    const float weighted = c * (u < 0.0f ? below[lane] : above[lane]);
                    pull[lane] += weighted;
                    loss[lane] += weighted * (u - 0.5f * c);
                }
            }
            for (int lane = 0; lane < count; lane++) {
                derivatives[row * num_quantiles + begin + lane] = -pull[lane];
                row_loss += loss[lane];
            }
        }
        losses[row] = row_loss;
    }
}

/* Of LANES rows of one critic's quantiles (num_quantiles, rows): the `dropped` highest, in order. */
static inline void highest_of(const float *columns, Py_ssize_t num_quantiles, Py_ssize_t rows, Py_ssize_t count,
                              Py_ssize_t dropped, float highest[][LANES]) {
    for (Py_ssize_t k = 0; k < dropped; k++)
        for (int lane = 0; lane < LANES; lane++) highest[k][lane] = -FLT_MAX;
    for (Py_ssize_t m = 0; m < num_quantiles; m++) {
        float rest[LANES] = {0};
        memcpy(rest, columns + m * rows, sizeof(float) * count);
        for (Py_ssize_t k = 0; k < dropped; k++) {
#pragma omp simd
            for (int lane = 0; lane < LANES; lane++) {
                const float held = highest[k][lane], own = rest[lane];
                highest[k][lane] = held > own ? held : own;
                rest[lane] = held > own ? own : held;
            }
        }
    }
}

/* The mean of all quantiles (critics, quantiles, rows) of a row but each critic's `dropped` highest. */
VECTORISED static void conservative_value(const float *columns, float *values, Py_ssize_t num_critics,
                                          Py_ssize_t num_quantiles, Py_ssize_t rows, Py_ssize_t dropped) {
    const float scale = 1.0f / (float)(num_critics * (num_quantiles - dropped));
    for (Py_ssize_t row = 0; row < rows; row += LANES) {
        const Py_ssize_t count = rows - row < LANES ? rows - row : LANES;
        float total[LANES] = {0}, highest[MAX_DROPPED][LANES];
        for (Py_ssize_t critic = 0; critic < num_critics; critic++) {
            const float *own = columns + critic * num_quantiles * rows + row;
            highest_of(own, num_quantiles, rows, count, dropped, highest);
            for (Py_ssize_t m = 0; m < num_quantiles; m++)
                for (Py_ssize_t lane = 0; lane < count; lane++) total[lane] += own[m * rows + lane];
            for (Py_ssize_t k = 0; k < dropped; k++)
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++) total[lane] -= highest[k][lane];
        }
        for (Py_ssize_t lane = 0; lane < count; lane++) values[row + lane] = total[lane] * scale;
    }
}

/* Its derivative in each quantile. Of equal ones the first are dropped. */
VECTORISED static void value_weights(const float *columns, float *weights, Py_ssize_t num_critics,
                                     Py_ssize_t num_quantiles, Py_ssize_t rows, Py_ssize_t dropped) {
    const float scale = 1.0f / (float)(num_critics * (num_quantiles - dropped));
    for (Py_ssize_t row = 0; row < rows; row += LANES) {
        const Py_ssize_t count = rows - row < LANES ? rows - row : LANES;
        float highest[MAX_DROPPED][LANES];
        for (Py_ssize_t critic = 0; critic < num_critics; critic++) {
            const Py_ssize_t offset = critic * num_quantiles * rows + row;
            float bound[LANES], left[LANES] = {0}; /* the lowest that is dropped, and how many equal to it still are */
            highest_of(columns + offset, num_quantiles, rows, count, dropped, highest);
            for (int lane = 0; lane < LANES; lane++) bound[lane] = highest[dropped - 1][lane];
            for (Py_ssize_t k = 0; k < dropped; k++)
                for (int lane = 0; lane < LANES; lane++) left[lane] += highest[k][lane] == bound[lane];
            for (Py_ssize_t m = 0; m < num_quantiles; m++) {
                const float *own = columns + offset + m * rows;
                float *weight = weights + offset + m * rows;
                for (Py_ssize_t lane = 0; lane < count; lane++) {
                    const float goes = own[lane] == bound[lane] && left[lane] > 0.0f ? 1.0f : 0.0f;
                    left[lane] -= goes;
                    weight[lane] = own[lane] > bound[lane] ? 0.0f : scale - scale * goes;
                }
            }
        }
    }
}

/* Read `count` integers; returns 0 after setting an exception. */
static int numbers_of(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t count, Py_ssize_t *numbers) {
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, not the %zd of this kernel", given, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyLong_AsSsize_t(arguments[i]);
        if (numbers[i] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

#define AT(index) ((float *)(intptr_t)n[index])

static PyObject *call_product(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[9];
    if (!numbers_of(arguments, given, 9, n)) return NULL;
    if (n[8] % 16) return PyErr_Format(PyExc_ValueError, "a product of width %zd, no multiple of 16", n[8]);
    const Factors at = {.x = AT(0), .row_stride = n[1], .step_stride = n[2], .weights = AT(3), .bias = AT(4),
                        .out = AT(5), .rows = n[6], .steps = n[7], .width = n[8], .weight_stride = n[8], .panel_stride = 16};
    Py_BEGIN_ALLOW_THREADS
    product(at);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_first_sums(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[9];
    if (!numbers_of(arguments, given, 9, n)) return NULL;
    const Factors at = {.start = AT(0), .bias = AT(1), .x = AT(2), .weights = AT(3), .out = AT(4), .rows_per_start = n[5],
                        .rows = n[6], .width = n[7], .steps = n[8], .row_stride = n[8], .step_stride = 1,
                        .weight_stride = n[7], .panel_stride = 16};
    Py_BEGIN_ALLOW_THREADS
    if (n[7] % 16 == 0 && HAS_AVX512)
        product(at);
    else
        first_sums(AT(0), AT(1), AT(2), AT(3), AT(4), n[5], n[6], n[7], n[8]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_mish(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[3];
    if (!numbers_of(arguments, given, 3, n)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    mish(AT(0), AT(1), n[2]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_mish_and_slope(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[5];
    if (!numbers_of(arguments, given, 5, n)) return NULL;
    Py_BEGIN_ALLOW_THREADS /* slopes of the first n[4] elements only */
    mish_and_slope(AT(0), AT(1), AT(2), n[4]);
    mish(AT(0) + n[4], AT(1) + n[4], n[3] - n[4]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_norm_sigmoid(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[7];
    if (!numbers_of(arguments, given, 7, n)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    norm_sigmoid(AT(0), AT(1), AT(2), AT(3), AT(4), n[5], n[6]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_norm_sigmoid_back(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[9];
    if (!numbers_of(arguments, given, 9, n)) return NULL;
    if (n[8] > MAX_WIDTH) return PyErr_Format(PyExc_ValueError, "a layer of %zd, above %d", n[8], MAX_WIDTH);
    Py_BEGIN_ALLOW_THREADS
    norm_sigmoid_back(AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), n[7], n[8]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_quantile_huber(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[8];
    if (given != 9) return PyErr_Format(PyExc_TypeError, "%zd arguments, not the 9 of this kernel", given);
    const double kappa = PyFloat_AsDouble(arguments[8]);
    if ((kappa == -1.0 && PyErr_Occurred()) || !numbers_of(arguments, 8, 8, n)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    quantile_huber(AT(0), AT(1), AT(2), (float)kappa, AT(3), AT(4), n[5], n[6], n[7]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

typedef void (*OfColumns)(const float *, float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t);

static PyObject *call_of_columns(OfColumns kernel, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[6];
    if (!numbers_of(arguments, given, 6, n)) return NULL;
    if (n[5] < 1 || n[5] > MAX_DROPPED || n[5] >= n[3])
        return PyErr_Format(PyExc_ValueError, "%zd of %zd quantiles dropped, not 1 to %d", n[5], n[3], MAX_DROPPED);
    Py_BEGIN_ALLOW_THREADS
    kernel(AT(0), AT(1), n[2], n[3], n[4], n[5]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_conservative_value(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    return call_of_columns(conservative_value, arguments, given);
}

static PyObject *call_value_weights(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    return call_of_columns(value_weights, arguments, given);
}

/* From (spare, block, inputs, outputs, is_packed), and of each layer (weights, bias, gain, shift, back, stride, width);
 * returns 0 after setting an exception. */
static int network_of(PyObject *const *arguments, Py_ssize_t given, Network *network) {
    enum { FIRST = 5, EACH = 7 };
    const Py_ssize_t num_layers = (given - FIRST) / EACH;
    Py_ssize_t n[FIRST + EACH * MAX_LAYERS];
    if (num_layers < 2 || num_layers > MAX_LAYERS || given != FIRST + EACH * num_layers) {
        PyErr_Format(PyExc_ValueError, "%zd numbers are not those of 2 to %d layers", given, MAX_LAYERS);
        return 0;
    }
    if (!numbers_of(arguments, given, given, n)) return 0;
    *network = (Network){.spare = AT(0), .block = n[1], .inputs = n[2], .outputs = n[3], .is_packed = n[4] != 0,
                         .num_layers = num_layers};
    if (network->block < 1 || network->inputs < 1) {
        PyErr_Format(PyExc_ValueError, "blocks of %zd rows, %zd inputs", network->block, network->inputs);
        return 0;
    }
    for (Py_ssize_t i = 0; i < num_layers; i++) {
        const Py_ssize_t at = FIRST + EACH * i, width = n[at + 6];
        network->layers[i] = (Layer){AT(at), AT(at + 1), AT(at + 2), AT(at + 3), AT(at + 4), n[at + 5], width};
        if (width < 16 || width % 16) {
            PyErr_Format(PyExc_ValueError, "a layer of width %zd, no multiple of 16", width);
            return 0;
        }
        network->widest = width > network->widest ? width : network->widest;
    }
    return 1;
}

/* Rows in blocks of whole states; returns 0 after setting an exception. */
static int fits(Base base, Py_ssize_t rows, const Network *network) {
    if (base.per_state >= 1 && rows >= 1 && rows % base.per_state == 0 && network->block % base.per_state == 0) return 1;
    PyErr_Format(PyExc_ValueError, "%zd rows in blocks of %zd, %zd of each state", rows, network->block, base.per_state);
    return 0;
}

static PyObject *call_denoise(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[9];
    Network denoiser;
    if (!numbers_of(arguments, given < 9 ? given : 9, 9, n) || !network_of(arguments + 9, given - 9, &denoiser)) return NULL;
    const Base base = {.states = AT(0), .per_state = n[1], .level = AT(2)};
    if (!fits(base, n[6], &denoiser)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    denoise(&denoiser, base, AT(3), AT(4), AT(5), n[6], n[7], n[8]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_forward_each(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[6];
    Network network;
    if (!numbers_of(arguments, given < 6 ? given : 6, 6, n) || !network_of(arguments + 6, given - 6, &network)) return NULL;
    const Base base = {.states = AT(0), .per_state = n[1]};
    if (!fits(base, n[5], &network)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    forward_each(&network, base, AT(2), AT(3), n[4], n[5]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *call_ascent(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    Py_ssize_t n[7];
    Network critics;
    if (!numbers_of(arguments, given < 7 ? given : 7, 7, n) || !network_of(arguments + 7, given - 7, &critics)) return NULL;
    const Base base = {.states = AT(0), .per_state = n[1]};
    if (!fits(base, n[5], &critics)) return NULL;
    if (n[6] < 0 || n[6] > MAX_DROPPED || n[6] >= critics.outputs)
        return PyErr_Format(PyExc_ValueError, "%zd of %zd quantiles dropped, not 0 to %d", n[6], critics.outputs,
                            MAX_DROPPED);
    for (Py_ssize_t i = 1; i < critics.num_layers; i++)
        if (!critics.layers[i].back || critics.is_packed)
            return PyErr_Format(PyExc_ValueError, "critics without a way back");
    Py_BEGIN_ALLOW_THREADS
    ascent(&critics, base, AT(2), AT(3), n[4], n[5], n[6]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* From (loss, counters, learning rate, both betas, eps, largest norm), and of each tensor (parameter, gradient, mean,
 * square, step, count). */
static PyObject *call_adam_step(PyObject *self, PyObject *const *arguments, Py_ssize_t given) {
    enum { EACH = 6, FIRST = 7 };
    const Py_ssize_t num_tensors = (given - FIRST) / EACH;
    Py_ssize_t n[EACH * MAX_TENSORS];
    double settings[FIRST - 2];
    if (num_tensors < 1 || num_tensors > MAX_TENSORS || given != FIRST + EACH * num_tensors)
        return PyErr_Format(PyExc_ValueError, "%zd numbers are not those of 1 to %d tensors", given, MAX_TENSORS);
    for (int i = 0; i < FIRST - 2; i++) {
        settings[i] = PyFloat_AsDouble(arguments[2 + i]);
        if (settings[i] == -1.0 && PyErr_Occurred()) return NULL;
    }
    if (!numbers_of(arguments, 2, 2, n)) return NULL;
    const float loss = *AT(0);
    float *counters = AT(1);
    if (!numbers_of(arguments + FIRST, given - FIRST, given - FIRST, n)) return NULL;
    Learned each[MAX_TENSORS];
    for (Py_ssize_t i = 0; i < num_tensors; i++) {
        const Py_ssize_t at = EACH * i;
        each[i] = (Learned){AT(at), AT(at + 1), AT(at + 2), AT(at + 3), AT(at + 4), n[at + 5]};
    }
    Py_BEGIN_ALLOW_THREADS
    adam_step(each, num_tensors, (AdamSettings){settings[0], settings[1], settings[2], settings[3], settings[4]}, loss,
              counters);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"adam_step", (PyCFunction)(void (*)(void))call_adam_step, METH_FASTCALL,
     "(loss, counters, learning rate, beta 1, beta 2, eps, largest norm, parameter, gradient, mean, square, step, "
     "count, ...)"},
    {"ascent", (PyCFunction)(void (*)(void))call_ascent, METH_FASTCALL,
     "(states, rows per state, x, gradient, networks, rows, dropped, network ...)"},
    {"denoise", (PyCFunction)(void (*)(void))call_denoise, METH_FASTCALL,
     "(states or 0, rows per state, level sums, levels, noise, x, rows, steps, stop, network ...)"},
    {"forward_each", (PyCFunction)(void (*)(void))call_forward_each, METH_FASTCALL,
     "(states, rows per state, x, out, networks, rows, network ...)"},
    {"product", (PyCFunction)(void (*)(void))call_product, METH_FASTCALL,
     "(x, its strides by row and by step, weights, bias or 0, out, rows, steps, width)"},
    {"conservative_value", (PyCFunction)(void (*)(void))call_conservative_value, METH_FASTCALL,
     "(columns, values, critics, quantiles, rows, dropped)"},
    {"value_weights", (PyCFunction)(void (*)(void))call_value_weights, METH_FASTCALL,
     "(columns, weights, critics, quantiles, rows, dropped)"},
    {"first_sums", (PyCFunction)(void (*)(void))call_first_sums, METH_FASTCALL,
     "(states, level or 0, x, weights, sums, rows per state, rows, width, inputs)"},
    {"mish", (PyCFunction)(void (*)(void))call_mish, METH_FASTCALL, "(negated, values, count)"},
    {"mish_and_slope", (PyCFunction)(void (*)(void))call_mish_and_slope, METH_FASTCALL,
     "(negated, values, slopes, count, count of slopes)"},
    {"norm_sigmoid", (PyCFunction)(void (*)(void))call_norm_sigmoid, METH_FASTCALL,
     "(sums, gain, shift, values, inverse_stds, rows, width)"},
    {"norm_sigmoid_back", (PyCFunction)(void (*)(void))call_norm_sigmoid_back, METH_FASTCALL,
     "(gradient, values, normed, inverse_stds, gain, to_gain or 0, to_shift or 0, rows, width)"},
    {"quantile_huber", (PyCFunction)(void (*)(void))call_quantile_huber, METH_FASTCALL,
     "(quantiles, atoms, tau, losses, derivatives, rows, quantiles, atoms, kappa)"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "VERSION", VERSION) < 0 ||
                 PyModule_AddIntConstant(made, "HAS_CLONES", HAS_CLONES) < 0))
        Py_CLEAR(made);
    return made;
}
