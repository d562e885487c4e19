// Loops over fp32 tensors in this process' memory: the sum of their squares, and LAMB's step.
//
// Sums are taken by stretches of fixed size (in LAMB's step by blocks) and added up in their order,
// in fp64: they are the same for any number of threads.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

constexpr int64_t kBlock = 1 << 15;    // numbers that one thread takes at a time in LAMB's step,
constexpr int64_t kStretch = 1 << 18;  // and in a sum
constexpr int64_t kPiece = 1 << 12;    // added up in fp32 at most, of each place that is read
constexpr int64_t kWidth = 1 << 4;     // of a vector
#if defined(__AVX512F__)
constexpr int64_t kLanes = 4;  // vectors of one place that are squared at a time
#else
constexpr int64_t kLanes = 2;  // of which each takes several registers
#endif
constexpr int64_t kStep = kWidth * kLanes;
constexpr int64_t kAhead = 1 << 8;  // between what is read and what is asked for

int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

using Lanes = float __attribute__((vector_size(4 * kWidth)));
using WideLanes = double __attribute__((vector_size(8 * kWidth)));

void add_squares(const float* x, Lanes& squares) {
  __builtin_prefetch(x + kAhead);
  Lanes lanes;
  std::memcpy(&lanes, x, sizeof lanes);
  squares += lanes * lanes;
}

// Two places of the stretch are read in turn, and asked for ahead: one stream alone, or what the
// processor sees coming by itself, does not fill its way to the memory.
double sum_of_squares(const float* x, int64_t size) {
  const int64_t half = size / 2 / kStep * kStep;
  WideLanes wide{};
  for (int64_t begin = 0; begin < half; begin += kPiece) {
    const int64_t end = begin + kPiece < half ? begin + kPiece : half;
    Lanes squares[2 * kLanes] = {};
    for (const float* at = x + begin; at < x + end; at += kStep) {
      for (int i = 0; i < kLanes; ++i) {
        add_squares(at + kWidth * i, squares[i]);
        add_squares(at + kWidth * i + half, squares[kLanes + i]);
      }
    }
    for (int i = 1; i < 2 * kLanes; ++i) squares[0] += squares[i];
    wide += __builtin_convertvector(squares[0], WideLanes);
  }
  double sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += wide[i];
  for (int64_t i = 2 * half; i < size; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

// One tensor of a step of LAMB.
struct Tensor {
  float* weight;
  const float* gradient;
  float* m;
  float* v;
  int64_t size;
  float correction1, correction2;  // 1 / (1 - beta^step), or 1
  double ratio;                    // out: the trust ratio
};

struct Settings {
  double lr, beta1, beta2, eps, weight_decay, max_ratio;  // max_ratio: infinite for none
  int32_t is_adaptive;
};

struct Squares {
  double weight, direction;
};

// m, v and u = m^ / (sqrt(v^) + eps) + decay * weight of [begin, end); u goes to `direction`.
Squares move_averages(const Tensor& x, const Settings& s, int64_t begin, int64_t end,
                      float* direction) {
  const float beta1 = s.beta1, beta2 = s.beta2;
  const float keep1 = 1 - s.beta1, keep2 = 1 - s.beta2;  // of fp64: 1 - 0.999f has lost four digits
  const float correction1 = x.correction1, correction2 = x.correction2;
  const float eps = s.eps, decay = s.weight_decay;
  const float *__restrict weight = x.weight, *__restrict gradient = x.gradient;
  float *__restrict m = x.m, *__restrict v = x.v, *__restrict u = direction - begin;
  Squares sums{0, 0};
  for (int64_t piece = begin; piece < end; piece += kPiece) {
    const int64_t stop = piece + kPiece < end ? piece + kPiece : end;
    float weights = 0, directions = 0;
#pragma omp simd reduction(+ : weights, directions)
    for (int64_t i = piece; i < stop; ++i) {
      const float g = gradient[i], w = weight[i];
      m[i] = beta1 * m[i] + keep1 * g;
      v[i] = beta2 * v[i] + keep2 * (g * g);
      const float to = m[i] * correction1 / (std::sqrt(v[i] * correction2) + eps) + decay * w;
      u[i] = to;
      weights += w * w;
      directions += to * to;
    }
    sums.weight += weights;
    sums.direction += directions;
  }
  return sums;
}

double trust_ratio(const Squares* blocks, int64_t num_blocks, const Settings& s) {
  double weight = 0, direction = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    weight += blocks[b].weight;
    direction += blocks[b].direction;
  }
  if (!s.is_adaptive || !(weight > 0 && direction > 0)) return 1;
  const double ratio = std::sqrt(weight) / std::sqrt(direction);
  return ratio < s.max_ratio ? ratio : s.max_ratio;
}

}  // namespace

