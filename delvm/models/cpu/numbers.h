// Numbers in bfloat16, and exponential functions that compilers vectorize.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline BFloat16 to_bf16(float x) {  // round to nearest even; infinity and NaN are preserved
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline void store(float x, float& y) { y = x; }
inline void store(float x, BFloat16& y) { y = to_bf16(x); }

// y * 2^n, where `shifted` is n + 1.5 * 2^23. From that number on, floats have no fraction, so adding
// it to a number rounds that to an integer n.
inline float add_exponent(float y, float shifted) {
  int32_t exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &y, sizeof bits);
  bits += static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23);
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

constexpr float SHIFT = 12582912.f;  // 1.5 * 2^23

// e^x with a relative error of 2e-7, for x in [-87, 88]; smaller and larger x are moved there. The
// remainder of rounding goes through a Taylor polynomial.
inline float exp_clamped(float x) {
  x = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
  float shifted = x * 1.44269504f + SHIFT;
  float integer = shifted - SHIFT;
  float r = x - integer * 0.693359375f + integer * 2.12194440e-4f;
  float y = 1.98412698e-4f;
  y = y * r + 1.38888889e-3f;
  y = y * r + 8.33333333e-3f;
  y = y * r + 4.16666667e-2f;
  y = y * r + 0.166666667f;
  y = y * r + 0.5f;
  y = y * r + 1.f;
  y = y * r + 1.f;
  return add_exponent(y, shifted);
}

// 2^x for x <= about 0, with a relative error of 4e-6, enough for a bfloat16; at least 2^-126.
inline float exp2_approx(float x) {
  x = x < -126.f ? -126.f : x;
  float shifted = x + SHIFT;
  float remainder = x - (shifted - SHIFT);
  float y = 0.00961812911f;
  y = y * remainder + 0.0555041087f;
  y = y * remainder + 0.240226507f;
  y = y * remainder + 0.693147181f;
  y = y * remainder + 1.f;
  return add_exponent(y, shifted);
}

}  // namespace
