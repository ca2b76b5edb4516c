// Attention of a few queries with the same keys over chosen slots of a cache, in float32.
//
// Keys are taken in the order of their slots, and only those that are seen, so a token has the same bits wherever in the cache the
// tokens that it sees were written, and whichever queries are computed beside it.
#pragma once

#include "lanes.h"

constexpr int QUERIES = 12;  // at once
constexpr int KEYS = 64;     // whose numbers stay in the fastest cache while all queries use them

// One query: what it is, what it sees, and where its result goes. `scores` is scratch for `count` + LANES numbers.
struct Query {
    const float* numbers;  // (size), scaled
    const int32_t* slots;
    int64_t count;
    float *scores, *out;  // out: (size)
    floats highest, sums;
};

// The scores of the keys [first, end) in the order of a query's slots.
static inline void score(Query& query, const float* keys, int64_t first, int64_t end, int64_t size) {
    constexpr int AT_ONCE = 64 / LANES;  // vectors that stay in registers
    for (int64_t at = first; at < end; at += LANES) {
        floats sums[LANES] = {};
        const float* key[LANES];  // the last key again, where there are no more
        for (int lane = 0; lane < LANES; lane++)
            key[lane] = keys + query.slots[at + lane < query.count ? at + lane : query.count - 1] * size;
        int64_t d = 0;
        for (; d + AT_ONCE * LANES <= size; d += AT_ONCE * LANES) {
            floats part[AT_ONCE];
#pragma GCC unroll 8
            for (int v = 0; v < AT_ONCE; v++) part[v] = read<floats>(query.numbers + d + v * LANES);
            for (int lane = 0; lane < LANES; lane++)
#pragma GCC unroll 8
                for (int v = 0; v < AT_ONCE; v++) sums[lane] = fused(part[v], read<floats>(key[lane] + d + v * LANES), sums[lane]);
        }
        for (; d < size; d += LANES)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] = fused(read_first(query.numbers + d, size - d), read_first(key[lane] + d, size - d), sums[lane]);
        const floats of_keys = totals(sums);
        write(query.scores + at, of_keys);
        query.highest = larger(query.highest, of_keys);
    }
}

// Turn scores into weights whose sum is kept.
static inline void weigh(Query& query) {
    float highest = query.highest[0];
    for (int lane = 1; lane < LANES; lane++) highest = query.highest[lane] > highest ? query.highest[lane] : highest;
    for (int lane = 0; lane < LANES; lane++) query.scores[query.count + lane] = -3.4e38f;
    query.sums = floats{};
    for (int64_t at = 0; at < query.count; at += LANES) {
        const floats weights = exponential(read<floats>(query.scores + at) - highest);
        query.sums += weights;
        write(query.scores + at, weights);
    }
}

// Add the values [first, end), weighted, to a query's result.
static inline void gather(const Query& query, const float* values, int64_t first, int64_t end, int64_t size) {
    constexpr int AT_ONCE = 64 / LANES;
    int64_t d = 0;
    for (; d + AT_ONCE * LANES <= size; d += AT_ONCE * LANES) {
        floats sum[AT_ONCE];
#pragma GCC unroll 8
        for (int v = 0; v < AT_ONCE; v++) sum[v] = read<floats>(query.out + d + v * LANES);
        for (int64_t at = first; at < end; at++) {
            const float* value = values + query.slots[at] * size + d;
#pragma GCC unroll 8
            for (int v = 0; v < AT_ONCE; v++) sum[v] = fused(all(query.scores[at]), read<floats>(value + v * LANES), sum[v]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < AT_ONCE; v++) write(query.out + d + v * LANES, sum[v]);
    }
    for (; d < size; d += LANES) {
        floats sum = read_first(query.out + d, size - d);
        for (int64_t at = first; at < end; at++)
            sum = fused(all(query.scores[at]), read_first(values + query.slots[at] * size + d, size - d), sum);
        write_first(query.out + d, sum, size - d);
    }
}

// Compute the result of every query: the mean of the values that it sees, weighted by the softmax of query * keys.
//
// keys, values: (…, size) of one head.
static inline void attend(Query* queries, int count, const float* keys, const float* values, int64_t size) {
    int64_t longest = 0;
    for (int q = 0; q < count; q++) {
        queries[q].highest = all(-3.4e38f);
        std::memset(queries[q].out, 0, size * 4);
        longest = queries[q].count > longest ? queries[q].count : longest;
    }
    const auto end_of = [](const Query& query, int64_t first) { return query.count < first + KEYS ? query.count : first + KEYS; };
    for (int64_t first = 0; first < longest; first += KEYS)
        for (int q = 0; q < count; q++) score(queries[q], keys, first, end_of(queries[q], first), size);
    for (int q = 0; q < count; q++) weigh(queries[q]);
    for (int64_t first = 0; first < longest; first += KEYS)
        for (int q = 0; q < count; q++) gather(queries[q], values, first, end_of(queries[q], first), size);
    for (int q = 0; q < count; q++) {
        const float rest = 1.0f / total(queries[q].sums);
        for (int64_t d = 0; d < size; d++) queries[q].out[d] *= rest;
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
