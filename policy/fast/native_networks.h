/* Networks of linear layers, all layers of some rows in one call, and a denoiser's reverse chains. */
#pragma once
#include <float.h>

#include "native_activations.h"

#define MAX_LAYERS 8
#define MAX_DROPPED 16

/* Of one network or of several side by side: the pointers are the first one's. Widths are multiples of 16. Behind a hidden
 * layer comes norm_sigmoid if it has a gain, else mish of its negated sums. */
typedef struct {
    const float *weights, *bias, *gain, *shift; /* (inputs, width), the others (width); the first layer has no bias */
    const float *back; /* the weights the other way round (width, inputs), of all but the first layer; for `ascent` alone */
    Py_ssize_t stride, width; /* stride: of the weights, from one network to the next */
} Layer;

/* Rows go through all layers in blocks that stay in the second-level cache, with the weights. */
typedef struct {
    float *spare; /* room for a block's rows: see native_kernels.py */
    Py_ssize_t block, inputs, outputs, num_layers, widest; /* outputs: of the last layer's, the others pad it */
    int is_packed; /* weights lie in panels of 16 columns: few rows read all of them once, and so one behind the other */
    Layer layers[MAX_LAYERS];
} Network;

/* What is added to the first layer's sums; NULL for none. */
typedef struct {
    const float *states, *level; /* (states, width) and (width) */
    Py_ssize_t per_state; /* neighbouring rows of one state; a block holds whole states */
} Base;

/* out (rows, the last width) of x (rows, inputs), at most a block's. */
static void forward(const Network *network, Py_ssize_t index, Base base, const float *x, float *out, Py_ssize_t rows) {
    float *values = network->spare, *others = values + network->block * network->widest;
    float *stds = others + network->block * network->widest;
    Factors at = {.x = x, .row_stride = network->inputs, .step_stride = 1, .start = base.states, .bias = base.level,
                  .rows_per_start = base.per_state, .rows = rows, .steps = network->inputs};
    for (Py_ssize_t i = 0; i < network->num_layers; i++) {
        const Layer *layer = network->layers + i;
        const Py_ssize_t width = layer->width;
        at.weights = layer->weights + index * layer->stride, at.width = width;
        at.weight_stride = network->is_packed ? 16 : width, at.panel_stride = network->is_packed ? 16 * at.steps : 16;
        if (i) at.start = NULL, at.bias = layer->bias + index * width;
        at.out = i + 1 < network->num_layers ? values : out;
        product(at);
        if (at.out == out) return;
        if (layer->gain)
            norm_sigmoid(values, layer->gain + index * width, layer->shift + index * width, values, stds, rows, width);
        else
            mish(values, values, rows * width);
        at.x = values, at.row_stride = at.steps = width;
        values = others, others = (float *)at.x;
    }
}

/* The base of a block that begins at `row`. */
static inline Base base_from(Base base, Py_ssize_t row, Py_ssize_t width) {
    if (base.states) base.states += row / base.per_state * width;
    return base;
}

static inline Py_ssize_t block_of(const Network *network, Py_ssize_t row, Py_ssize_t rows) {
    return rows - row < network->block ? rows - row : network->block;
}

/* out (networks, rows, the last width) of x (rows, inputs) and states (networks, states, the first width). */
static void forward_each(const Network *network, Base base, const float *x, float *out, Py_ssize_t count,
                         Py_ssize_t rows) {
    const Py_ssize_t width = network->layers[0].width, outputs = network->layers[network->num_layers - 1].width;
    for (Py_ssize_t i = 0; i < count; i++) {
        for (Py_ssize_t row = 0; row < rows; row += network->block)
            forward(network, i, base_from(base, row, width), x + row * network->inputs, out + row * outputs,
                    block_of(network, row, rows));
        out += rows * outputs, base.states += rows / base.per_state * width;
    }
}

