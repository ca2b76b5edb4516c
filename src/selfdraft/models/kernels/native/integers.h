// Products with codes of 4 or 8 bits, in integers: for processors that have instructions for sums of products of small integers.
//
// An input becomes an integer of 23 bits with a scale for every 32 inputs, so it is off by at most 2^-23 of the largest of its 32: as much as
// in float32. The integer is split in two, 128 * upper + lower, of 16 and 7 bits, because processors multiply and add several small integers
// in the time of one float. Sums of integers have no rounding: whatever the order in which a processor or a loop adds them, a token has the
// same bits alone and among others.
#pragma once

#include <vector>

#include "matrix.h"

constexpr float LARGEST = 32767.0f * 128.0f;  // of an integer
constexpr float LEAST = 1e-30f;               // numbers below count as zero: their reciprocal may be too large for a float

// Some tokens' inputs as integers.
struct Integers {
    std::vector<int16_t> upper;  // (tokens, inputs)
    std::vector<int8_t> lower;   // (tokens, inputs), of each four the first, third, second and fourth; from -64 to 63
    std::vector<float> scales;   // (tokens, inputs / 32)
    std::vector<float> sums;     // likewise: of the rounded inputs
    int64_t inputs = 0;

    int64_t groups() const { return inputs / GROUP; }

    // Round x (tokens, stride), of which the first `inputs` of each token are taken.
    void take(const float* x, int64_t stride, int64_t inputs, int64_t tokens) {
        this->inputs = inputs;
        upper.resize(tokens * inputs);
        lower.resize(tokens * inputs);
        scales.resize(tokens * groups());
        sums.resize(tokens * groups());
        for (int64_t token = 0; token < tokens; token++)
            for (int64_t group = 0; group < groups(); group++) {
                const int64_t at = token * inputs + group * GROUP, of_group = token * groups() + group;
                take_group(x + token * stride + group * GROUP, &upper[at], &lower[at], scales[of_group], sums[of_group]);
            }
    }

  private:
    static void take_group(const float* x, int16_t* upper, int8_t* lower, float& scale, float& sum) {
        floats part[GROUP / LANES];
        ints highest{};
        for (int v = 0; v < GROUP / LANES; v++) {
            part[v] = read<floats>(x + v * LANES);
            highest = larger(highest, read<ints>(&part[v]) & 0x7FFFFFFF);  // bits of positive numbers are in the order of their values
        }
        const int32_t bits = highest_of(highest);
        float largest;
        std::memcpy(&largest, &bits, sizeof largest);
        const bool any = largest > LEAST;
        const floats factor = all(any ? LARGEST / largest : 0.0f), to_upper = all(1.0f / 128.0f);
        const floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
        ints together{};
        for (int v = 0; v < GROUP / LANES; v++) {
            const floats whole = fused(part[v], factor, magic) - magic;
            const floats high = fused(whole, to_upper, magic) - magic;
            const ints rounded = __builtin_convertvector(whole, ints), big = __builtin_convertvector(high, ints);
            write_few(upper + v * LANES, __builtin_convertvector(big, shorts));
            write_few(lower + v * LANES, middle_swapped(__builtin_convertvector(rounded - (big << 7), octets)));
            together += rounded;
        }
        // Infinities and NaN have the highest bits of all. Integers would hide them.
        scale = bits >= 0x7F800000 ? __builtin_nanf("") : any ? largest / LARGEST : 0.0f;
        sum = scale * float(total(together));
    }
};

// What the words of a matrix have for a vector of outputs: codes of eight or four inputs, none of them negative (of 8 bits: 128 more).
//
// For the upper parts of inputs, two codes of 16 bits, of inputs that follow each other; for the lower ones, four codes of 8 bits.
template <int format>
struct Words;

template <>
struct Words<INTEGERS4> {
    static constexpr int PAIRS = 4, FOURS = 2;
    static inline ints pair(words word, int j) { return (ints)((word >> (4 * j)) & 0x000F000Fu); }
    static inline ints four(words word, int j) { return (ints)((word >> (4 * j)) & 0x0F0F0F0Fu); }
    static constexpr int place(int j) { return j == 1 ? 2 : j == 2 ? 1 : j; }  // which pair of inputs `pair(word, j)` is for
};

template <>
struct Words<INTEGERS8> {
    static constexpr int PAIRS = 2, FOURS = 1;
    static inline ints pair(words word, int j) { return (ints)((word >> (8 * j)) & 0x00FF00FFu); }
    static inline ints four(words word, int) { return (ints)word; }
    static constexpr int place(int j) { return j; }
};

