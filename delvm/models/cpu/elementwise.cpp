// What a transformer computes between its matrix products, in bfloat16; see elementwise.py.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "numbers.h"

namespace {

constexpr int64_t SMALL = 1 << 14;  // elements below which a second thread costs more than it saves

// Rotate the two halves of each head (D) of a token by the angles of cos and sin (D / 2). Without
// fused operations, which would round differently than PyTorch.
__attribute__((optimize("fp-contract=off"))) void rotate_token(const BFloat16* x, const float* cos,
                                                               const float* sin, float sign,
                                                               int64_t h, int64_t d, BFloat16* y) {
  for (int64_t head = 0; head < h; head++, x += d, y += d) {
#pragma omp simd
    for (int64_t i = 0; i < d / 2; i++) {
      float first = to_float(x[i]), second = to_float(x[i + d / 2]), s = sign * sin[i];
      y[i] = to_bf16(first * cos[i] - second * s);
      y[i + d / 2] = to_bf16(second * cos[i] + first * s);
    }
  }
}

}  // namespace

// x (B, T, H, D), rows and tokens at strides. cos and sin (T, D / 2), rows at a stride, which is 0
// where all have the same. y (B, T, H, D). sign = -1 rotates back.
extern "C" void delvm_rotate(const BFloat16* x, const float* cos, const float* sin, BFloat16* y,
                             int64_t b, int64_t t, int64_t h, int64_t d, int64_t row_stride,
                             int64_t token_stride, int64_t angle_stride, int64_t sign) {
#pragma omp parallel for if (b * t * h * d > SMALL)
  for (int64_t i = 0; i < b * t; i++) {
    int64_t angles = i / t * angle_stride + i % t * (d / 2);
    rotate_token(x + i / t * row_stride + i % t * token_stride, cos + angles, sin + angles,
                 static_cast<float>(sign), h, d, y + i * h * d);
  }
}

// RMSNorm of rows x (N, C) with a weight (C).
extern "C" void delvm_rms_norm(const BFloat16* x, const BFloat16* weight, BFloat16* y, int64_t n,
                               int64_t c, double eps) {
#pragma omp parallel for if (n * c > SMALL)
  for (int64_t i = 0; i < n; i++) {
    const BFloat16* row = x + i * c;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < c; j++) sum += to_float(row[j]) * to_float(row[j]);
    float factor = 1 / std::sqrt(sum / c + static_cast<float>(eps));
#pragma omp simd
    for (int64_t j = 0; j < c; j++)
      y[i * c + j] = to_bf16(to_float(row[j]) * factor * to_float(weight[j]));
  }
}

// gate (N) = silu(gate) * up, in place.
extern "C" void delvm_gate(BFloat16* gate, const BFloat16* up, int64_t n) {
#pragma omp parallel for simd if (parallel : n > SMALL)
  for (int64_t i = 0; i < n; i++) {
    float x = to_float(gate[i]);
    gate[i] = to_bf16(x / (1 + exp_clamped(-x)) * to_float(up[i]));
  }
}
