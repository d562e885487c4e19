// Twin of data/keyed_bits.py and data/masking.py: the same bits and so the same masks.
//
// Examples lie one after the other in `ids`; example r is ids[bounds[r]] .. ids[bounds[r + 1] - 1].
// Unit: a token, or a word (and every special token one by itself) where `starts` is given.

#include <cstdint>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lanes are read in memory order");

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
enum Stream { kChoice, kSpan, kReplacement, kFallback, kStreams };

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

inline uint64_t bits(uint64_t key, uint64_t counter) { return mix(key + counter * kGolden); }

inline uint64_t below(uint64_t size, uint64_t drawn) { return (drawn >> 32) * size >> 32; }

// The 16-bit lanes of counters 0 .. size - 1, and at most 63 more.
void draw_lanes(uint64_t key, int64_t size, std::vector<uint64_t>& words) {
  const int64_t blocks = (size + 63) / 64 * 16;
  if (static_cast<int64_t>(words.size()) < blocks) words.resize(blocks);
  for (int64_t i = 0; i < blocks; ++i) words[i] = bits(key, i);
}

// Bit b is set if lanes[b] < threshold, for 64 lanes; threshold in 1 .. 65536.
inline uint64_t lanes_below(const uint16_t* lanes, uint32_t threshold) {
  uint64_t found = 0;
#if defined(__SSE2__)
  const __m128i highest = _mm_set1_epi16(static_cast<int16_t>(threshold - 1));
  const __m128i zero = _mm_setzero_si128();
  const __m128i* parts = reinterpret_cast<const __m128i*>(lanes);
  for (int i = 0; i < 4; ++i) {
    const __m128i low = _mm_subs_epu16(_mm_loadu_si128(parts + 2 * i), highest);
    const __m128i high = _mm_subs_epu16(_mm_loadu_si128(parts + 2 * i + 1), highest);
    const __m128i both = _mm_packs_epi16(_mm_cmpeq_epi16(low, zero), _mm_cmpeq_epi16(high, zero));
    found |= static_cast<uint64_t>(static_cast<uint16_t>(_mm_movemask_epi8(both))) << (16 * i);
  }
#else
  for (int b = 0; b < 64; ++b) found |= static_cast<uint64_t>(lanes[b] < threshold) << b;
#endif
  return found;
}

struct Rule {
  const uint8_t* maskable;  // by token id
  const int64_t* replacements;
  int64_t num_replacements;
  int64_t mask_id;
  uint32_t threshold;     // of 65536: units chosen, or words that start a span
  uint64_t mask_limit;    // fates are below 2^32: those below this become the mask token,
  uint64_t change_limit;  // those below this a random one
  const uint8_t* span_lengths;    // by lane; null unless units are spans
  const uint8_t* span_residuals;
};

struct Targets {
  int64_t* positions;
  int64_t* labels;
  int64_t* inputs;
  int64_t count;
};

// One example: its ids, where its units begin (null: everywhere) and its keys.
struct Example {
  const int64_t* ids;
  int64_t offset, length;
  const int64_t* first;
  int64_t num_units;
  uint64_t keys[kStreams];

  int64_t begin(int64_t unit) const { return first ? first[unit] : unit; }
  int64_t end(int64_t unit) const {
    return first ? (unit + 1 < num_units ? first[unit + 1] : length) : unit + 1;
  }
  bool is_maskable(int64_t unit, const Rule& rule) const {
    return rule.maskable[ids[begin(unit)]];
  }
};

inline void emit(const Example& x, int64_t unit, uint64_t fate, const Rule& rule, Targets& out) {
  for (int64_t j = x.begin(unit); j < x.end(unit); ++j) {
    int64_t seen = x.ids[j];
    out.positions[out.count] = x.offset + j;
    out.labels[out.count] = seen;
    if (fate < rule.mask_limit) {
      seen = rule.mask_id;
    } else if (fate < rule.change_limit) {
      seen = rule.replacements[below(rule.num_replacements, bits(x.keys[kReplacement], j))];
    }
    out.inputs[out.count++] = seen;
  }
}