/* To [-bound, bound]; what is not a number stays so. */
static inline float clamped(float x, float bound) {
    const float within = x > bound ? bound : x < -bound ? -bound : x;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7fffffffu) > 0x7f800000u ? x : within;
}

/* Of each denoising step; chain.py says what they are. */
enum { ERROR_GAIN, BOUND, CLIPPED_WEIGHT, NOISY_WEIGHT, SIGMA, LEVEL };

/* x (rows, A): steps T - 1 to `stop` of chains from noise (T + 1, rows, A), with level sums (T, the first width). */
static void denoise(const Network *denoiser, Base base, const float *levels, const float *noise, float *x,
                    Py_ssize_t rows, Py_ssize_t steps, Py_ssize_t stop) {
    const Py_ssize_t action_dim = denoiser->inputs, width = denoiser->layers[0].width;
    const Py_ssize_t padded = denoiser->layers[denoiser->num_layers - 1].width;
    const float *level_sums = base.level;
    float *predicted = denoiser->spare + denoiser->block * (2 * denoiser->widest + 1);
    for (Py_ssize_t row = 0; row < rows; row += denoiser->block) {
        const Py_ssize_t count = block_of(denoiser, row, rows);
        float *own = x + row * action_dim;
        Base at = base_from(base, row, width);
        memcpy(own, noise + (steps * rows + row) * action_dim, sizeof(float) * count * action_dim);
        for (Py_ssize_t step = steps - 1; step >= stop; step--) {
            const float *level = levels + step * LEVEL, *fresh = noise + (step * rows + row) * action_dim;
            at.level = level_sums + step * width;
            forward(denoiser, 0, at, own, predicted, count);
            for (Py_ssize_t r = 0; r < count; r++)
                for (Py_ssize_t a = 0; a < action_dim; a++) {
                    const Py_ssize_t i = r * action_dim + a;
                    const float clean = clamped(own[i] - level[ERROR_GAIN] * predicted[r * padded + a], level[BOUND]);
                    own[i] = level[SIGMA] * fresh[i] + level[NOISY_WEIGHT] * own[i] + level[CLIPPED_WEIGHT] * clean;
                }
        }
    }
}

/* The derivative of the mean of all quantiles but the `dropped` highest, in place of the quantiles (rows, quantiles), rows
 * `stride` apart and the derivative times `scale`. Of equal ones the first are dropped. */
static void weights_of(float *quantiles, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t num_quantiles, Py_ssize_t dropped,
                       float scale) {
    for (float *q = quantiles, *end = quantiles + rows * stride; q < end; q += stride) {
        float highest[MAX_DROPPED], bound = FLT_MAX;
        Py_ssize_t left = 0;
        for (Py_ssize_t k = 0; k < dropped; k++) highest[k] = -FLT_MAX;
        for (Py_ssize_t m = 0; m < num_quantiles; m++) {
            float rest = q[m];
            for (Py_ssize_t k = 0; k < dropped; k++) {
                const float held = highest[k];
                highest[k] = held > rest ? held : rest;
                rest = held > rest ? rest : held;
            }
        }
        if (dropped) bound = highest[dropped - 1];
        for (Py_ssize_t k = 0; k < dropped; k++) left += highest[k] == bound;
        for (Py_ssize_t m = 0; m < num_quantiles; m++) {
            const int goes = q[m] == bound && left > 0;
            left -= goes;
            q[m] = q[m] > bound || goes ? 0.0f : scale;
        }
    }
}

/* gradient = gradient times the derivative of mish, from its slopes. */
VECTORISED static void mish_back(float *gradient, const float *slopes, Py_ssize_t count) {
#pragma omp simd
    for (Py_ssize_t i = 0; i < count; i++) gradient[i] -= 2.0f * gradient[i] * slopes[i];
}

