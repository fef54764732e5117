/* Networks of few rows, as the robot PC runs them: all layers of one, and a denoiser's reverse chain. */
#pragma once
#include "native_activations.h"

#define MAX_LAYERS 8

/* Its weights lie behind one another: those of the first layer (inputs, H), then each further layer's (H, H') and its bias
 * (H'), and behind each hidden layer's, if it is normed, gain and shift (H). Widths are multiples of 16, and a layer's weights
 * lie in panels of 16 columns: few rows read all of them once, from far memory, and so one behind the other. */
typedef struct {
    float *spare; /* room for two of the widest layer and one number more for each row */
    Py_ssize_t rows, inputs, num_layers, widths[MAX_LAYERS], widest;
    int is_normed; /* norm_sigmoid behind the hidden layers, else mish of their negated sums */
} Network;

/* out (rows, the last width) of x (rows, inputs), the first layer's bias given. */
static void forward(const Network *network, const float *weights, const float *first_bias, const float *x, float *out) {
    const Py_ssize_t rows = network->rows;
    float *values = network->spare, *others = values + rows * network->widest, *stds = others + rows * network->widest;
    Factors layer = {.x = x, .row_stride = network->inputs, .step_stride = 1, .weights = weights, .bias = first_bias,
                     .out = values, .rows = rows, .steps = network->inputs, .width = network->widths[0],
                     .weight_stride = 16, .panel_stride = 16 * network->inputs};
    weights += network->inputs * network->widths[0];
    for (Py_ssize_t i = 1; i < network->num_layers; i++) {
        const Py_ssize_t width = layer.width;
        product(layer);
        if (network->is_normed) {
            norm_sigmoid(values, weights, weights + width, values, stds, rows, width);
            weights += 2 * width;
        } else {
            mish(values, values, rows * width);
        }
        layer.x = values, layer.row_stride = layer.steps = width, layer.panel_stride = 16 * width;
        layer.width = network->widths[i];
        layer.weights = weights, layer.bias = weights + width * layer.width;
        weights = layer.bias + layer.width;
        layer.out = i + 1 < network->num_layers ? others : out;
        others = values, values = layer.out;
    }
    product(layer);
}

/* To [-1, 1]; what is not a number stays so. */
static inline float clamped(float x) {
    const float within = x > 1.0f ? 1.0f : x < -1.0f ? -1.0f : x;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7fffffffu) > 0x7f800000u ? x : within;
}

/* Of each denoising step; prepared_sampler.py says what they are. */
enum { NOISY_GAIN, PREDICTION_GAIN, CLEAN_COEFFICIENT, NOISY_COEFFICIENT, SIGMA, LEVEL };

/* x (K, A): the end of the chain from noise (T + 1, K, A), with first_bias (T, H), levels (T, LEVEL) and room for what the
 * denoiser predicts, padded to its last width. */
static void denoise(const Network *denoiser, const float *weights, const float *first_bias, const float *levels,
                    const float *noise, float *x, float *predicted, Py_ssize_t steps) {
    const Py_ssize_t action_dim = denoiser->inputs, elements = denoiser->rows * action_dim;
    const Py_ssize_t padded = denoiser->widths[denoiser->num_layers - 1];
    memcpy(x, noise + steps * elements, sizeof(float) * elements);
    for (Py_ssize_t step = steps - 1; step >= 0; step--) {
        const float *level = levels + step * LEVEL, *fresh = noise + step * elements;
        forward(denoiser, weights, first_bias + step * denoiser->widths[0], x, predicted);
        for (Py_ssize_t i = 0; i < elements; i++) {
            const float own = predicted[i / action_dim * padded + i % action_dim];
            const float clean = clamped(level[NOISY_GAIN] * x[i] + level[PREDICTION_GAIN] * own);
            x[i] = level[SIGMA] * fresh[i] + level[NOISY_COEFFICIENT] * x[i] + level[CLEAN_COEFFICIENT] * clean;
        }
    }
    for (Py_ssize_t i = 0; i < elements; i++) x[i] = clamped(x[i]);
}