void choose_units(const Example& x, const uint16_t* lanes, const Rule& rule, Targets& out) {
  const uint64_t scale = (uint64_t{1} << 32) / rule.threshold;
  for (int64_t block = 0; block < x.num_units; block += 64) {
    uint64_t found = lanes_below(lanes + block, rule.threshold);
    if (x.num_units - block < 64) found &= (uint64_t{1} << (x.num_units - block)) - 1;
    for (; found; found &= found - 1) {
      const int64_t unit = block + __builtin_ctzll(found);
      if (x.is_maskable(unit, rule)) emit(x, unit, lanes[unit] * scale, rule, out);
    }
  }
}

void choose_spans(const Example& x, const uint16_t* lanes, const Rule& rule, Targets& out) {
  int64_t left = 0;
  uint64_t fate = 0;
  bool after_word = false;
  for (int64_t unit = 0; unit < x.num_units; ++unit) {
    const bool is_word = x.is_maskable(unit, rule);
    const bool starts = lanes[unit] < rule.threshold;
    if (starts || !is_word || !after_word) {
      const uint64_t drawn = bits(x.keys[kSpan], unit);
      left = (starts ? rule.span_lengths : rule.span_residuals)[drawn >> 48];
      fate = drawn & 0xFFFFFFFF;
    }
    if (left-- > 0 && is_word) emit(x, unit, fate, rule, out);
    after_word = is_word;
  }
}

// A unit for an example that has no target, by the example's own key.
void choose_one(const Example& x, const Rule& rule, Targets& out) {
  int64_t count = 0;
  for (int64_t unit = 0; unit < x.num_units; ++unit) count += x.is_maskable(unit, rule);
  if (!count) return;
  const uint64_t drawn = x.keys[kFallback];
  int64_t which = below(count, drawn);
  for (int64_t unit = 0; unit < x.num_units; ++unit) {
    if (!x.is_maskable(unit, rule) || which--) continue;
    emit(x, unit, drawn & 0xFFFFFFFF, rule, out);
    return;
  }
}

}  // namespace

extern "C" {

// keys: [4 streams, examples], from
// content[r] = n * weights[n] + sum_j ids[bounds[r] + j] * weights[j], modulo 2^64.
void tfopt_example_keys(const uint64_t* ids, const int64_t* bounds, int64_t num_examples,
                        const uint64_t* weights, uint64_t moment, uint64_t* keys) {
  for (int64_t r = 0; r < num_examples; ++r) {
    const int64_t length = bounds[r + 1] - bounds[r];
    const uint64_t* row = ids + bounds[r];
    uint64_t content = length * weights[length];
    for (int64_t j = 0; j < length; ++j) content += row[j] * weights[j];
    const uint64_t key = mix(content + moment);
    for (int stream = 0; stream < kStreams; ++stream) {
      keys[stream * num_examples + r] = bits(key, stream);
    }
  }
}

// Fills positions, labels and inputs, each with room for all tokens; returns how many there are.
int64_t tfopt_choose_targets(const int64_t* ids, const int64_t* bounds, int64_t num_examples,
                             const uint64_t* keys, const uint8_t* starts, const Rule* rule,
                             int64_t* positions, int64_t* labels, int64_t* inputs) {
  std::vector<uint64_t> words;
  std::vector<int64_t> first;
  Targets out{positions, labels, inputs, 0};
  for (int64_t r = 0; r < num_examples; ++r) {
    Example x{ids + bounds[r], bounds[r], bounds[r + 1] - bounds[r], nullptr, 0, {}};
    if (!x.length) continue;
    for (int stream = 0; stream < kStreams; ++stream) {
      x.keys[stream] = keys[stream * num_examples + r];
    }
    x.num_units = x.length;
    if (starts) {
      if (static_cast<int64_t>(first.size()) <= x.length) first.resize(x.length + 1);
      const uint8_t* flags = starts + bounds[r];
      int64_t count = 1;  // a word starts with its example
      first[0] = 0;
      for (int64_t j = 1; j < x.length; ++j) {
        first[count] = j;
        count += flags[j];
      }
      x.first = first.data();
      x.num_units = count;
    }
    draw_lanes(x.keys[kChoice], x.num_units, words);
    const uint16_t* lanes = reinterpret_cast<const uint16_t*>(words.data());
    const int64_t before = out.count;
    (rule->span_lengths ? choose_spans : choose_units)(x, lanes, *rule, out);
    if (out.count == before) choose_one(x, *rule, out);
  }
  return out.count;
}

}  // extern "C"