/* gradient (rows, inputs) += sums (rows, width) weights (inputs, width) transposed: few inputs. */
VECTORISED static void add_to_inputs(const float *sums, const float *weights, float *gradient, Py_ssize_t rows,
                                     Py_ssize_t inputs, Py_ssize_t width) {
    for (Py_ssize_t row = 0; row < rows; row++)
        for (Py_ssize_t input = 0; input < inputs; input++) {
            float total = 0.0f;
#pragma omp simd reduction(+ : total)
            for (Py_ssize_t i = 0; i < width; i++) total += sums[row * width + i] * weights[input * width + i];
            gradient[row * inputs + input] += total;
        }
}

/* gradient (rows, inputs), of a block, += one critic's part of the derivative of the conservative value in x. */
static void add_ascent(const Network *critic, Py_ssize_t index, Base base, const float *x, float *gradient, Py_ssize_t rows,
                       Py_ssize_t dropped, float scale) {
    const Py_ssize_t last = critic->num_layers - 1;
    float *sums[MAX_LAYERS], *values[MAX_LAYERS], *stds[MAX_LAYERS], *free = critic->spare;
    Factors at = {.x = x, .row_stride = critic->inputs, .step_stride = 1, .start = base.states,
                  .rows_per_start = base.per_state, .rows = rows, .steps = critic->inputs, .panel_stride = 16};
    for (Py_ssize_t i = 0; i <= last; i++) {
        const Layer *layer = critic->layers + i;
        const Py_ssize_t width = layer->width;
        sums[i] = free, values[i] = sums[i] + rows * width, stds[i] = values[i] + rows * width;
        free = i == last ? values[i] : stds[i] + rows;
        at.weights = layer->weights + index * layer->stride, at.weight_stride = at.width = width, at.out = sums[i];
        if (i) at.start = NULL, at.bias = layer->bias + index * width;
        product(at);
        if (i == last) break;
        if (layer->gain)
            norm_sigmoid(sums[i], layer->gain + index * width, layer->shift + index * width, values[i], stds[i], rows, width);
        else
            mish_and_slope(sums[i], values[i], sums[i], rows * width);
        at.x = values[i], at.row_stride = at.steps = width;
    }
    weights_of(sums[last], rows, critic->layers[last].width, critic->outputs, dropped, scale);
    float *other = free + rows * critic->widest;
    at = (Factors){.x = sums[last], .row_stride = critic->layers[last].width, .step_stride = 1, .rows = rows,
                   .steps = critic->outputs, .panel_stride = 16, .out = free};
    for (Py_ssize_t i = last; i > 0; i--) {
        const Layer *layer = critic->layers + i - 1;
        const Py_ssize_t width = layer->width;
        at.weights = critic->layers[i].back + index * at.steps * width, at.weight_stride = at.width = width;
        product(at);
        if (layer->gain)
            norm_sigmoid_back(at.out, values[i - 1], sums[i - 1], stds[i - 1], layer->gain + index * width, NULL, NULL, rows,
                              width);
        else
            mish_back(at.out, sums[i - 1], rows * width);
        at.x = at.out, at.row_stride = at.steps = width, at.out = other, other = (float *)at.x;
    }
    const Layer *first = critic->layers;
    add_to_inputs(at.x, first->weights + index * first->stride, gradient, rows, critic->inputs, first->width);
}

/* gradient (rows, inputs) of critics' conservative value, their mean without each one's `dropped` highest quantiles. */
static void ascent(const Network *critics, Base base, const float *x, float *gradient, Py_ssize_t count, Py_ssize_t rows,
                   Py_ssize_t dropped) {
    const Py_ssize_t width = critics->layers[0].width;
    const float scale = 1.0f / (float)(count * (critics->outputs - dropped));
    memset(gradient, 0, sizeof(float) * rows * critics->inputs);
    for (Py_ssize_t i = 0; i < count; i++, base.states += rows / base.per_state * width)
        for (Py_ssize_t row = 0; row < rows; row += critics->block)
            add_ascent(critics, i, base_from(base, row, width), x + row * critics->inputs, gradient + row * critics->inputs,
                       block_of(critics, row, rows), dropped, scale);
}