// Add the products of M tokens to their results y (M, 32), for C vectors of outputs from `column` of a tile on.
//
// data: of the tile; ahead: bytes from here to the next tile, 0 if its weights need not be fetched; upper, lower: (M, inputs); scales, sums:
// (M, groups), of the inputs; of_codes, shifts: (groups, 32), of the tile; without shifts, codes have 128 more than their values.
template <int format, int M, int C>
__attribute__((noinline)) static void add_integers(const uint32_t* data, int column, int64_t ahead, const int16_t* upper, const int8_t* lower,
                                                  int64_t inputs, const float* scales, const float* sums, Factors of_codes, Factors shifts, float* y) {
    typedef Words<format> W;
    constexpr int WORDS = GROUP / 2 / W::PAIRS;  // of a group
    constexpr int SETS = M * C <= 4 ? 2 : 1;     // of sums: an instruction would otherwise wait for the one before
    const int64_t groups = inputs / GROUP;
    for (int64_t group = 0; group < groups; group++) {
        const uint32_t* row = data + group * WORDS * TILE + column;
        ints of_upper[SETS][M][C] = {}, of_lower[SETS][M][C] = {};
#pragma GCC unroll 1
        for (int w = 0; w < WORDS; w++) {
            words word[C];
            for (int c = 0; c < C; c++) word[c] = read<words>(row + w * TILE + c * LANES);
            if (ahead)  // the same weights of the next tile: the processor does not fetch ahead across pages of memory by itself
                for (int line = 0; line < TILE * 4 / 64; line++)
                    __builtin_prefetch(reinterpret_cast<const char*>(row + w * TILE) + ahead + 64 * line, 0, 2);
#pragma GCC unroll 4
            for (int j = 0; j < W::PAIRS; j++) {
                ints codes[C];
                for (int c = 0; c < C; c++) codes[c] = W::pair(word[c], j);
                const int64_t at = group * GROUP + (w * W::PAIRS + W::place(j)) * 2;
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    const ints two = same_word(upper + m * inputs + at);
#pragma GCC unroll 4
                    for (int c = 0; c < C; c++) of_upper[j % SETS][m][c] = dot_pairs(codes[c], two, of_upper[j % SETS][m][c]);
                }
            }
        }
#pragma GCC unroll 1
        for (int w = 0; w < WORDS; w++) {
            words word[C];
            for (int c = 0; c < C; c++) word[c] = read<words>(row + w * TILE + c * LANES);
#pragma GCC unroll 2
            for (int j = 0; j < W::FOURS; j++) {
                ints codes[C];
                for (int c = 0; c < C; c++) codes[c] = W::four(word[c], j);
                const int64_t at = group * GROUP + (w * W::FOURS + j) * 4;
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    const ints four = same_word(lower + m * inputs + at);
#pragma GCC unroll 4
                    for (int c = 0; c < C; c++) of_lower[j % SETS][m][c] = dot_fours(codes[c], four, of_lower[j % SETS][m][c]);
                }
            }
        }
        for (int c = 0; c < C; c++) {
            const int place = column + c * LANES;
            const floats scale = of_codes.at(group * TILE + place);
            const floats shift = format == INTEGERS4 ? shifts.at(group * TILE + place) : scale * -128.0f;
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                for (int set = 1; set < SETS; set++) {
                    of_upper[0][m][c] += of_upper[set][m][c];
                    of_lower[0][m][c] += of_lower[set][m][c];
                }
                const floats whole = fused(__builtin_convertvector(of_upper[0][m][c], floats), all(128.0f), __builtin_convertvector(of_lower[0][m][c], floats));
                floats out = read<floats>(y + m * TILE + place);
                out = fused(scale * scales[m * groups + group], whole, out);
                write(y + m * TILE + place, fused(all(sums[m * groups + group]), shift, out));
            }
        }
    }
}

// Add the products of one tile of a matrix to y (tokens, 32).
template <int format>
struct IntegerTile {
    const Matrix& matrix;
    int64_t tile;
    const Integers& x;
    float* y;

    template <int M>
    void add_tokens(int64_t token) const {
        constexpr int C = vectors(M);
        const int64_t inputs = matrix.inputs, groups = inputs / GROUP, size = inputs * TILE / (format == INTEGERS4 ? 8 : 4);
        const uint32_t* data = static_cast<const uint32_t*>(matrix.data) + tile * size;
        const int64_t factors = tile * groups * TILE;
        const bool half = matrix.half;
        for (int column = 0; column < TILE; column += C * LANES)
            add_integers<format, M, C>(data, column, token || column ? 0 : size * 4, &x.upper[token * inputs], &x.lower[token * inputs], inputs,
                                       &x.scales[token * groups], &x.sums[token * groups], Factors(matrix.scales, half, factors),
                                       Factors(matrix.shifts, half, factors), y + token * TILE);
    }

    template <int M>
    void add_part(int64_t count, int64_t token) const {
        if (count == M) return add_tokens<M>(token);
        if constexpr (M > 1) add_part<M - 1>(count, token);
    }

    void add_to_y(int64_t tokens) const {
        // In parts as equal as possible: few tokens make worse use of each weight that is read.
        constexpr int many = LANES == 16 ? 8 : 4;
        const int64_t parts = (tokens + many - 1) / many;
        for (int64_t part = 0; part < parts; part++) add_part<many>(tokens * (part + 1) / parts - tokens * part / parts, tokens * part / parts);
    }
};
