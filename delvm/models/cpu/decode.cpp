// A transformer's forward pass over a few new tokens, on top of a key-value cache; see decode.py.
//
// Such a pass is bound by the speed at which memory is read. So all layers run in one call, each
// weight is read once, in the order in which it is stored, and activations stay in cache. The sums
// of a token are computed in an order that does not depend on the other tokens of the call, so its
// result does not depend on them either.
//
// Notation:
//   B rows    T new tokens of a row    N = B * T    C width    F inner width of the MLP
//   H heads   D dimension of a head    P tokens of the prefix that all rows share

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#include "numbers.h"

namespace {

// Weight (rows, columns) and bias (rows), which may be null. Only int8 weights have a scale (rows).
struct Linear {
  const void *weight, *bias;
  const float* scale;
};

struct Layer {
  const void *norm1, *norm2;
  Linear qkv, out, gate, up, down;
};

struct Model {
  int64_t n_layers, dim, n_heads, ffn_dim, max_seq_len;
  double eps;
  const float* rope;  // (2, max_seq_len, D / 2)
  const Layer* layers;
  const void* norm;
};

struct Cache {
  void* buffer;         // (layers, 2, B, H, capacity, D)
  float* scales;        // (layers, 2, B, H, capacity), of an int8 buffer; else null
  const void* prefix;   // (layers, 2, 1, H, prefix_capacity, D), or null
  const float* prefix_scales;
  int64_t capacity, prefix_capacity, prefix_length;
  int64_t length;  // tokens in `buffer` before this call
};

// ---- products ----

// One register of activations or weights, and sum += a * b of two; 32 elements in bfloat16, else 16.
inline __m512 to_floats(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 to_floats(const int8_t* x) {
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}
inline __m512 to_floats(const BFloat16* x) {
  __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512bh load(const BFloat16* x) { return (__m512bh)_mm512_loadu_si512(x); }
inline __m512 load(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load(const int8_t* x) { return to_floats(x); }
inline __m512 multiply_add(__m512bh a, __m512bh b, __m512 sum) {
  return _mm512_dpbf16_ps(sum, a, b);
}
inline __m512 multiply_add(__m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }

template <typename X>
constexpr int64_t WIDTH = std::is_same_v<X, BFloat16> ? 32 : 16;

// The sum of each of N registers, in a fixed order, N = 8 or 16; fewer are filled up with zeros.
template <int N>
inline void sum_each(__m512* x, float* y) {
  for (int i = 0; i < N; i += 2)
    x[i / 2] = _mm512_add_ps(_mm512_unpacklo_ps(x[i], x[i + 1]), _mm512_unpackhi_ps(x[i], x[i + 1]));
  for (int i = 0; i < N / 2; i += 2) {
    __m512d a = _mm512_castps_pd(x[i]), b = _mm512_castps_pd(x[i + 1]);
    x[i / 2] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < N / 4; i += 2)
    x[i / 2] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 1], 0x88),
                             _mm512_shuffle_f32x4(x[i], x[i + 1], 0xdd));
  __m512 last = N == 8 ? x[0] : x[1];
  __m512 sums = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], last, 0x88),
                              _mm512_shuffle_f32x4(x[0], last, 0xdd));
  if (N == 8)
    _mm256_storeu_ps(y, _mm512_castps512_ps256(sums));
  else
    _mm512_storeu_ps(y, sums);
}

constexpr int64_t ROWS = 8;  // of a weight that one thread takes at a time

