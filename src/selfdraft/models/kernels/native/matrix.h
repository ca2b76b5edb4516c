// Matrices that are stored in 4, 8, 16 or 32 bits a weight, and products with them in float32 (integers.h has those in integers).
//
// A matrix is stored in tiles of 32 outputs; within one, the weights of an input lie beside each other, so every lane of a vector has an
// output of its own. An output adds up its inputs one after the other in the same order, however many tokens there are: a token's
// results have the same bits alone and among others.
#pragma once

#include <algorithm>

#include "lanes.h"

constexpr int TILE = 32;    // outputs
constexpr int GROUP = 32;   // inputs that share a scale, in 4 and 8 bits
constexpr int CHUNK = 128;  // inputs whose weights are decoded at once, when many tokens need them

enum Format : int64_t { FLOAT32 = 0, BFLOAT16 = 1, CODES8 = 2, CODES4 = 3, INTEGERS8 = 4, INTEGERS4 = 5 };

// Layouts of `data`, for every tile: CODES4: [inputs / 8][32] words with 8 codes each, the first in the lowest bits; INTEGERS4 and
// INTEGERS8: words with 8 or 4 codes (see integers.h); others: [inputs][32] numbers. `scales` and `shifts` (or null): [groups][32] floats of
// 32 bits, or of 16 if `half`; a weight is code * scale + shift. `bias`: [outputs] or null.
struct Matrix {
    int64_t format, outputs, inputs, half;
    const void *data, *scales, *shifts;
    const float* bias;

    int64_t tiles() const { return (outputs + TILE - 1) / TILE; }
    bool coded() const { return format == CODES8 || format == CODES4; }
    bool in_integers() const { return format >= INTEGERS8; }
    // The outputs of a tile that exist: the last one may be padded.
    int64_t outputs_of(int64_t tile) const { return std::min<int64_t>(TILE, outputs - tile * TILE); }
};

// The scales or the shifts of a matrix from some place on.
struct Factors {
    const char* from;  // null if there are none
    bool half;

    Factors(const void* from, bool half, int64_t first = 0) : from(from ? static_cast<const char*>(from) + first * (half ? 2 : 4) : nullptr), half(half) {}
    floats at(int64_t place) const { return half ? of_halves(from + place * 2) : read<floats>(from + place * 4); }
};

// Tokens whose sums fit into the registers, beside what decoding needs (measured: with one more, compilers keep sums in memory).
constexpr int most(int format) { return format == BFLOAT16 ? 4 : 6; }

// Vectors of outputs whose sums are added up at once, for M tokens.
constexpr int vectors(int M) { return LANES == 16 || M <= 3 ? TILE / LANES : 2; }

// Whether the sums of M tokens leave no registers for words of codes, which are then read again for every input.
constexpr bool crowded(int format, int M) { return format == CODES4 && LANES == 8 && (M == 3 || M > 4); }

// Whether it pays to write decoded weights down before so many tokens use them (measured).
constexpr bool written_down(int format, int64_t tokens) { return format == BFLOAT16 ? tokens >= 12 : format == CODES4 && tokens >= 48; }

// Bytes of the weights of eight inputs in a tile.
constexpr int bytes_of_8(int format) { return TILE * (format == CODES4 ? 4 : format == CODES8 ? 8 : format == BFLOAT16 ? 16 : 32); }

// The weights of one tile, decoded eight inputs at a time: `begin` takes the first of them, `next` the weights of one input after the
// other, for the vector of outputs numbered c.
template <int format, int C, bool reread = false>
struct Weights;

template <int C>
struct Weights<FLOAT32, C, false> {
    const float* at;
    Weights(const void* data, int column) : at(static_cast<const float*>(data) + column) {}
    void begin(int64_t input) { row = at + input * TILE; }
    floats next(int k, int c) { return read<floats>(row + k * TILE + c * LANES); }
    const float* row;
};

template <int C>
struct Weights<BFLOAT16, C, false> {
    const uint16_t* at;
    Weights(const void* data, int column) : at(static_cast<const uint16_t*>(data) + column) {}
    void begin(int64_t input) { row = at + input * TILE; }
    floats next(int k, int c) {
        const words bits = __builtin_convertvector(read<halves>(row + k * TILE + c * LANES), words) << 16;
        return read<floats>(&bits);
    }
    const uint16_t* row;
};

template <int C>
struct Weights<CODES8, C, false> {
    const int8_t* at;
    Weights(const void* data, int column) : at(static_cast<const int8_t*>(data) + column) {}
    void begin(int64_t input) { row = at + input * TILE; }
    floats next(int k, int c) { return of_octets(row + k * TILE + c * LANES); }
    const int8_t* row;
};

