// Twin of data/flat_batch.py, data/masking.py and data/model_inputs.py: the same bits, so the same
// masks. From Arrow's buffers to a batch's tensors, example by example, while each is in the cache.
//
// A row has one example, or several with position ids that restart with each (packed). Unit: a
// token, or a word (and every special token one by itself) where word tables or word ids are given.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "pool.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lanes are read in memory order");

#if defined(__AVX512BW__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // GCC's choice is 256, for code with fewer loops
#endif

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;
constexpr int64_t kIgnored = -100;
enum Stream { kChoice, kSpan, kReplacement, kFallback, kStreams };
enum Problem : int64_t { kBadId = -1, kBadLength = -2, kPadded = -3 };

// ---- rows of Arrow columns

struct Chunk {
  const void* values;
  const void* offsets;  // where each row's values begin, and the end of the last
  int64_t first_row;
};

struct Column {
  const Chunk* chunks;  // null: there is no such column
  int64_t num_chunks;
  int32_t offset_size;  // in bytes
  int32_t value_size;   // in bytes, negative for unsigned integers
};

struct Slice {
  const void* values;
  int64_t begin, length;

  Slice(const Column& column, int64_t row) {
    auto after = [](int64_t r, const Chunk& c) { return r < c.first_row; };
    const Chunk* chunk = column.chunks;
    if (column.num_chunks > 1) chunk = std::upper_bound(chunk, chunk + column.num_chunks, row, after) - 1;
    values = chunk->values;
    const int64_t i = row - chunk->first_row;
    if (column.offset_size == 4) {
      read(static_cast<const int32_t*>(chunk->offsets) + i);
    } else {
      read(static_cast<const int64_t*>(chunk->offsets) + i);
    }
  }

  template <typename Offset>
  void read(const Offset* offsets) {
    begin = offsets[0];
    length = offsets[1] - offsets[0];
  }

  template <typename Value>
  void copy_as(int64_t* out) const {
    const Value* from = static_cast<const Value*>(values) + begin;
    std::copy(from, from + length, out);
  }

  void prefetch(int value_size) const {
    const int64_t size = value_size < 0 ? -value_size : value_size;
    const char* const from = static_cast<const char*>(values) + begin * size;
    for (int64_t k = 0; k < length * size; k += 64) __builtin_prefetch(from + k);
  }

  void copy(int value_size, int64_t* out) const {
    switch (value_size) {
      case 1: return copy_as<int8_t>(out);
      case 2: return copy_as<int16_t>(out);
      case 4: return copy_as<int32_t>(out);
      case 8: return copy_as<int64_t>(out);
      case -1: return copy_as<uint8_t>(out);
      case -2: return copy_as<uint16_t>(out);
      case -4: return copy_as<uint32_t>(out);
      case -8: return copy_as<uint64_t>(out);
    }
  }
};

// ---- bits, as in data/keyed_bits.py

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

inline uint64_t bits(uint64_t key, uint64_t counter) { return mix(key + counter * kGolden); }

inline uint64_t below(uint64_t size, uint64_t drawn) { return (drawn >> 32) * size >> 32; }

// The 16-bit lanes of counters 0 .. size - 1, and at most 63 more.
const uint16_t* draw_lanes(uint64_t key, int64_t size, std::vector<uint64_t>& words) {
  const int64_t blocks = (size + 63) / 64 * 16;
  if (static_cast<int64_t>(words.size()) < blocks) words.resize(blocks);
  uint64_t* out = words.data();
  for (int64_t i = 0; i < blocks; ++i) out[i] = bits(key, i);
  return reinterpret_cast<const uint16_t*>(out);
}