// Products of M activations (M, k) and R rows of weights (R, k): y (M, R), of 16 elements. The rows
// that come AHEAD rows later are fetched from memory meanwhile, a line of the cache of each row in
// some of the steps: asking for those of all rows at once has to wait.
template <int M, int R, int AHEAD, typename X, typename W>
inline void tile(const X* x, const W* w, int64_t k, float* y) {
  constexpr int N = M * R <= 8 ? 8 : 16;
  constexpr int STEPS = std::max<int>(1, 64 / (WIDTH<X> * sizeof(W)));  // that read one line
  __m512 sums[N];
  for (int i = 0; i < N; i++) sums[i] = _mm512_setzero_ps();
  auto step = [&](int64_t i, int number) __attribute__((always_inline)) {
    decltype(load(x)) a[M];
    for (int m = 0; m < M; m++) a[m] = load(x + m * k + i);
    for (int r = 0; r < R; r++) {
      auto b = load(w + r * k + i);
      if (AHEAD && r % STEPS == number)
        _mm_prefetch(reinterpret_cast<const char*>(w + (r + AHEAD) * k + i), _MM_HINT_T0);
      for (int m = 0; m < M; m++) sums[m * R + r] = multiply_add(a[m], b, sums[m * R + r]);
    }
  };
  int64_t i = 0;
  for (; i + STEPS * WIDTH<X> <= k; i += STEPS * WIDTH<X>)
#pragma GCC unroll 4
    for (int number = 0; number < STEPS; number++) step(i + number * WIDTH<X>, number);
  for (; i < k; i += WIDTH<X>) step(i, -1);
  sum_each<N>(sums, y);
}

// Rows [row, row + 8) of a product with M activations x (M, k): y(m, row, value) for each.
template <int M, int AHEAD, typename T, typename W, typename X, typename F>
inline void product(const Linear& linear, const X* x, int64_t k, int64_t row, F y) {
  constexpr int R = M == 1 ? 8 : 4;
  const W* w = static_cast<const W*>(linear.weight) + row * k;
  const T* bias = static_cast<const T*>(linear.bias);
  float values[16];
  for (int64_t first = 0; first < ROWS; first += R) {
    tile<M, R, AHEAD>(x, w + first * k, k, values);
    for (int64_t m = 0; m < M; m++)
      for (int64_t r = 0; r < R; r++) {
        float value = values[m * R + r];
        int64_t index = row + first + r;
        if (linear.scale) value *= linear.scale[index];
        if (bias) value += to_float(bias[index]);
        y(m, index, value);
      }
  }
}

// The same for x (n, k). The rows that come next are fetched from memory meanwhile; for one
// activation, that pays with int8 alone.
template <typename T, typename W, typename X, typename F>
inline void product(const Linear& linear, const X* x, int64_t n, int64_t k, int64_t row, F y) {
  constexpr int FEW = std::is_same_v<W, int8_t> ? ROWS : 0;
  for (int64_t m = 0; m < n; m += 4) {
    const X* a = x + m * k;
    auto put = [&](int64_t i, int64_t r, float value) { y(m + i, r, value); };
    if (n - m == 1) product<1, FEW, T, W>(linear, a, k, row, put);
    if (n - m == 2) product<2, ROWS, T, W>(linear, a, k, row, put);
    if (n - m == 3) product<3, ROWS, T, W>(linear, a, k, row, put);
    if (n - m >= 4 && m) product<4, 0, T, W>(linear, a, k, row, put);
    if (n - m >= 4 && !m) product<4, ROWS, T, W>(linear, a, k, row, put);
  }
}

// ---- the pass ----

// Tokens of one pass, whose activations stay in cache; t is at most as many, b may be more.
constexpr int64_t MAX_TOKENS = 64;

// Ask for `bytes` of memory that are read soon: the hardware looks ahead within pages of 4 KiB alone.
inline void prefetch(const void* first, int64_t bytes) {
  constexpr int64_t DISTANCE = 8192;
  const char* x = static_cast<const char*>(first) + DISTANCE;
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(x + i, _MM_HINT_T0);
}

// T: type of norms, biases and result. W: of weights.
template <typename T, typename W>
struct Pass {
  static constexpr bool INT8 = std::is_same_v<W, int8_t>;
  using K = std::conditional_t<INT8, int8_t, T>;  // of the cache
  using X = std::conditional_t<INT8, float, T>;   // of what weights and keys are multiplied with

  // Keys or values of a head (tokens, D), with a scale per token where they are int8.
  struct Tokens {
    const K* x;
    const float* scale;
  };