// A code stays at its place in the word, which makes it 16^k times as large for the k-th input; that input of x is as much smaller
// (see IN_PLACE). Both are powers of two, so nothing is rounded, and moving eight codes to the lowest bits is saved.
template <int C>
struct Weights<CODES4, C, false> {
    const uint32_t* at;
    Weights(const void* data, int column) : at(static_cast<const uint32_t*>(data) + column) {}
    void begin(int64_t input) {
        for (int c = 0; c < C; c++) eight[c] = read<words>(at + input / 8 * TILE + c * LANES);
    }
    floats next(int k, int c) {
        const words code = k == 7 ? eight[c] >> 28 : eight[c] & (15u << (4 * k));  // the highest bit would be taken for a sign
        return __builtin_convertvector((ints)code, floats);
    }
    words eight[C];
};

template <int C>
struct Weights<CODES4, C, true> {
    const uint32_t* at;
    Weights(const void* data, int column) : at(static_cast<const uint32_t*>(data) + column) {}
    void begin(int64_t input) { row = at + input / 8 * TILE; }
    floats next(int k, int c) { return __builtin_convertvector(code_in_place(row + c * LANES, k), floats); }
    const uint32_t* row;
};

// What each of eight inputs is multiplied by before a product with codes of 4 bits.
constexpr float IN_PLACE[8] = {1.0f, 0x1p-4f, 0x1p-8f, 0x1p-12f, 0x1p-16f, 0x1p-20f, 0x1p-24f, 1.0f};

// Add the inputs [first, end) of M tokens to their sums y, for C vectors of outputs from `column` of a tile on.
//
// ahead: bytes from here to the next tile, 0 if its weights need not be fetched; x: (M, stride); sums: (M, groups), of x by group; scales,
// shifts: of the tile, from its first group on.
template <int format, int M, int C, bool grouped>
__attribute__((noinline)) static void add(const void* data, int column, int64_t ahead, int64_t first, int64_t end, int64_t base, const float* x,
                                         int64_t stride, const float* sums, int64_t groups, Factors scales, Factors shifts, float* y) {
    Weights<format, C, crowded(format, M)> weights(data, column);
    floats sum[M][C];
    for (int m = 0; m < M; m++)
        for (int c = 0; c < C; c++) sum[m][c] = grouped ? floats{} : read<floats>(y + m * TILE + column + c * LANES);
    for (int64_t i = first; i < end;) {
        const int64_t stop = grouped ? std::min(i + GROUP, end) : end;
        for (; i < stop; i += 8) {
            weights.begin(i - base);
            if (ahead)  // the same weights of the next tile: the processor does not fetch ahead across pages of memory by itself
                for (int line = 0; line < bytes_of_8(format) / 64; line++)
                    __builtin_prefetch(static_cast<const char*>(data) + ahead + (i - base) / 8 * bytes_of_8(format) + 64 * line, 0, 2);
            const float* from = x + i;
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                // So that all sums stay in registers: for few tokens, one weight after the other is multiplied by all of them; for more,
                // one token after the other by all weights.
                floats w[C], one[M];
                if (M > C) {
#pragma GCC unroll 4
                    for (int c = 0; c < C; c++) w[c] = held(weights.next(k, c));
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++) {
                        one[m] = held(all(from[m * stride + k]));
#pragma GCC unroll 4
                        for (int c = 0; c < C; c++) sum[m][c] = fused(one[m], w[c], sum[m][c]);
                    }
                } else {
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++) one[m] = all(from[m * stride + k]);
#pragma GCC unroll 4
                    for (int c = 0; c < C; c++) {
                        w[c] = weights.next(k, c);
#pragma GCC unroll 8
                        for (int m = 0; m < M; m++) sum[m][c] = fused(one[m], w[c], sum[m][c]);
                    }
                }
            }
        }
        if (!grouped) break;
        const int64_t group = (i - 1) / GROUP;
        for (int c = 0; c < C; c++) {
            const int place = column + c * LANES;
            const floats scale = scales.at(group * TILE + place);
            const floats shift = shifts.from ? shifts.at(group * TILE + place) : floats{};
            for (int m = 0; m < M; m++) {
                floats out = read<floats>(y + m * TILE + place);
                out = fused(scale, sum[m][c], out);
                if (shifts.from) out = fused(all(sums[m * groups + group]), shift, out);
                write(y + m * TILE + place, out);
                sum[m][c] = floats{};
            }
        }
    }
    if (!grouped)
        for (int m = 0; m < M; m++)
            for (int c = 0; c < C; c++) write(y + m * TILE + column + c * LANES, sum[m][c]);
}

