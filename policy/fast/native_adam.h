/* A step of Adam over all tensors of a network in one call: starting PyTorch's operations takes longer than they do. */
#pragma once
#include "native_activations.h"

#define MAX_TENSORS 64

typedef struct {
    float *parameter;
    const float *gradient;
    float *mean, *square, *step; /* the moments, and how many steps are in them */
    Py_ssize_t count;
} Learned;

typedef struct {
    double learning_rate, beta_1, beta_2, eps, max_norm; /* max_norm 0: gradients are not clipped */
} AdamSettings;

/* Squares in float, as PyTorch has them: of a gradient beyond 1e19 they are infinite. */
VECTORISED static double sum_of_squares(const float *x, Py_ssize_t count) {
    enum { AT_ONCE = 4096 };
    double total = 0.0;
    for (Py_ssize_t begin = 0; begin < count; begin += AT_ONCE) {
        const Py_ssize_t end = count - begin < AT_ONCE ? count : begin + AT_ONCE;
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (Py_ssize_t i = begin; i < end; i++) part += x[i] * x[i];
        total += (double)part;
    }
    return total;
}

VECTORISED static void adam_of_tensor(Learned at, float scale, AdamSettings settings) {
    const double steps = (double)++*at.step;
    const float beta_1 = (float)settings.beta_1, beta_2 = (float)settings.beta_2, eps = (float)settings.eps;
    const float new_1 = (float)(1.0 - settings.beta_1), new_2 = (float)(1.0 - settings.beta_2);
    const float rate = (float)(settings.learning_rate / (1.0 - pow(settings.beta_1, steps)));
    const float correction = (float)(1.0 / sqrt(1.0 - pow(settings.beta_2, steps)));
#pragma omp simd
    for (Py_ssize_t i = 0; i < at.count; i++) {
        const float g = at.gradient[i] * scale;
        const float mean = beta_1 * at.mean[i] + new_1 * g;
        const float square = beta_2 * at.square[i] + new_2 * g * g;
        at.mean[i] = mean;
        at.square[i] = square;
        at.parameter[i] -= rate * mean / (sqrtf(square) * correction + eps);
    }
}

/* counters: steps left out, in all and in a row; the loss and the gradient's norm. A step of which one of these two is
 * not finite is left out. */
static void adam_step(const Learned *each, Py_ssize_t num_tensors, AdamSettings settings, float loss, float *counters) {
    double squares = 0.0;
    for (Py_ssize_t i = 0; i < num_tensors; i++) squares += sum_of_squares(each[i].gradient, each[i].count);
    const float norm = (float)sqrt(squares);
    const int is_good = is_finite(loss) && is_finite(norm);
    const double clip = settings.max_norm / ((double)norm + 1e-6);
    const float scale = settings.max_norm > 0.0 && clip < 1.0 ? (float)clip : 1.0f;
    for (Py_ssize_t i = 0; is_good && i < num_tensors; i++) adam_of_tensor(each[i], scale, settings);
    counters[0] += is_good ? 0.0f : 1.0f;
    counters[1] = is_good ? 0.0f : counters[1] + 1.0f;
    counters[2] = loss;
    counters[3] = norm;
}
