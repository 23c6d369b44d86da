// Causal attention in bfloat16 on CPU; see attention.py.
//
// FlashAttention-2 (Dao 2023): the full matrix of scores is never in memory. A block of scores is
// computed in float32, in cache, and the backward pass recomputes it from the log-sum-exp of each
// query. Matrix products are oneDNN's brgemm, called through torch. brgemm takes its right operand in
// VNNI layout: rows 2i and 2i + 1 are interleaved, so that their elements of one column are adjacent.
//
// Notation:
//   B batch    T tokens    H heads    D dimension of a head    N = B * H
//   P = T rounded up to a multiple of BLOCK; elements beyond T are zero
//   L = tokens of a prefix that all rows attend to completely, rounded up likewise

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <utility>

#include "numbers.h"

namespace {

constexpr int64_t BLOCK = 64;   // queries (forward) or keys (backward) per block
constexpr int64_t CHUNK = 512;  // queries that a block of keys is multiplied with at a time
constexpr float LOG2E = 1.44269504f;

struct Shape {
  int64_t b, t, h, d;
  float scale = 1 / std::sqrt(static_cast<float>(d));

  int64_t heads() const { return b * h; }
  int64_t blocks() const { return (t + BLOCK - 1) / BLOCK; }
  int64_t padded() const { return blocks() * BLOCK; }
  int64_t stride() const { return h * d; }  // from one token to the next
  // Offset of the first token of head n in [0, N).
  int64_t offset(int64_t head) const { return (head / h * t * h + head % h) * d; }
};

template <typename T>
std::unique_ptr<T[]> alloc(int64_t count) {
  return std::make_unique_for_overwrite<T[]>(count);
}

// ---- matrices; ld_* is the distance between rows, in elements (for VNNI, in columns) ----

// c (m, n) = a (m, k) @ b (k, n, VNNI), or c += with `accumulate`.
void matmul(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t ld_a,
            const BFloat16* b, int64_t ld_b, float* c, int64_t ld_c, bool accumulate) {
  at::native::cpublas::brgemm(m, n, k, ld_a, ld_b, ld_c, accumulate,
                              reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

// Whether oneDNN has this kernel here, tried with a small product: it throws where it has not.
bool brgemm_available() noexcept {
  BFloat16 a[256] = {}, b[256] = {};
  float c[256];
  try {
    matmul(16, 16, 16, a, 16, b, 16, c, 16, false);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

// Transpose tokens (count, D) into VNNI layout (D, ld_dst); zero beyond `count`.
void pack_vnni_transposed(const BFloat16* src, int64_t ld_src, int64_t count, int64_t d,
                          int64_t ld_dst, BFloat16* dst) {
  auto in = reinterpret_cast<const uint32_t*>(src);
  auto out = reinterpret_cast<uint32_t*>(dst);
  int32_t step = static_cast<int32_t>(ld_src / 2);
  for (int64_t first = 0; first < ld_dst; first += 16) {
    int64_t valid = std::min<int64_t>(16, count - first);
    for (int64_t pair = 0; pair < d / 2; pair++) {
      uint32_t* y = out + pair * ld_dst + first;
      const uint32_t* x = in + first * step + pair;
      if (valid == 16) {
#pragma omp simd
        for (int32_t i = 0; i < 16; i++) y[i] = x[i * step];
      } else {
        for (int32_t i = 0; i < 16; i++) y[i] = i < valid ? x[i * step] : 0;
      }
    }
  }
}

// Bring rows (count, width) into VNNI layout (rows, width); zero beyond `count`.
void pack_vnni(const BFloat16* src, int64_t ld_src, int64_t count, int64_t width, int64_t rows,
               BFloat16* dst) {
  auto out = reinterpret_cast<uint32_t*>(dst);
  for (int64_t i = 0; i < rows; i += 2, out += width) {
    const BFloat16 *even = src + i * ld_src, *odd = even + ld_src;
    if (i + 1 < count) {
      for (int64_t j = 0; j < width; j++)
        out[j] = even[j].bits | static_cast<uint32_t>(odd[j].bits) << 16;
    } else {
      for (int64_t j = 0; j < width; j++) out[j] = i < count ? even[j].bits : 0;
    }
  }
}

// Copy tokens (count, D) to contiguous rows (BLOCK, D); zero beyond `count`.
void copy_block(const BFloat16* src, int64_t ld_src, int64_t count, int64_t d,
                BFloat16* dst) {
  for (int64_t i = 0; i < BLOCK; i++, dst += d) {
    if (i < count) {
      std::memcpy(dst, src + i * ld_src, d * sizeof(BFloat16));
    } else {
      std::memset(dst, 0, d * sizeof(BFloat16));
    }
  }
}

// ---- forward ----

// Unnormalized softmax: scores x of keys [begin, end) to weights y, and 0 for the other keys.
// Returns the log-sum-exp (base 2) of the scores, and the factor that normalizes the weights.
inline std::pair<float, float> softmax_row(const float* x, BFloat16* y, int64_t begin,
                                           int64_t end, int64_t keys, float scale) {
  float max = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : max)
  for (int64_t j = begin; j < end; j++) max = x[j] > max ? x[j] : max;  // std::max is not vectorized
  max *= scale;
  std::memset(y, 0, begin * sizeof(BFloat16));
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; j++) {
    float weight = exp2_approx(x[j] * scale - max);
    sum += weight;
    y[j] = to_bf16(weight);
  }
  std::memset(y + end, 0, (keys - end) * sizeof(BFloat16));
  return {max + std::log2(sum), 1 / sum};
}

// Keys and values before all rows, the same for each: (H, >= length, D), heads `stride` apart.
struct Prefix {
  const BFloat16 *k, *v;  // null = no prefix
  int64_t length, stride;

  int64_t padded() const { return (length + BLOCK - 1) / BLOCK * BLOCK; }
};

struct Forward {
  Shape s;
  const BFloat16 *q, *k, *v;
  const int64_t* start_index;  // (B, T), or null
  Prefix prefix;
  BFloat16* out;
  float* logsumexp;                             // (N, T)
  BFloat16 *k_vnni, *v_vnni;                // (N, D, P) transposed, (N, P, D)
  BFloat16 *prefix_k_vnni, *prefix_v_vnni;  // (H, D, L) transposed, (H, L, D)

  void pack(int64_t head) const {
    int64_t size = s.padded() * s.d, size_of_prefix = prefix.padded() * s.d;
    pack_vnni_transposed(k + s.offset(head), s.stride(), s.t, s.d, s.padded(), k_vnni + head * size);
    pack_vnni(v + s.offset(head), s.stride(), s.t, s.d, s.padded(), v_vnni + head * size);
    if (!prefix.length || head >= s.h) return;
    pack_vnni_transposed(prefix.k + head * prefix.stride, s.d, prefix.length, s.d, prefix.padded(),
                         prefix_k_vnni + head * size_of_prefix);
    pack_vnni(prefix.v + head * prefix.stride, s.d, prefix.length, s.d, prefix.padded(),
              prefix_v_vnni + head * size_of_prefix);
  }

  // One block of queries. Buffers: scores (BLOCK, L + P + D), weights (BLOCK, L + P + D).
  void block(int64_t head, int64_t begin, float* scores, BFloat16* weights) const {
    int64_t p = s.padded(), count = std::min(BLOCK, s.t - begin), l = prefix.padded();
    int64_t query = s.offset(head) + begin * s.stride();
    const int64_t* start = start_index ? start_index + head / s.h * s.t + begin : nullptr;
    int64_t first = start ? *start / BLOCK * BLOCK : 0;  // the first query has the earliest start
    int64_t own = begin + BLOCK - first, keys = l + own;
    float *result = scores + BLOCK * (l + p), normalizer[BLOCK];
    BFloat16* q_block = weights + BLOCK * (l + p);
    copy_block(q + query, s.stride(), count, s.d, q_block);
    matmul(BLOCK, own, s.d, q_block, s.d, k_vnni + head * p * s.d + first * 2, p, scores + l, keys,
           false);
    if (l) matmul(BLOCK, l, s.d, q_block, s.d, prefix_k(head), l, scores, keys, false);
    for (int64_t i = 0; i < BLOCK; i++) {
      float* x = scores + i * keys;
      std::fill(x + prefix.length, x + l, -1e30f);
      int64_t from = start && i < count ? start[i] - first : 0, end = l + begin + i + 1 - first;
      auto [lse, inverse] = softmax_row(x, weights + i * keys, from, end, keys, s.scale * LOG2E);
      normalizer[i] = inverse;
      if (i < count) logsumexp[head * s.t + begin + i] = lse;
    }
    matmul(BLOCK, s.d, own, weights + l, keys, v_vnni + (head * p + first) * s.d, s.d, result, s.d,
           false);
    if (l) matmul(BLOCK, s.d, l, weights, keys, prefix_v(head), s.d, result, s.d, true);
    for (int64_t i = 0; i < count; i++) {
      BFloat16* y = out + query + i * s.stride();
      for (int64_t j = 0; j < s.d; j++) y[j] = to_bf16(result[i * s.d + j] * normalizer[i]);
    }
  }

  const BFloat16* prefix_k(int64_t head) const {
    return prefix_k_vnni + head % s.h * prefix.padded() * s.d;
  }
  const BFloat16* prefix_v(int64_t head) const {
    return prefix_v_vnni + head % s.h * prefix.padded() * s.d;
  }
};

// ---- backward ----

struct Backward {
  Shape s;
  const BFloat16 *grad_out, *q, *k, *v;
  const int64_t* start_index;  // (B, T), or null
  const BFloat16* out;
  const float* logsumexp;  // (N, T)
  BFloat16 *grad_q, *grad_k, *grad_v;
};

// Buffers of one thread for the backward pass, one head at a time.
class BackwardHead {
 public:
  explicit BackwardHead(const Backward& args)
      : a(args), s(args.s), p(s.padded()), ld(p + 16), chunk(std::min(CHUNK, p)),
        bf16_buffer(alloc<BFloat16>(4 * p * s.d + 3 * BLOCK * s.d + 3 * BLOCK * chunk)),
        float_buffer(alloc<float>(s.d * ld + 2 * BLOCK * s.d + 2 * BLOCK * chunk + p)),
        query_end(alloc<int64_t>(p)) {
    BFloat16* bf16 = bf16_buffer.get();
    for (auto [pointer, size] :
         {std::pair{&q_t_vnni, p * s.d}, {&grad_out_t_vnni, p * s.d}, {&q_vnni, p * s.d},
          {&grad_out_vnni, p * s.d}, {&k_block, BLOCK * s.d}, {&v_block, BLOCK * s.d},
          {&k_block_t, BLOCK * s.d}, {&weights, BLOCK * chunk}, {&grad_scores, BLOCK * chunk},
          {&grad_scores_vnni, BLOCK * chunk}}) {
      *pointer = bf16;
      bf16 += size;
    }
    float* f32 = float_buffer.get();
    for (auto [pointer, size] :
         {std::pair{&sum_q, s.d * ld}, {&sum_k, BLOCK * s.d}, {&sum_v, BLOCK * s.d},
          {&scores, BLOCK * chunk}, {&grad_weights, BLOCK * chunk}, {&delta, p}}) {
      *pointer = f32;
      f32 += size;
    }
  }

  void run(int64_t index) {
    head = index;
    prepare();
    for (int64_t begin = 0; begin < s.t; begin += BLOCK) block(begin);
    for (int64_t i = 0; i < s.t; i++) {
      BFloat16* y = a.grad_q + s.offset(head) + i * s.stride();
      const float* x = sum_q + i;
      int32_t step = static_cast<int32_t>(ld);
#pragma omp simd
      for (int32_t j = 0; j < s.d; j++) y[j] = to_bf16(x[j * step] * s.scale);
    }
  }

 private:
  // Pack queries and gradients for the products; compute what is the same for all keys of a query.
  void prepare() {
    int64_t from = s.offset(head), row = s.stride();
    pack_vnni_transposed(a.q + from, row, s.t, s.d, p, q_t_vnni);
    pack_vnni_transposed(a.grad_out + from, row, s.t, s.d, p, grad_out_t_vnni);
    pack_vnni(a.q + from, row, s.t, s.d, p, q_vnni);
    pack_vnni(a.grad_out + from, row, s.t, s.d, p, grad_out_vnni);
    std::memset(sum_q, 0, s.d * ld * sizeof(float));
    const int64_t* start = a.start_index ? a.start_index + head / s.h * s.t : nullptr;
    for (int64_t i = 0, end = 0; i < s.t; i++) {
      const BFloat16 *x = a.out + from + i * row, *y = a.grad_out + from + i * row;
      float sum = 0;  // over the keys of this query, of each weight times its gradient
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < s.d; j++) sum += to_float(x[j]) * to_float(y[j]);
      delta[i] = sum;
      while (start && end < s.t && start[end] <= i) end++;
      query_end[i] = start ? end : s.t;
    }
  }

  // One block of keys, with all queries that attend to any of them.
  void block(int64_t begin) {
    int64_t count = std::min(BLOCK, s.t - begin), from = s.offset(head) + begin * s.stride();
    int64_t last = (query_end[begin + count - 1] + BLOCK - 1) / BLOCK * BLOCK;
    copy_block(a.k + from, s.stride(), count, s.d, k_block);
    copy_block(a.v + from, s.stride(), count, s.d, v_block);
    for (int64_t i = 0; i < BLOCK; i++)
      for (int64_t j = 0; j < s.d; j++) k_block_t[j * BLOCK + i] = k_block[i * s.d + j];
    for (int64_t query = begin; query < last; query += chunk) {
      int64_t n = std::min(chunk, last - query);
      bool accumulate = query > begin;
      matmul(BLOCK, n, s.d, k_block, s.d, q_t_vnni + query * 2, p, scores, n, false);
      matmul(BLOCK, n, s.d, v_block, s.d, grad_out_t_vnni + query * 2, p, grad_weights, n, false);
      for (int64_t i = 0; i < BLOCK; i++) backward_row(i, i < count ? begin + i : s.t, query, n);
      pack_vnni(grad_scores, n, BLOCK, n, BLOCK, grad_scores_vnni);
      matmul(BLOCK, s.d, n, weights, n, grad_out_vnni + query * s.d, s.d, sum_v, s.d, accumulate);
      matmul(BLOCK, s.d, n, grad_scores, n, q_vnni + query * s.d, s.d, sum_k, s.d, accumulate);
      matmul(s.d, n, BLOCK, k_block_t, BLOCK, grad_scores_vnni, n, sum_q + query, ld, true);
    }
    for (int64_t i = 0; i < count; i++) {
      int64_t row = from + i * s.stride();
      for (int64_t j = 0; j < s.d; j++) {
        a.grad_k[row + j] = to_bf16(sum_k[i * s.d + j] * s.scale);
        a.grad_v[row + j] = to_bf16(sum_v[i * s.d + j]);
      }
    }
  }

  // Row i of a chunk, of the key at index `key`: its weights and score gradients for n queries.
  void backward_row(int64_t i, int64_t key, int64_t query, int64_t n) {
    int64_t begin = std::clamp<int64_t>(key - query, 0, n);
    int64_t end = key < s.t ? std::clamp<int64_t>(query_end[key] - query, begin, n) : begin;
    const float *x = scores + i * n, *grad_weight = grad_weights + i * n;
    const float *lse = a.logsumexp + head * s.t + query, *delta_chunk = delta + query;
    BFloat16 *y = weights + i * n, *grad_x = grad_scores + i * n;
    float scale = s.scale * LOG2E;
    std::memset(y, 0, begin * sizeof(BFloat16));
    std::memset(grad_x, 0, begin * sizeof(BFloat16));
#pragma omp simd
    for (int64_t j = begin; j < end; j++) {
      float weight = exp2_approx(x[j] * scale - lse[j]);
      y[j] = to_bf16(weight);
      grad_x[j] = to_bf16(weight * (grad_weight[j] - delta_chunk[j]));
    }
    std::memset(y + end, 0, (n - end) * sizeof(BFloat16));
    std::memset(grad_x + end, 0, (n - end) * sizeof(BFloat16));
  }

  const Backward& a;
  Shape s;
  // Rows of sum_q are longer than P: at a power of two all would map to the same cache set.
  int64_t p, ld, chunk, head = 0;
  std::unique_ptr<BFloat16[]> bf16_buffer;
  std::unique_ptr<float[]> float_buffer;
  std::unique_ptr<int64_t[]> query_end;         // (T), one past the last query attending to each key
  BFloat16 *q_t_vnni, *grad_out_t_vnni;     // (D, P) VNNI
  BFloat16 *q_vnni, *grad_out_vnni;         // (P, D) VNNI
  BFloat16 *k_block, *v_block, *k_block_t;  // (BLOCK, D), transposed (D, BLOCK)
  BFloat16 *weights, *grad_scores;          // (BLOCK, chunk)
  BFloat16* grad_scores_vnni;               // (BLOCK, chunk) VNNI
  float* sum_q;                                 // (D, ld)
  float *sum_k, *sum_v;                         // (BLOCK, D)
  float *scores, *grad_weights;                 // (BLOCK, chunk)
  float* delta;                                 // (T), as in FlashAttention-2
};

}  // namespace

// Both return whether oneDNN has the kernel; if not, nothing is computed. All tensors are
// (B, T, H, D) except start_index (B, T; or null), prefix_k and prefix_v (as in Prefix; or null,
// without start_index) and logsumexp (N, T).
extern "C" bool delvm_flash_forward(const BFloat16* q, const BFloat16* k,
                                    const BFloat16* v, const int64_t* start_index,
                                    const BFloat16* prefix_k, const BFloat16* prefix_v,
                                    BFloat16* out, float* logsumexp, int64_t b, int64_t t,
                                    int64_t h, int64_t d, int64_t prefix_length,
                                    int64_t prefix_stride) {
  if (!brgemm_available()) return false;
  Shape s{b, t, h, d};
  Prefix prefix{prefix_k, prefix_v, prefix_length, prefix_stride};
  int64_t size = s.heads() * s.padded() * d, size_of_prefix = h * prefix.padded() * d;
  auto packed = alloc<BFloat16>(2 * (size + size_of_prefix));
  BFloat16 *own = packed.get(), *shared = own + 2 * size;
  Forward forward{s,   q,         k,   v,          start_index, prefix,
                  out, logsumexp, own, own + size, shared,      shared + size_of_prefix};
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < s.heads(); head++) forward.pack(head);
    int64_t width = prefix.padded() + s.padded() + d;
    auto scores = alloc<float>(BLOCK * width);
    auto weights = alloc<BFloat16>(BLOCK * width);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s.heads() * s.blocks(); task++) {
      int64_t block = s.blocks() - 1 - task / s.heads();  // the longest first
      forward.block(task % s.heads(), block * BLOCK, scores.get(), weights.get());
    }
    at::native::cpublas::brgemm_release();
  }
  return true;
}

extern "C" bool delvm_flash_backward(const BFloat16* grad_out, const BFloat16* q,
                                     const BFloat16* k, const BFloat16* v,
                                     const int64_t* start_index, const BFloat16* out,
                                     const float* logsumexp, BFloat16* grad_q,
                                     BFloat16* grad_k, BFloat16* grad_v, int64_t b,
                                     int64_t t, int64_t h, int64_t d) {
  if (!brgemm_available()) return false;
  Shape s{b, t, h, d};
  Backward args{s, grad_out, q, k, v, start_index, out, logsumexp, grad_q, grad_k, grad_v};
#pragma omp parallel
  {
    BackwardHead backward(args);
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < s.heads(); head++) backward.run(head);
    at::native::cpublas::brgemm_release();
  }
  return true;
}