  const Model& s;
  const Cache& cache;
  float* x;             // (N, C), the residual stream
  int64_t first, b, t;  // rows [first, first + B) of the cache, which has `rows`
  int64_t rows;
  int64_t n = b * t, c = s.dim, h = s.n_heads, d = c / h, f = s.ffn_dim;
  int64_t keys = cache.prefix_length + cache.length + t;  // of the last token
  std::unique_ptr<float[]> qkv = std::make_unique_for_overwrite<float[]>(n * 3 * c);
  std::unique_ptr<X[]> attended = std::make_unique_for_overwrite<X[]>(n * c);
  std::unique_ptr<X[]> hidden = std::make_unique_for_overwrite<X[]>(n * f);

  // RMSNorm of token i.
  template <typename Y>
  void norm(int64_t i, const void* weight, Y* y) const {
    const float* row = x + i * c;
    const T* scale = static_cast<const T*>(weight);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < c; j++) sum += row[j] * row[j];
    float factor = 1 / std::sqrt(sum / c + static_cast<float>(s.eps));
#pragma omp simd
    for (int64_t j = 0; j < c; j++) store(row[j] * factor * to_float(scale[j]), y[i * c + j]);
  }

  // Keys (kind 0) or values (1) of a row's own tokens, or of the prefix, in a layer.
  int64_t own_offset(int64_t layer, int64_t kind, int64_t row, int64_t head) const {
    return (((layer * 2 + kind) * rows + first + row) * h + head) * cache.capacity;
  }
  Tokens own(int64_t layer, int64_t kind, int64_t row, int64_t head) const {
    int64_t offset = own_offset(layer, kind, row, head);
    return {static_cast<const K*>(cache.buffer) + offset * d, cache.scales + offset};
  }
  Tokens shared(int64_t layer, int64_t kind, int64_t head) const {
    int64_t offset = ((layer * 2 + kind) * h + head) * cache.prefix_capacity;
    return {static_cast<const K*>(cache.prefix) + offset * d, cache.prefix_scales + offset};
  }

  // Keep a key or value x (D) of a token, at an offset of the cache.
  void keep(const float* x, int64_t offset) const {
    K* y = static_cast<K*>(cache.buffer) + offset * d;
    if constexpr (INT8) {
      float max = 0;
#pragma omp simd reduction(max : max)
      for (int64_t j = 0; j < d; j++) max = std::fabs(x[j]) > max ? std::fabs(x[j]) : max;
      float scale = max ? max / 127 : 1;
      cache.scales[offset] = scale;
#pragma omp simd
      for (int64_t j = 0; j < d; j++) y[j] = static_cast<int8_t>(std::nearbyint(x[j] / scale));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < d; j++) store(x[j], y[j]);
    }
  }

  // Rotate query and key of a head of token i; move key and value to the cache.
  void extend_cache(int64_t layer, int64_t i, int64_t head) const {
    int64_t slot = cache.length + i % t, position = cache.prefix_length + slot;
    const float *cos = s.rope + position * d / 2, *sin = cos + s.max_seq_len * d / 2;
    float* q = qkv.get() + i * 3 * c + head * d;
    float *k = q + c, *v = k + c;
    for (float* y : {q, k}) {
#pragma omp simd
      for (int64_t j = 0; j < d / 2; j++) {
        float first = y[j], second = y[j + d / 2];
        y[j] = first * cos[j] - second * sin[j];
        y[j + d / 2] = second * cos[j] + first * sin[j];
      }
    }
    keep(k, own_offset(layer, 0, i / t, head) + slot);
    keep(v, own_offset(layer, 1, i / t, head) + slot);
  }

  // Scores (M, ld) of M queries (M, D) with `count` keys.
  template <int M>
  static void scores(const X* q, Tokens key, int64_t count, int64_t d, float* y, int64_t ld) {
    constexpr int R = M == 1 ? 8 : 4;
    int64_t j = 0;
    for (; j + R <= count; j += R) scores<M, R>(q, key, j, d, y, ld);
    for (; j < count; j++) scores<M, 1>(q, key, j, d, y, ld);
  }

  // The same with the keys [first, first + R).
  template <int M, int R>
  static void scores(const X* q, Tokens key, int64_t first, int64_t d, float* y, int64_t ld) {
    float values[16];
    const K* x = key.x + first * d;
    prefetch(x, R * d * sizeof(K));
    tile<M, R, 0>(q, x, d, values);
    for (int64_t m = 0; m < M; m++)
      for (int64_t r = 0; r < R; r++)
        y[m * ld + first + r] = values[m * R + r] * scale_of(key, first + r);
  }
  static float scale_of(Tokens tokens, int64_t j) { return INT8 ? tokens.scale[j] : 1; }

  // y (M, D) += weights (M, ld) @ values (count, D).
  template <int M>
  static void add_values(const float* weights, int64_t ld, Tokens value, int64_t count, int64_t d,
                         float* y) {
    if (M == 1 && d % 64 == 0)
      add_columns<M, 4>(weights, ld, value, count, d, y);
    else
      add_columns<M, 2>(weights, ld, value, count, d, y);
  }

  // The same, with the sums of 16 N columns in registers.
  template <int M, int N>
  static void add_columns(const float* weights, int64_t ld, Tokens value, int64_t count, int64_t d,
                          float* y) {
    for (int64_t i = 0; i < d; i += 16 * N) {
      __m512 sums[2][M][N];  // of even and odd tokens, since an addition waits for the one before
      for (auto& sum : sums)
        for (auto& row : sum)
          for (auto& x : row) x = _mm512_setzero_ps();
      auto add = [&](int64_t j, auto& sum) {
        const K* x = value.x + j * d + i;
        if (16 * N * sizeof(K) >= 64 || j % 2 == 0) prefetch(x, 16 * N * sizeof(K));
        __m512 v[N];
        for (int n = 0; n < N; n++) v[n] = to_floats(x + 16 * n);
        for (int m = 0; m < M; m++) {
          __m512 weight = _mm512_set1_ps(weights[m * ld + j] * scale_of(value, j));
          for (int n = 0; n < N; n++) sum[m][n] = _mm512_fmadd_ps(weight, v[n], sum[m][n]);
        }
      };
      for (int64_t j = 0; j + 2 <= count; j += 2) {
        add(j, sums[0]);
        add(j + 1, sums[1]);
      }
      if (count % 2) add(count - 1, sums[0]);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
          float* to = y + m * d + i + 16 * n;
          __m512 sum = _mm512_add_ps(sums[0][m][n], sums[1][m][n]);
          _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum));
        }
    }
  }

  // Attention of a head of M tokens from token i on. `buffer` holds 2 D + keys floats per token.
  template <int M>
  void attend(int64_t layer, int64_t i, int64_t head, float* buffer) const {
    int64_t p = cache.prefix_length;
    X* q = reinterpret_cast<X*>(buffer);
    float *y = buffer + M * d, *weights = y + M * d;
    float scale = 1 / std::sqrt(static_cast<float>(d));
    for (int64_t m = 0; m < M; m++)
      for (int64_t j = 0; j < d; j++) store(qkv[(i + m) * 3 * c + head * d + j], q[m * d + j]);
    if (p) scores<M>(q, shared(layer, 0, head), p, d, weights, keys);
    float sums[M];
    for (int64_t m = 0; m < M; m++) {
      int64_t row = (i + m) / t, count = cache.length + (i + m) % t + 1;
      scores<1>(q + m * d, own(layer, 0, row, head), count, d, weights + m * keys + p, keys);
      sums[m] = softmax(weights + m * keys, p + count, scale);
    }
    std::fill(y, y + M * d, 0.f);
    if (p) add_values<M>(weights, keys, shared(layer, 1, head), p, d, y);
    for (int64_t m = 0; m < M; m++) {
      int64_t row = (i + m) / t, count = cache.length + (i + m) % t + 1;
      add_values<1>(weights + m * keys + p, keys, own(layer, 1, row, head), count, d, y + m * d);
      for (int64_t j = 0; j < d; j++) store(y[m * d + j] / sums[m], attended[(i + m) * c + head * d + j]);
    }
  }

  // Scores to unnormalized weights, in place; returns their sum.
  static float softmax(float* x, int64_t count, float scale) {
    float max = x[0], sum = 0;
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < count; j++) max = x[j] > max ? x[j] : max;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; j++) sum += x[j] = exp_clamped((x[j] - max) * scale);
    return sum;
  }

  // Attention of a head of the rows [row, last).
  void attend_rows(int64_t layer, int64_t head, int64_t row, int64_t last, float* buffer) const {
    int64_t i = row * t, end = last * t;
    for (int64_t j = i; j < end; j++) extend_cache(layer, j, head);
    for (; cache.prefix_length && i + 4 <= end; i += 4) attend<4>(layer, i, head, buffer);
    for (; i < end; i++) attend<1>(layer, i, head, buffer);
  }

  // All layers; called by each thread of a team. What is small is computed by all of them.
  void run(T* result) const {
    auto buffer = std::make_unique_for_overwrite<float[]>(4 * (2 * d + keys));
    auto normed = std::make_unique_for_overwrite<X[]>(n * c);
    // Rows of one task: with a prefix four tokens or more, which read it together.
    int64_t group = cache.prefix_length ? (3 + t) / t : 1, groups = (b + group - 1) / group;
    for (int64_t layer = 0; layer < s.n_layers; layer++) {
      const Layer& l = s.layers[layer];
      auto add = [&](int64_t i, int64_t row, float value) { x[i * c + row] += value; };
      for (int64_t i = 0; i < n; i++) norm(i, l.norm1, normed.get());
#pragma omp for schedule(static)
      for (int64_t row = 0; row < 3 * c; row += ROWS)
        product<T, W>(l.qkv, normed.get(), n, c, row, [&](int64_t i, int64_t r, float value) {
          qkv[i * 3 * c + r] = value;
        });
#pragma omp for schedule(static)  // head by head, so that the prefix of a head is read once
      for (int64_t task = 0; task < h * groups; task++) {
        int64_t row = task % groups * group;
        attend_rows(layer, task / groups, row, std::min(b, row + group), buffer.get());
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < c; row += ROWS)
        product<T, W>(l.out, attended.get(), n, c, row, add);
      for (int64_t i = 0; i < n; i++) norm(i, l.norm2, normed.get());
#pragma omp for schedule(static)
      for (int64_t row = 0; row < f; row += ROWS) gated(l, normed.get(), row);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < c; row += ROWS)
        product<T, W>(l.down, hidden.get(), n, f, row, add);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++) norm(i, s.norm, result);
  }

  // Channels [row, row + 8) of silu(gate) * up, for all tokens.
  void gated(const Layer& l, const X* input, int64_t row) const {
    float gate[MAX_TOKENS][ROWS];
    product<T, W>(l.gate, input, n, c, row, [&](int64_t i, int64_t r, float value) {
      gate[i][r - row] = value;
    });
    product<T, W>(l.up, input, n, c, row, [&](int64_t i, int64_t r, float value) {
      float g = gate[i][r - row];
      store(g / (1 + exp_clamped(-g)) * value, hidden[i * f + r]);
    });
  }
};

