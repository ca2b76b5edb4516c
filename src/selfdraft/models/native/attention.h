// Attention of one query over chosen slots of a cache, in float32.
//
// Keys are taken in the order of their slots, and only those that are seen, so a token has the same bits wherever in the cache the
// tokens that it sees were written.
#pragma once

#include "lanes.h"

// out (size) = the mean of the values in `slots`, weighted by the softmax of query * keys.
//
// query: (size), scaled. keys, values: (…, size) of one head. scores: scratch for `count` + LANES.
static inline void attend(const float* query, const float* keys, const float* values, const int32_t* slots, int64_t count, int64_t size,
                          float* scores, float* out) {
    const int64_t whole = size - size % LANES;
    floats highs = all(-3.4e38f);
    for (int64_t at = 0; at < count; at += LANES) {
        floats sums[LANES];
        for (int lane = 0; lane < LANES; lane++) {  // the last key again, where there are no more
            const float* key = keys + slots[at + lane < count ? at + lane : count - 1] * size;
            floats sum{};
            for (int64_t d = 0; d < whole; d += LANES) sum = fused(read<floats>(query + d), read<floats>(key + d), sum);
            if (whole < size) sum = fused(read_first(query + whole, size - whole), read_first(key + whole, size - whole), sum);
            sums[lane] = sum;
        }
        const floats of_keys = totals(sums);
        write(scores + at, of_keys);
        highs = larger(highs, of_keys);
    }
    float highest = highs[0];
    for (int lane = 1; lane < LANES; lane++) highest = highs[lane] > highest ? highs[lane] : highest;
    for (int lane = 0; lane < LANES; lane++) scores[count + lane] = -3.4e38f;
    floats sums{};
    for (int64_t at = 0; at < count; at += LANES) {
        const floats weights = exponential(read<floats>(scores + at) - highest);
        sums += weights;
        write(scores + at, weights);
    }
    const float rest = 1.0f / total(sums);
    constexpr int AT_ONCE = 64 / LANES;  // vectors that stay in registers
    int64_t first = 0;
    for (; first + AT_ONCE * LANES <= size; first += AT_ONCE * LANES) {
        floats sum[AT_ONCE] = {};
        for (int64_t at = 0; at < count; at++) {
            const float* value = values + slots[at] * size + first;
#pragma GCC unroll 8
            for (int v = 0; v < AT_ONCE; v++) sum[v] = fused(all(scores[at]), read<floats>(value + v * LANES), sum[v]);
        }
        for (int v = 0; v < AT_ONCE; v++) write(out + first + v * LANES, sum[v] * rest);
    }
    for (; first < size; first += LANES) {
        floats sum{};
        for (int64_t at = 0; at < count; at++)
            sum = fused(all(scores[at]), read_first(values + slots[at] * size + first, size - first), sum);
        write_first(out + first, sum * rest, size - first);
    }
}

// Rotate the first `rotated` numbers of a head, in halves.
static inline void rotate(float* head, const float* cosines, const float* sines, int64_t rotated) {
    const int64_t half = rotated / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

// out = x / sqrt(mean(x^2) + eps) * weight, for `size` numbers.
static inline void normalise(const float* x, const float* weight, float eps, int64_t size, float* out) {
    floats squares{};
    for (int64_t i = 0; i < size; i += LANES) {
        const floats some = read_first(x + i, size - i);
        squares = fused(some, some, squares);
    }
    const float scale = 1.0f / __builtin_sqrtf(total(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES)
        write_first(out + i, read_first(x + i, size - i) * scale * read_first(weight + i, size - i), size - i);
}