// One tile of a product: its state for all tokens.
struct Product {
    const Matrix& matrix;
    int64_t tile;
    const float* x;  // (tokens, stride); for codes of 4 bits, times IN_PLACE
    int64_t stride;
    const float* sums;  // (tokens, inputs / 32): of x by group; only read for codes with shifts
    float* y;           // (tokens, 32)
    float* decoded;     // (128, 32), scratch

    int64_t groups() const { return matrix.inputs / GROUP; }
    Factors of_tile(const void* values) const { return {values, bool(matrix.half), tile * groups() * TILE}; }

    template <int format, int M, bool grouped>
    void add_tokens(const void* data, int64_t first, int64_t end, int64_t base, int64_t token) const {
        constexpr int C = vectors(M);
        for (int column = 0; column < TILE; column += C * LANES)
            add<format, M, C, grouped>(data, column, base || token || column ? 0 : matrix.inputs / 8 * bytes_of_8(format), first, end, base,
                                       x + token * stride, stride, sums + token * groups(), groups(), of_tile(matrix.scales),
                                       of_tile(matrix.shifts), y + token * TILE);
    }

    template <int format, bool grouped>
    void add_all(const void* data, int64_t first, int64_t end, int64_t base, int64_t tokens) const {
        // In parts as equal as possible: few tokens make worse use of each weight that is read.
        const int64_t parts = (tokens + most(format) - 1) / most(format);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t token = tokens * part / parts;
            switch (tokens * (part + 1) / parts - token) {
                case 1: add_tokens<format, 1, grouped>(data, first, end, base, token); break;
                case 2: add_tokens<format, 2, grouped>(data, first, end, base, token); break;
                case 3: add_tokens<format, 3, grouped>(data, first, end, base, token); break;
                case 4: add_tokens<format, 4, grouped>(data, first, end, base, token); break;
                case 5: add_tokens<format, std::min(5, most(format)), grouped>(data, first, end, base, token); break;
                case 6: add_tokens<format, most(format), grouped>(data, first, end, base, token); break;
            }
        }
    }

    template <int format, bool grouped>
    void run(const void* data, int64_t tokens) const {
        if (!written_down(format, tokens)) return add_all<format, grouped>(data, 0, matrix.inputs, 0, tokens);
        for (int64_t first = 0; first < matrix.inputs; first += CHUNK) {
            const int64_t end = std::min(first + CHUNK, matrix.inputs);
            Weights<format, TILE / LANES> weights(data, 0);
            for (int64_t i = first; i < end; i += 8) {
                weights.begin(i);
                for (int k = 0; k < 8; k++)
                    for (int c = 0; c < TILE / LANES; c++) write(decoded + (i - first + k) * TILE + c * LANES, weights.next(k, c));
            }
            add_all<FLOAT32, grouped>(decoded, first, end, first, tokens);
        }
    }

    // Add the products to y.
    void add_to_y(int64_t tokens) const {
        const int64_t weights = tile * matrix.inputs * TILE;
        const char* data = static_cast<const char*>(matrix.data);
        switch (matrix.format) {
            case FLOAT32: return run<FLOAT32, false>(data + weights * 4, tokens);
            case BFLOAT16: return run<BFLOAT16, false>(data + weights * 2, tokens);
            case CODES8: return run<CODES8, true>(data + weights, tokens);
            case CODES4: return run<CODES4, true>(data + weights / 2, tokens);
        }
    }
};

// The sums of x (tokens, stride) by group of 32 inputs.
static inline void sum_groups(const float* x, int64_t stride, int64_t inputs, int64_t tokens, float* sums) {
    const int64_t groups = inputs / GROUP;
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t g = 0; g < groups; g++) {
            floats sum{};
            for (int i = 0; i < GROUP; i += LANES) sum += read<floats>(x + token * stride + g * GROUP + i);
            sums[token * groups + g] = total(sum);
        }
}

// The inputs of x (tokens, stride) times IN_PLACE: (tokens, inputs).
static inline void put_in_place(const float* x, int64_t stride, int64_t inputs, int64_t tokens, float* out) {
    float factors[LANES];
    for (int i = 0; i < LANES; i++) factors[i] = IN_PLACE[i % 8];
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t i = 0; i < inputs; i += LANES)
            write(out + token * inputs + i, read<floats>(x + token * stride + i) * read<floats>(factors));
}
