// Causal attention in bfloat16 on a processor; blockwise.py says what it is for.
//
// As in FlashAttention-2 (Dao 2023) scores are never there as a whole: a block of them is made in
// float32, in cache, and the backward pass makes it again from the logarithm of each query's sum.
// Products are oneDNN's, called through torch. They take the numbers of the right-hand matrix two
// rows at a time: row 2i and row 2i + 1 of column j lie side by side ("paired").
//
// Notation:
//   B batch    T tokens    H heads    D width of a head    N = B * H
//   P = T rounded up to whole blocks; what lies behind T is zero

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <utility>

namespace {

using Half = uint16_t;  // the bits of a bfloat16

constexpr int64_t BLOCK = 64;   // queries (forward) or keys (backward) that are taken at once
constexpr int64_t CHUNK = 512;  // queries that a block of keys is multiplied with at once
constexpr float LOG2E = 1.44269504f;

struct Shape {
  int64_t b, t, h, d;
  float scale = 1 / std::sqrt(static_cast<float>(d));

  int64_t heads() const { return b * h; }
  int64_t blocks() const { return (t + BLOCK - 1) / BLOCK; }
  int64_t padded() const { return blocks() * BLOCK; }
  int64_t stride() const { return h * d; }  // from token to token
  int64_t at(int64_t head) const { return (head / h * t * h + head % h) * d; }  // its first token
};

template <typename Number>
std::unique_ptr<Number[]> room(int64_t count) {
  return std::make_unique_for_overwrite<Number[]>(count);
}

// ---- numbers ----

inline float widened(Half x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline Half rounded(float x) {  // to the nearest, ties to even; infinite and what is no number stay
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<Half>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// 2^x for x up to about 0, to 4e-6 of it: a bfloat16 is made of it. Below 2^-126 it is that.
// The next integer comes from adding 1.5 * 2^23, after which no float has a fraction; the rest, from
// -1/2 to 1/2, goes through the Taylor polynomial, and the integer into the exponent.
inline float power_of_two(float x) {
  x = x < -126.f ? -126.f : x;
  float moved = x + 12582912.f;
  float rest = x - (moved - 12582912.f);
  float y = 0.00961812911f;
  y = y * rest + 0.0555041087f;
  y = y * rest + 0.240226507f;
  y = y * rest + 0.693147181f;
  y = y * rest + 1.f;
  int32_t integer, bits;
  std::memcpy(&integer, &moved, sizeof integer);
  std::memcpy(&bits, &y, sizeof bits);
  bits += static_cast<int32_t>(static_cast<uint32_t>(integer) << 23);
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// ---- matrices ----

// c (m, n) = a (m, k) @ b (k, n, paired), or added to c.
void multiply(int64_t m, int64_t n, int64_t k, const Half* a, int64_t a_row, const Half* b,
              int64_t b_row, float* c, int64_t c_row, bool add) {
  at::native::cpublas::brgemm(m, n, k, a_row, b_row, c_row, add,
                              reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

// A small product, to see whether oneDNN multiplies like this here; it throws where it does not.
bool able() noexcept {
  Half a[256] = {}, b[256] = {};
  float c[256];
  try {
    multiply(16, 16, 16, a, 16, b, 16, c, 16, false);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

// Tokens (count, D) transposed and paired: (D, to_row), zero behind `count`.
void pair_columns(const Half* from, int64_t row, int64_t count, int64_t d, int64_t to_row, Half* to) {
  auto in = reinterpret_cast<const uint32_t*>(from);
  auto out = reinterpret_cast<uint32_t*>(to);
  int32_t step = static_cast<int32_t>(row / 2);
  for (int64_t first = 0; first < to_row; first += 16) {
    int64_t known = std::min<int64_t>(16, count - first);
    for (int64_t pair = 0; pair < d / 2; pair++) {
      uint32_t* y = out + pair * to_row + first;
      const uint32_t* x = in + first * step + pair;
      if (known == 16) {
#pragma omp simd
        for (int32_t i = 0; i < 16; i++) y[i] = x[i * step];
      } else {
        for (int32_t i = 0; i < 16; i++) y[i] = i < known ? x[i * step] : 0;
      }
    }
  }
}

// Rows (count, width) paired: (rows, width), zero behind `count`.
void pair_rows(const Half* from, int64_t row, int64_t count, int64_t width, int64_t rows, Half* to) {
  auto out = reinterpret_cast<uint32_t*>(to);
  for (int64_t i = 0; i < rows; i += 2, out += width) {
    const Half *even = from + i * row, *odd = even + row;
    if (i + 1 < count) {
      for (int64_t j = 0; j < width; j++) out[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
    } else {
      for (int64_t j = 0; j < width; j++) out[j] = i < count ? even[j] : 0;
    }
  }
}

// Tokens (count, D) as they are, close together: (BLOCK, D), zero behind `count`.
void gather(const Half* from, int64_t row, int64_t count, int64_t d, Half* to) {
  for (int64_t i = 0; i < BLOCK; i++, to += d) {
    if (i < count) {
      std::memcpy(to, from + i * row, d * sizeof(Half));
    } else {
      std::memset(to, 0, d * sizeof(Half));
    }
  }
}

// ---- forward ----

// Scores x of keys [begin, end) to weights y, not yet divided by their sum; 0 for the other keys.
// Returns the logarithm (to base 2) of the sum that brings them to 1, and that sum's inverse.
inline std::pair<float, float> soften(const float* x, Half* y, int64_t begin, int64_t end,
                                      int64_t keys, float scale) {
  float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t j = begin; j < end; j++) top = x[j] > top ? x[j] : top;  // std::max is not vectorized
  top *= scale;
  std::memset(y, 0, begin * sizeof(Half));
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; j++) {
    float weight = power_of_two(x[j] * scale - top);
    sum += weight;
    y[j] = rounded(weight);
  }
  std::memset(y + end, 0, (keys - end) * sizeof(Half));
  return {top + std::log2(sum), 1 / sum};
}

struct Forward {
  Shape s;
  const Half *q, *k, *v;
  const int64_t* starts;  // (B, T), or null
  Half* out;
  float* sums;             // (N, T), the logarithms
  Half *columns, *paired;  // (N, D, P) of k and (N, P, D) of v

  void pack(int64_t head) const {
    int64_t size = s.padded() * s.d;
    pair_columns(k + s.at(head), s.stride(), s.t, s.d, s.padded(), columns + head * size);
    pair_rows(v + s.at(head), s.stride(), s.t, s.d, s.padded(), paired + head * size);
  }

  // One block of queries; room for scores (BLOCK, P + D) and for weights (BLOCK, P + D).
  void block(int64_t head, int64_t begin, float* scores, Half* weights) const {
    int64_t p = s.padded(), count = std::min(BLOCK, s.t - begin), query = s.at(head) + begin * s.stride();
    const int64_t* start = starts ? starts + head / s.h * s.t + begin : nullptr;
    int64_t first = start ? *start / BLOCK * BLOCK : 0;  // the first query sees the earliest keys
    int64_t keys = begin + BLOCK - first;
    float *result = scores + BLOCK * p, inverse[BLOCK];
    Half* some = weights + BLOCK * p;
    gather(q + query, s.stride(), count, s.d, some);
    multiply(BLOCK, keys, s.d, some, s.d, columns + head * p * s.d + first * 2, p, scores, keys, false);
    for (int64_t i = 0; i < BLOCK; i++) {
      int64_t from = start && i < count ? start[i] - first : 0, end = begin + i + 1 - first;
      auto [sum, over] = soften(scores + i * keys, weights + i * keys, from, end, keys, s.scale * LOG2E);
      inverse[i] = over;
      if (i < count) sums[head * s.t + begin + i] = sum;
    }
    multiply(BLOCK, s.d, keys, weights, keys, paired + (head * p + first) * s.d, s.d, result, s.d, false);
    for (int64_t i = 0; i < count; i++) {
      Half* y = out + query + i * s.stride();
      for (int64_t j = 0; j < s.d; j++) y[j] = rounded(result[i * s.d + j] * inverse[i]);
    }
  }
};

// ---- backward ----

struct Backward {
  Shape s;
  const Half *slope, *q, *k, *v;
  const int64_t* starts;  // (B, T), or null
  const Half* out;
  const float* sums;  // (N, T)
  Half *to_q, *to_k, *to_v;
};

// What one thread needs for the backward pass of a head.
class Head {
 public:
  explicit Head(const Backward& all)
      : a(all), s(all.s), p(s.padded()), far(p + 16), chunk(std::min(CHUNK, p)),
        halves(room<Half>(4 * p * s.d + 3 * BLOCK * s.d + 3 * BLOCK * chunk)),
        floats(room<float>(s.d * far + 2 * BLOCK * s.d + 2 * BLOCK * chunk + p)),
        seen(room<int64_t>(p)) {
    Half* half = halves.get();
    for (auto [place, size] : {std::pair{&q_columns, p * s.d}, {&slope_columns, p * s.d},
                               {&q_paired, p * s.d}, {&slope_paired, p * s.d},
                               {&some_k, BLOCK * s.d}, {&some_v, BLOCK * s.d},
                               {&k_columns, BLOCK * s.d}, {&weights, BLOCK * chunk},
                               {&to_scores, BLOCK * chunk}, {&to_scores_paired, BLOCK * chunk}}) {
      *place = half;
      half += size;
    }
    float* number = floats.get();
    for (auto [place, size] : {std::pair{&sum_q, s.d * far}, {&sum_k, BLOCK * s.d},
                               {&sum_v, BLOCK * s.d}, {&scores, BLOCK * chunk},
                               {&to_weights, BLOCK * chunk}, {&common, p}}) {
      *place = number;
      number += size;
    }
  }

  void run(int64_t number) {
    head = number;
    prepare();
    for (int64_t begin = 0; begin < s.t; begin += BLOCK) block(begin);
    for (int64_t i = 0; i < s.t; i++) {
      Half* y = a.to_q + s.at(head) + i * s.stride();
      const float* x = sum_q + i;
      int32_t step = static_cast<int32_t>(far);
#pragma omp simd
      for (int32_t j = 0; j < s.d; j++) y[j] = rounded(x[j * step] * s.scale);
    }
  }

 private:
  // Queries and slopes as products want them; what is the same for all keys of a query.
  void prepare() {
    int64_t from = s.at(head), row = s.stride();
    pair_columns(a.q + from, row, s.t, s.d, p, q_columns);
    pair_columns(a.slope + from, row, s.t, s.d, p, slope_columns);
    pair_rows(a.q + from, row, s.t, s.d, p, q_paired);
    pair_rows(a.slope + from, row, s.t, s.d, p, slope_paired);
    std::memset(sum_q, 0, s.d * far * sizeof(float));
    const int64_t* start = a.starts ? a.starts + head / s.h * s.t : nullptr;
    for (int64_t i = 0, end = 0; i < s.t; i++) {
      const Half *x = a.out + from + i * row, *y = a.slope + from + i * row;
      float sum = 0;  // of each weight times its gradient, over the keys of this query
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < s.d; j++) sum += widened(x[j]) * widened(y[j]);
      common[i] = sum;
      while (start && end < s.t && start[end] <= i) end++;
      seen[i] = start ? end : s.t;
    }
  }

  // One block of keys, with all queries that see any of them.
  void block(int64_t begin) {
    int64_t count = std::min(BLOCK, s.t - begin), from = s.at(head) + begin * s.stride();
    int64_t last = (seen[begin + count - 1] + BLOCK - 1) / BLOCK * BLOCK;
    gather(a.k + from, s.stride(), count, s.d, some_k);
    gather(a.v + from, s.stride(), count, s.d, some_v);
    for (int64_t i = 0; i < BLOCK; i++)
      for (int64_t j = 0; j < s.d; j++) k_columns[j * BLOCK + i] = some_k[i * s.d + j];
    for (int64_t query = begin; query < last; query += chunk) {
      int64_t n = std::min(chunk, last - query);
      bool add = query > begin;
      multiply(BLOCK, n, s.d, some_k, s.d, q_columns + query * 2, p, scores, n, false);
      multiply(BLOCK, n, s.d, some_v, s.d, slope_columns + query * 2, p, to_weights, n, false);
      for (int64_t i = 0; i < BLOCK; i++) key(i, i < count ? begin + i : s.t, query, n);
      pair_rows(to_scores, n, BLOCK, n, BLOCK, to_scores_paired);
      multiply(BLOCK, s.d, n, weights, n, slope_paired + query * s.d, s.d, sum_v, s.d, add);
      multiply(BLOCK, s.d, n, to_scores, n, q_paired + query * s.d, s.d, sum_k, s.d, add);
      multiply(s.d, n, BLOCK, k_columns, BLOCK, to_scores_paired, n, sum_q + query, far, true);
    }
    for (int64_t i = 0; i < count; i++) {
      int64_t row = from + i * s.stride();
      for (int64_t j = 0; j < s.d; j++) {
        a.to_k[row + j] = rounded(sum_k[i * s.d + j] * s.scale);
        a.to_v[row + j] = rounded(sum_v[i * s.d + j]);
      }
    }
  }

  // Row i of a chunk, which is of key `place`: weights and the gradients of scores of n queries.
  void key(int64_t i, int64_t place, int64_t query, int64_t n) {
    int64_t begin = std::clamp<int64_t>(place - query, 0, n);
    int64_t end = place < s.t ? std::clamp<int64_t>(seen[place] - query, begin, n) : begin;
    const float *x = scores + i * n, *to_weight = to_weights + i * n;
    const float *sum = a.sums + head * s.t + query, *part = common + query;
    Half *y = weights + i * n, *to_x = to_scores + i * n;
    float scale = s.scale * LOG2E;
    std::memset(y, 0, begin * sizeof(Half));
    std::memset(to_x, 0, begin * sizeof(Half));
#pragma omp simd
    for (int64_t j = begin; j < end; j++) {
      float weight = power_of_two(x[j] * scale - sum[j]);
      y[j] = rounded(weight);
      to_x[j] = rounded(weight * (to_weight[j] - part[j]));
    }
    std::memset(y + end, 0, (n - end) * sizeof(Half));
    std::memset(to_x + end, 0, (n - end) * sizeof(Half));
  }

  const Backward& a;
  Shape s;
  // Rows of sum_q are a little longer than P: at a power of two all would share a set of the cache.
  int64_t p, far, chunk, head = 0;
  std::unique_ptr<Half[]> halves;
  std::unique_ptr<float[]> floats;
  std::unique_ptr<int64_t[]> seen;  // (T), one past the last query that sees each key
  Half *q_columns, *slope_columns;  // (D, P) paired
  Half *q_paired, *slope_paired;    // (P, D) paired
  Half *some_k, *some_v;            // (BLOCK, D)
  Half* k_columns;                  // (D, BLOCK)
  Half *weights, *to_scores;        // (BLOCK, chunk)
  Half* to_scores_paired;           // (BLOCK, chunk) paired
  float* sum_q;                     // (D, far)
  float *sum_k, *sum_v;             // (BLOCK, D)
  float *scores, *to_weights;       // (BLOCK, chunk)
  float* common;                    // (T)
};

}  // namespace

// Both return whether they computed. All tensors are (B, T, H, D) but for starts (B, T; or null)
// and sums (N, T).
extern "C" bool delvm_attend(const Half* q, const Half* k, const Half* v, const int64_t* starts,
                             Half* out, float* sums, int64_t b, int64_t t, int64_t h, int64_t d) {
  if (!able()) return false;
  Shape s{b, t, h, d};
  int64_t size = s.heads() * s.padded() * d;
  auto packed = room<Half>(2 * size);
  Forward all{s, q, k, v, starts, out, sums, packed.get(), packed.get() + size};
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < s.heads(); head++) all.pack(head);
    auto scores = room<float>(BLOCK * (s.padded() + d));
    auto weights = room<Half>(BLOCK * (s.padded() + d));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s.heads() * s.blocks(); task++) {
      int64_t number = s.blocks() - 1 - task / s.heads();  // the longest first
      all.block(task % s.heads(), number * BLOCK, scores.get(), weights.get());
    }
    at::native::cpublas::brgemm_release();
  }
  return true;
}

extern "C" bool delvm_slopes(const Half* slope, const Half* q, const Half* k, const Half* v,
                             const int64_t* starts, const Half* out, const float* sums, Half* to_q,
                             Half* to_k, Half* to_v, int64_t b, int64_t t, int64_t h, int64_t d) {
  if (!able()) return false;
  Shape s{b, t, h, d};
  Backward all{s, slope, q, k, v, starts, out, sums, to_q, to_k, to_v};
#pragma omp parallel
  {
    Head head(all);
#pragma omp for schedule(dynamic)
    for (int64_t number = 0; number < s.heads(); number++) head.run(number);
    at::native::cpublas::brgemm_release();
  }
  return true;
}