template <typename T, typename W>
void decode(const Model& model, const Cache& cache, float* x, void* result, int64_t b, int64_t t,
            int64_t threads) {
  int64_t most = std::max<int64_t>(1, MAX_TOKENS / t);
  for (int64_t first = 0; first < b; first += most) {
    int64_t offset = first * t * model.dim;
    Pass<T, W> pass{model, cache, x + offset, first, std::min(most, b - first), t, b};
#pragma omp parallel num_threads(threads)
    pass.run(static_cast<T*>(result) + offset);
  }
}

}  // namespace

// x: embeddings (B, T, C), overwritten. result: (B, T, C) after the last norm.
extern "C" void delvm_decode_float(const Model* model, const Cache* cache, float* x, float* result,
                                   int64_t b, int64_t t, int64_t threads, bool int8) {
  if (int8)
    decode<float, int8_t>(*model, *cache, x, result, b, t, threads);
  else
    decode<float, float>(*model, *cache, x, result, b, t, threads);
}

extern "C" void delvm_decode_bf16(const Model* model, const Cache* cache, float* x,
                                  BFloat16* result, int64_t b, int64_t t, int64_t threads,
                                  bool int8) {
  if (int8)
    decode<BFloat16, int8_t>(*model, *cache, x, result, b, t, threads);
  else
    decode<BFloat16, BFloat16>(*model, *cache, x, result, b, t, threads);
}
