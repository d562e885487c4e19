// Twin of `Lists.flat` in data/columns.py: rows of a chunked Arrow column of lists, one after the
// other, as 64-bit integers.

#include <algorithm>
#include <cstdint>

namespace {

struct Chunk {
  const void* values;
  const void* offsets;  // where each row's values begin, and the end of the last
  int64_t first_row;
};

template <typename Offset>
struct Slice {
  const Chunk* chunk;
  int64_t begin, end;

  Slice(const Chunk* chunks, int64_t num_chunks, int64_t row) {
    auto after = [](int64_t r, const Chunk& c) { return r < c.first_row; };
    chunk = num_chunks == 1 ? chunks : std::upper_bound(chunks, chunks + num_chunks, row, after) - 1;
    const Offset* offsets = static_cast<const Offset*>(chunk->offsets) + (row - chunk->first_row);
    begin = offsets[0];
    end = offsets[1];
  }
};

template <typename Offset>
void measure(const Chunk* chunks, int64_t num_chunks, const int64_t* rows, int64_t num_rows,
             int64_t* bounds) {
  bounds[0] = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    const Slice<Offset> slice(chunks, num_chunks, rows[i]);
    bounds[i + 1] = bounds[i] + slice.end - slice.begin;
  }
}

template <typename Offset, typename Value>
void gather(const Chunk* chunks, int64_t num_chunks, const int64_t* rows, int64_t num_rows,
            int64_t* out) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const Slice<Offset> slice(chunks, num_chunks, rows[i]);
    const Value* values = static_cast<const Value*>(slice.chunk->values);
    out = std::copy(values + slice.begin, values + slice.end, out);
  }
}

template <typename Offset>
void gather_any(const Chunk* chunks, int64_t num_chunks, const int64_t* rows, int64_t num_rows,
                int value_size, int64_t* out) {
  switch (value_size) {
    case 1: return gather<Offset, int8_t>(chunks, num_chunks, rows, num_rows, out);
    case 2: return gather<Offset, int16_t>(chunks, num_chunks, rows, num_rows, out);
    case 4: return gather<Offset, int32_t>(chunks, num_chunks, rows, num_rows, out);
    case 8: return gather<Offset, int64_t>(chunks, num_chunks, rows, num_rows, out);
  }
}

}  // namespace

extern "C" {

// bounds: num_rows + 1 numbers: where each row begins in the result, and its end.
void tfopt_measure_rows(const Chunk* chunks, int64_t num_chunks, int offset_size,
                        const int64_t* rows, int64_t num_rows, int64_t* bounds) {
  (offset_size == 4 ? measure<int32_t> : measure<int64_t>)(chunks, num_chunks, rows, num_rows,
                                                           bounds);
}

// out: room for all numbers of these rows. Values are signed integers of value_size bytes.
void tfopt_gather_rows(const Chunk* chunks, int64_t num_chunks, int offset_size,
                       const int64_t* rows, int64_t num_rows, int value_size, int64_t* out) {
  (offset_size == 4 ? gather_any<int32_t> : gather_any<int64_t>)(chunks, num_chunks, rows, num_rows,
                                                                 value_size, out);
}

}  // extern "C"
