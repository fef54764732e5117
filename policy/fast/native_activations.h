/* Activations of hidden layers and their derivatives, in one pass over memory. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native_products.h"

#define MAX_WIDTH 8192 /* of a normalised layer; its sums of gradients lie on the stack */

/* e^x within 2 units in the last place for |x| < 87; 0 or the greatest power of 2 beyond, to |x| = 1e6. The bound is on
 * integers, so that what is not a number stays so under -ffinite-math-only. */
static inline float exponential(float x) {
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;   /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent = (int32_t)n;
    exponent = exponent < -127 ? -127 : exponent;
    exponent = exponent > 127 ? 127 : exponent;
    const int32_t bits = (exponent + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* e^z where mish(z) = z tanh(softplus(z)) = z n / (n + 2), n = e^z (e^z + 2), still changes. */
static inline float exponential_for_mish(float z) {
    z = z > 20.0f ? 20.0f : z;
    return exponential(z < -100.0f ? -100.0f : z);
}

/* values = mish(-negated). */
VECTORISED static void mish(const float *negated, float *values, Py_ssize_t count) {
#pragma omp simd
    for (Py_ssize_t i = 0; i < count; i++) {
        const float z = -negated[i], e = exponential_for_mish(z), n = e * (e + 2.0f);
        values[i] = z * (n / (n + 2.0f));
    }
}

/* slopes = (1 + mish'(z)) / 2, z = -negated; mish'(z) = n d + 4 z e (1 + e) d^2 with e = e^z and d = 1 / (n + 2). */
VECTORISED static void mish_and_slope(const float *negated, float *values, float *slopes, Py_ssize_t count) {
#pragma omp simd
    for (Py_ssize_t i = 0; i < count; i++) {
        const float z = -negated[i], e = exponential_for_mish(z), n = e * (e + 2.0f);
        const float d = 1.0f / (n + 2.0f);
        values[i] = z * n * d;
        slopes[i] = 0.5f + 0.5f * n * d + 2.0f * z * (e * (1.0f + e) * d) * d;
    }
}

/* By their bits: the compiler was told that there are no others. */
static ALWAYS_INLINE int is_finite(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

static ALWAYS_INLINE float not_a_number(void) {
    const uint32_t bits = 0x7fc00000u;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* values = sigmoid(gain n + shift), n the LayerNorm of each row of sums, which it replaces. */
VECTORISED static void norm_sigmoid(float *sums, const float *gain, const float *shift, float *values,
                                    float *inverse_stds, Py_ssize_t rows, Py_ssize_t width) {
    for (Py_ssize_t row = 0; row < rows; row++) {
        float *x = sums + row * width, *value = values + row * width;
        float total = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : total)
        for (Py_ssize_t i = 0; i < width; i++) total += x[i];
        const float mean = total / (float)width;
#pragma omp simd reduction(+ : squares)
        for (Py_ssize_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
        const float inverse_std = is_finite(squares) ? 1.0f / sqrtf(squares / (float)width + 1e-5f) : not_a_number();
#pragma omp simd
        for (Py_ssize_t i = 0; i < width; i++) {
            const float n = (x[i] - mean) * inverse_std;
            x[i] = n;
            value[i] = 1.0f / (1.0f + exponential(-(n * gain[i] + shift[i])));
        }
        inverse_stds[row] = inverse_std;
    }
}

/* The gradient with respect to the sums of norm_sigmoid from that with respect to its values, in place; to_gain and
 * to_shift, where given, get those of gain and shift. */
VECTORISED static void norm_sigmoid_back(float *gradient, const float *values, const float *normed,
                                         const float *inverse_stds, const float *gain, float *to_gain,
                                         float *to_shift, Py_ssize_t rows, Py_ssize_t width) {
    float gains[MAX_WIDTH], shifts[MAX_WIDTH];
    if (to_gain) memset(gains, 0, sizeof(float) * width), memset(shifts, 0, sizeof(float) * width);
    for (Py_ssize_t row = 0; row < rows; row++) {
        float *g = gradient + row * width;
        const float *value = values + row * width, *n = normed + row * width;
        float total = 0.0f, along = 0.0f;
#pragma omp simd
        for (Py_ssize_t i = 0; i < width; i++) g[i] *= value[i] * (1.0f - value[i]);
        if (to_gain) {
#pragma omp simd
            for (Py_ssize_t i = 0; i < width; i++) gains[i] += g[i] * n[i], shifts[i] += g[i];
        }
#pragma omp simd reduction(+ : total, along)
        for (Py_ssize_t i = 0; i < width; i++) g[i] *= gain[i], total += g[i], along += g[i] * n[i];
        const float mean = total / (float)width, slope = along / (float)width;
#pragma omp simd
        for (Py_ssize_t i = 0; i < width; i++) g[i] = inverse_stds[row] * (g[i] - mean - n[i] * slope);
    }
    if (to_gain) memcpy(to_gain, gains, sizeof(float) * width), memcpy(to_shift, shifts, sizeof(float) * width);
}