// Bit b is set if lanes[b] < threshold, for 64 lanes; threshold in 0 .. 65536.
inline uint64_t lanes_below(const uint16_t* lanes, uint32_t threshold) {
  if (!threshold) return 0;
  uint64_t found = 0;
#if defined(__AVX512BW__)
  const __m512i highest = _mm512_set1_epi16(static_cast<int16_t>(threshold - 1));
  const __mmask32 low = _mm512_cmple_epu16_mask(_mm512_loadu_si512(lanes), highest);
  const __mmask32 high = _mm512_cmple_epu16_mask(_mm512_loadu_si512(lanes + 32), highest);
  found = static_cast<uint64_t>(high) << 32 | low;
#elif defined(__SSE2__)
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

inline uint64_t lowest_bits(int64_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~0ULL; }

// content = n * weights[n] + sum_j ids[j] * weights[j], modulo 2^64.
uint64_t content(const int64_t* ids, int64_t length, const uint64_t* weights) {
  uint64_t sum = length * weights[length];
  for (int64_t j = 0; j < length; ++j) sum += static_cast<uint64_t>(ids[j]) * weights[j];
  return sum;
}

uint64_t largest(const int64_t* ids, int64_t length) {  // negative ones are huge
  uint64_t found = 0;
  for (int64_t j = 0; j < length; ++j) found = std::max(found, static_cast<uint64_t>(ids[j]));
  return found;
}

// ---- units and targets of one example, as in data/masking.py

struct Rule {
  const uint8_t* maskable;  // by token id
  const int64_t* replacements;
  int64_t num_replacements;
  int64_t mask_id;
  uint64_t mask_limit;    // fates are below 2^32: those below this become the mask token,
  uint64_t change_limit;  // those below this a random one
  uint32_t threshold;     // of 65536: units chosen, or words that start a span
  const uint8_t* span_lengths;  // by lane; null unless units are spans
  const uint8_t* span_residuals;
};

// By token id, see `WordTables` in data/words.py; null: `starts` where units are tokens, `first`
// and `last` where `starts` is all.
struct Words {
  const uint8_t* starts;
  const uint8_t* first;
  const uint8_t* last;
};

struct Example {
  int64_t* ids;     // what the model sees is written here,
  int64_t* labels;  // and here what was there before
  int64_t length;
  const int64_t* first;  // where units begin; null: everywhere
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

inline void replace(const Example& x, int64_t j, const Rule& rule) {
  x.ids[j] = rule.replacements[below(rule.num_replacements, bits(x.keys[kReplacement], j))];
}

inline void emit(const Example& x, int64_t unit, uint64_t fate, const Rule& rule) {
  const int64_t end = x.end(unit);
  for (int64_t j = x.begin(unit); j < end; ++j) {
    x.labels[j] = x.ids[j];
    if (fate < rule.mask_limit) {
      x.ids[j] = rule.mask_id;
    } else if (fate < rule.change_limit) {
      replace(x, j, rule);
    }
  }
}

struct Limits {  // by lane, as a fate is lane * scale
  uint64_t scale;
  uint32_t chosen, masked, changed;

  explicit Limits(const Rule& rule) : scale((uint64_t{1} << 32) / rule.threshold) {
    chosen = rule.threshold;
    masked = (rule.mask_limit + scale - 1) / scale;
    changed = (rule.change_limit + scale - 1) / scale;
  }
};

// The label of each chosen token and the mask token in its place, by bits; `size` up to 64.
inline void blend(int64_t* ids, int64_t* labels, int64_t size, uint64_t chosen, uint64_t masked,
                  int64_t mask_id) {
  for (int64_t b = 0; b < size; ++b) {
    const int64_t id = ids[b];
    labels[b] = chosen >> b & 1 ? id : kIgnored;
    ids[b] = masked >> b & 1 ? mask_id : id;
  }
}

// Tokens, in blocks of 64: which are chosen, and their fates, are bits.
bool choose_tokens(const Example& x, const uint16_t* lanes, const Rule& rule) {
  const Limits limits(rule);
  bool has_target = false;
  for (int64_t block = 0; block < x.length; block += 64, lanes += 64) {
    const int64_t size = std::min<int64_t>(64, x.length - block);
    int64_t* const ids = x.ids + block;
    uint64_t drawn = lanes_below(lanes, limits.chosen) & lowest_bits(size), chosen = drawn;
    for (; drawn; drawn &= drawn - 1) {
      const int b = __builtin_ctzll(drawn);
      chosen ^= static_cast<uint64_t>(!rule.maskable[ids[b]]) << b;
    }
    const uint64_t masked = chosen & lanes_below(lanes, limits.masked);
    blend(ids, x.labels + block, size, chosen, masked, rule.mask_id);
    uint64_t replaced = chosen & ~masked & lanes_below(lanes, limits.changed);
    for (; replaced; replaced &= replaced - 1) replace(x, block + __builtin_ctzll(replaced), rule);
    has_target |= chosen != 0;
  }
  return has_target;
}

bool choose_words(const Example& x, const uint16_t* lanes, const Rule& rule) {
  const uint64_t scale = (uint64_t{1} << 32) / rule.threshold;
  bool has_target = false;
  for (int64_t block = 0; block < x.num_units; block += 64) {
    uint64_t found = lanes_below(lanes + block, rule.threshold) & lowest_bits(x.num_units - block);
    for (; found; found &= found - 1) {
      const int64_t unit = block + __builtin_ctzll(found);
      if (!x.is_maskable(unit, rule)) continue;
      emit(x, unit, lanes[unit] * scale, rule);
      has_target = true;
    }
  }
  return has_target;
}

// A run of words begins at unit 0, at and after every special token; spans begin anywhere. Between
// these heads nothing is drawn.
bool choose_spans(const Example& x, const uint16_t* lanes, const Rule& rule) {
  bool has_target = false, after_word = false;
  int64_t left = 0;  // words of the span that goes on
  uint64_t fate = 0;
  for (int64_t block = 0; block < x.num_units; block += 64) {
    const int64_t size = std::min<int64_t>(64, x.num_units - block);
    const uint64_t starts = lanes_below(lanes + block, rule.threshold) & lowest_bits(size);
    uint64_t words = 0;
    for (int64_t b = 0; b < size; ++b) {
      words |= static_cast<uint64_t>(x.is_maskable(block + b, rule)) << b;
    }
    uint64_t heads = (starts | ~words | ~(words << 1 | after_word)) & lowest_bits(size);
    for (int64_t b = 0; b < size;) {
      const int64_t next = heads ? __builtin_ctzll(heads) : size;
      const int64_t end = std::min(b + left, next);
      for (int64_t unit = block + b; unit < block + end; ++unit) emit(x, unit, fate, rule);
      has_target |= end > b;
      left -= std::min(left, next - b);
      b = next;
      if (b == size) break;
      const uint64_t drawn = bits(x.keys[kSpan], block + b);
      left = (starts >> b & 1 ? rule.span_lengths : rule.span_residuals)[drawn >> 48];
      fate = drawn & 0xFFFFFFFF;
      if (!(words >> b & 1)) {
        left = 0;
        ++b;
      }
      heads &= heads - 1;
    }
    after_word = words >> (size - 1) & 1;
  }
  return has_target;
}

// A unit for an example that has no target, by the example's own key.
void choose_one(const Example& x, const Rule& rule) {
  int64_t count = 0;
  for (int64_t unit = 0; unit < x.num_units; ++unit) count += x.is_maskable(unit, rule);
  if (!count) return;
  const uint64_t drawn = x.keys[kFallback];
  int64_t which = below(count, drawn);
  for (int64_t unit = 0; unit < x.num_units; ++unit) {
    if (!x.is_maskable(unit, rule) || which--) continue;
    return emit(x, unit, drawn & 0xFFFFFFFF, rule);
  }
}

// Where units begin: at 0, and at every j > 0 for which starts(j); returns how many there are.
template <typename Starts>
int64_t collect(int64_t length, std::vector<int64_t>& first, Starts starts) {
  if (static_cast<int64_t>(first.size()) <= length) first.resize(length + 1);
  int64_t* const out = first.data();
  int64_t count = 1;
  out[0] = 0;
  for (int64_t j = 1; j < length; ++j) {
    out[count] = j;
    count += starts(j);
  }
  return count;
}

int64_t find_words(const Example& x, const Words& words, const Rule& rule, const int64_t* word_ids,
                   std::vector<int64_t>& first) {
  const int64_t* ids = x.ids;
  if (word_ids) {
    return collect(x.length, first, [=](int64_t j) {
      return (word_ids[j] != word_ids[j - 1]) | !rule.maskable[ids[j]] | !rule.maskable[ids[j - 1]];
    });
  }
  if (!words.first) {
    return collect(x.length, first, [=](int64_t j) {
      return (words.starts[ids[j]] != 0) | (words.starts[ids[j - 1]] > 1);
    });
  }
  uint8_t last = 0;  // of the latest token that has a class: some carry on that before them
  return collect(x.length, first, [=](int64_t j) mutable {
    const uint8_t before = words.last[ids[j - 1]];
    last = before ? before : last;
    return (words.starts[ids[j]] != 0) | (words.starts[ids[j - 1]] > 1) |
           !(words.first[ids[j]] & last);
  });
}

// ---- the batch

// `_Batch` of data/masking_kernel.py.
struct Batch {
  Rule rule;
  Words words;
  const uint64_t* weights;  // longer than the longest row
  uint64_t moment;          // of seed and epoch
  uint64_t num_ids;
  int64_t pad_id;
  int64_t first_position;
  Column ids, token_types, word_ids;
  Column positions;  // rows are packed
  Column seen;       // the rows' own attention mask, which must be all ones
  const int64_t* rows;
  int64_t num_rows;
  int64_t width;  // of each row of the results, filled up; 0: rows come one after the other
  int64_t total;  // places in the results
  int64_t* input_ids;  // the results, null where not wanted
  int64_t* labels;
  int64_t* attention_mask;
  int64_t* token_type_ids;
  int64_t* position_ids;
  int64_t* keys;  // of each example, to know it again
  int64_t* ends;  // of the examples with tokens and of each padding, in the results
  int64_t num_examples, num_ends, num_tokens;
  int64_t longest;  // row, then example
};

struct Scratch {
  std::vector<uint64_t> lanes;
  std::vector<int64_t> first, word_ids, positions;
};

void mask(const Batch& b, Example& x, const int64_t* word_ids, Scratch& scratch) {
  const Rule& rule = b.rule;
  x.num_units = x.length;
  if (b.words.starts) {
    x.num_units = find_words(x, b.words, rule, word_ids, scratch.first);
    x.first = scratch.first.data();
    std::fill_n(x.labels, x.length, kIgnored);
  }
  const uint16_t* lanes = draw_lanes(x.keys[kChoice], x.num_units, scratch.lanes);
  auto choose = rule.span_lengths ? choose_spans : x.first ? choose_words : choose_tokens;
  if (!choose(x, lanes, rule)) choose_one(x, rule);
}

void number(const Batch& b, int64_t place, int64_t length) {
  if (b.position_ids) {
    int64_t* const out = b.position_ids + place;
    for (int64_t j = 0; j < length; ++j) out[j] = b.first_position + j;
  }
}

// What is behind the tokens of a row: a segment of its own.
void pad(Batch& b, int64_t place, int64_t length) {
  if (length <= 0) return;
  std::fill_n(b.input_ids + place, length, b.pad_id);
  std::fill_n(b.labels + place, length, kIgnored);
  if (b.attention_mask) std::fill_n(b.attention_mask + place, length, 0);
  if (b.token_type_ids) std::fill_n(b.token_type_ids + place, length, 0);
  number(b, place, length);
  if (b.ends) b.ends[b.num_ends++] = place + length;
}

void add_example(Batch& b, int64_t place, int64_t length, const int64_t* word_ids, Scratch& scratch) {
  Example x{b.input_ids + place, b.labels + place, length, nullptr, 0, {}};
  const uint64_t key = mix(content(x.ids, length, b.weights) + b.moment);
  for (int stream = 0; stream < kStreams; ++stream) x.keys[stream] = bits(key, stream);
  if (b.keys) b.keys[b.num_examples] = x.keys[kChoice];
  ++b.num_examples;
  b.longest = std::max(b.longest, length);
  if (!length) return;
  mask(b, x, word_ids, scratch);
  number(b, place, length);
  if (b.ends) b.ends[b.num_ends++] = place + length;
}

// The values of a further column of this row; nothing where there is none.
bool read(const Column& column, int64_t row, int64_t length, int64_t* out) {
  const Slice slice(column, row);
  if (slice.length != length) return false;
  slice.copy(column.value_size, out);
  return true;
}

int64_t* room(std::vector<int64_t>& values, int64_t length) {
  if (static_cast<int64_t>(values.size()) < length) values.resize(length);
  return values.data();
}

// One row: its columns are read, then its examples are masked in place.
int64_t add_row(Batch& b, int64_t row, int64_t place, Scratch& scratch) {
  const Slice slice(b.ids, row);
  const int64_t length = slice.length;
  int64_t* const ids = b.input_ids + place;
  slice.copy(b.ids.value_size, ids);
  if (largest(ids, length) >= b.num_ids) return kBadId;
  for (const Column* column : {&b.token_types, &b.word_ids}) {  // also where they are not used
    if (column->chunks && Slice(*column, row).length != length) return kBadLength;
  }
  if (b.token_type_ids && !read(b.token_types, row, length, b.token_type_ids + place)) return kBadLength;
  if (b.attention_mask) std::fill_n(b.attention_mask + place, length, 1);
  if (b.seen.chunks) {
    int64_t* const seen = room(scratch.positions, length);
    if (!read(b.seen, row, length, seen)) return kBadLength;
    if (std::count(seen, seen + length, 0)) return kPadded;
  }
  const int64_t* word_ids = nullptr;
  if (b.word_ids.chunks && b.words.starts) {
    int64_t* const out = room(scratch.word_ids, length);
    if (!read(b.word_ids, row, length, out)) return kBadLength;
    word_ids = out;
  }
  auto add = [&](int64_t begin, int64_t end) {
    add_example(b, place + begin, end - begin, word_ids ? word_ids + begin : nullptr, scratch);
  };
  if (!b.positions.chunks) {
    add(0, length);
    return length;
  }
  int64_t* const positions = room(scratch.positions, length);
  if (!read(b.positions, row, length, positions)) return kBadLength;
  int64_t begin = 0;
  for (int64_t block = 1; block < length; block += 64) {
    const int64_t size = std::min<int64_t>(64, length - block);
    uint64_t found = 0;
    for (int64_t i = 0; i < size; ++i) {
      found |= static_cast<uint64_t>(positions[block + i] != positions[block + i - 1] + 1) << i;
    }
    for (; found; found &= found - 1) {
      const int64_t end = block + __builtin_ctzll(found);
      add(begin, end);
      begin = end;
    }
  }
  if (length) add(begin, length);
  return length;
}

constexpr int kPartsPerThread = 2;  // rows are not equally long

// Some of a batch's rows. What they append to the batch's lists has room of its own there.
struct Part {
  Batch batch;
  int64_t place;  // of the first row's first token, and then of the end
  int64_t problem;
};

void fill(Part& part) {
  Batch& b = part.batch;
  Scratch scratch;
  for (int64_t i = 0; i < b.num_rows; ++i) {
    if (i + 1 < b.num_rows) Slice(b.ids, b.rows[i + 1]).prefetch(b.ids.value_size);
    const int64_t length = add_row(b, b.rows[i], part.place, scratch);
    if (length < 0) {
      part.problem = length;
      return;
    }
    if (b.width) pad(b, part.place + length, b.width - length);
    part.place += b.width ? b.width : length;
  }
}

// So many parts, of as many rows each.
std::vector<Part> divide(const Batch& b, int64_t wanted) {
  const int64_t num_parts = std::max<int64_t>(1, std::min(wanted, b.num_rows));
  std::vector<Part> parts;
  int64_t row = 0, tokens = 0;
  for (int64_t part = 1; part <= num_parts; ++part) {
    const int64_t examples = b.positions.chunks ? tokens : row;  // before this part, at most
    Batch own = b;
    own.rows += row;
    own.num_rows = b.num_rows * part / num_parts - row;
    own.num_examples = own.num_ends = own.longest = 0;
    if (b.keys) own.keys += examples;
    if (b.ends) own.ends += examples + (b.width ? row : 0);
    parts.push_back({own, b.width ? row * b.width : tokens, 0});
    for (const int64_t end = row + own.num_rows; row < end; ++row) {
      if (part < num_parts) tokens += Slice(b.ids, b.rows[row]).length;
    }
  }
  return parts;
}

// The parts' lists become one; what is behind the last row is filled.
int64_t join(Batch& b, const std::vector<Part>& parts) {
  b.num_examples = b.num_ends = b.longest = 0;
  for (const Part& part : parts) {
    const Batch& own = part.batch;
    if (part.problem) return part.problem;
    if (b.keys) std::copy_n(own.keys, own.num_examples, b.keys + b.num_examples);
    if (b.ends) std::copy_n(own.ends, own.num_ends, b.ends + b.num_ends);
    b.num_examples += own.num_examples;
    b.num_ends += own.num_ends;
    b.longest = std::max(b.longest, own.longest);
  }
  pad(b, parts.back().place, b.total - parts.back().place);
  return 0;
}

}  // namespace

extern "C" {

// Tells num_tokens and longest, of rows.
void tfopt_measure_batch(Batch* b) {
  b->num_tokens = b->longest = 0;
  for (int64_t i = 0; i < b->num_rows; ++i) {
    const int64_t length = Slice(b->ids, b->rows[i]).length;
    b->num_tokens += length;
    b->longest = std::max(b->longest, length);
  }
}

// Fills the results; returns 0, or the problem that the first bad row has.
int64_t tfopt_fill_batch(Batch* b, int num_threads) {
  const int most = std::abs(num_threads);
  std::vector<Part> parts = divide(*b, most > 1 ? most * kPartsPerThread : 1);
  std::atomic<size_t> next{0};
  in_parallel(num_threads, [&](int, int) {
    for (size_t i; (i = next.fetch_add(1)) < parts.size();) fill(parts[i]);
  });
  return join(*b, parts);
}

}  // extern "C"