extern "C" {

// The sum of the squares of all numbers of `count` tensors.
double tfopt_sum_of_squares(const float* const* tensors, const int64_t* sizes, int64_t count,
                            int num_threads) {
  std::vector<int64_t> first(count + 1, 0);  // stretch of each tensor
  for (int64_t i = 0; i < count; ++i) first[i + 1] = first[i] + (sizes[i] + kStretch - 1) / kStretch;
  std::vector<double> sums(first[count]);
  std::atomic<int64_t> next{0};
  in_parallel(num_threads, [&](int, int) {
    int64_t i = 0, stretch;
    while ((stretch = next.fetch_add(1)) < first[count]) {
      while (stretch >= first[i + 1]) ++i;
      const int64_t offset = (stretch - first[i]) * kStretch;
      const int64_t left = sizes[i] - offset;
      sums[stretch] = sum_of_squares(tensors[i] + offset, left < kStretch ? left : kStretch);
    }
  });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

// The numbers that `scratch` of tfopt_lamb_step must have room for.
int64_t tfopt_lamb_room(int64_t largest, int num_threads) {
  return (blocks_of(largest) + std::abs(num_threads)) * kBlock;
}

// One step of every tensor. A tensor of many blocks is shared by all threads, which wait for one
// another between its two passes; a small one is a single thread's.
void tfopt_lamb_step(Tensor* tensors, int64_t count, const Settings* settings, float* scratch,
                     int num_threads) {
  const Settings& s = *settings;
  std::vector<int64_t> first(count + 1, 0);
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t blocks = blocks_of(tensors[i].size);
    first[i + 1] = first[i] + blocks;
    if (blocks > most) most = blocks;
  }
  std::vector<Squares> sums(first[count]);
  std::vector<std::atomic<int>> arrived(count);
  in_parallel(num_threads, [&](int thread, int threads) {
    const int64_t share = (most + threads - 1) / threads;  // of a tensor's blocks, at most
    float* const own = scratch + thread * share * kBlock;
    for (int64_t i = 0; i < count; ++i) {
      Tensor& x = tensors[i];
      const int64_t blocks = first[i + 1] - first[i];
      const bool is_shared = blocks > 1 && threads > 1;
      if (!is_shared && i % threads != thread) continue;
      const int64_t begin = is_shared ? blocks * thread / threads : 0;
      const int64_t end = is_shared ? blocks * (thread + 1) / threads : blocks;
      auto stop = [&](int64_t block) {
        return (block + 1) * kBlock < x.size ? (block + 1) * kBlock : x.size;
      };
      for (int64_t b = begin; b < end; ++b) {
        float* direction = own + (b - begin) * kBlock;
        sums[first[i] + b] = move_averages(x, s, b * kBlock, stop(b), direction);
      }
      if (is_shared) {
        arrived[i].fetch_add(1);
        for (int spins = 0; arrived[i].load() < threads; ++spins) {
          if (spins > 1000) std::this_thread::yield();
        }
      }
      const double ratio = trust_ratio(sums.data() + first[i], blocks, s);
      if (thread == 0 || !is_shared) x.ratio = ratio;
      const float rate = static_cast<float>(s.lr * ratio);
      for (int64_t b = end - 1; b >= begin; --b) {  // what was written last is still in the cache
        const float* direction = own + (b - begin) * kBlock;
        float* weight = x.weight + b * kBlock;
        const int64_t size = stop(b) - b * kBlock;
        for (int64_t j = 0; j < size; ++j) weight[j] -= rate * direction[j];
      }
    }
  });
}

}  // extern "C"
