// Vectors as wide as the processor has them, and the few functions of them that layers need.
//
// Written with the vector types that GCC and Clang share, so that one source serves every kind of processor.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)
constexpr bool INTEGERS_ARE_FAST = true;
#else
constexpr bool INTEGERS_ARE_FAST = false;
#endif

#if defined(WIDE) && !defined(__AVX512F__)
constexpr int LANES = 16;  // for tests: the widest vectors, where the processor has narrower ones
#define IN_PARTS
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));
typedef int16_t shorts __attribute__((vector_size(LANES * 2)));
typedef int8_t octets __attribute__((vector_size(LANES)));

// Memory of models, caches and callers is aligned to a number, not to a vector.
template <class V>
static inline V read(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

static inline void write(float* to, floats value) { std::memcpy(to, &value, sizeof value); }

// a * b + c, rounded once. Said explicitly, because a compiler that is free to choose does so differently from loop to loop, and a
// token's bits must not depend on the loop that computes them.
static inline floats fused(floats a, floats b, floats c) {
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && !defined(IN_PARTS)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

// Numbers of 8 bits as floats.
static inline floats of_octets(const int8_t* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__) && !defined(IN_PARTS)
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    floats out;
    for (int i = 0; i < LANES; i++) out[i] = from[i];
    return out;
#endif
}

// Floats of 16 bits as floats of 32.
static inline floats of_halves(const void* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && !defined(IN_PARTS)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    // The exponent is moved to its place, where it is 112 too small.
    const words half = __builtin_convertvector(read<halves>(from), words);
    const words magnitude = (half & 0x7FFF) << 13, sign = (half & 0x8000) << 16;
    const floats value = read<floats>(&magnitude) * 0x1p112f;
    const words bits = read<words>(&value) | sign;
    return read<floats>(&bits);
#endif
}

// The codes of the k-th of eight inputs, of 4 bits each and at their place in the word; the last ones in the lowest bits.
//
// In assembly, because a compiler reads the words once for all eight inputs, and then has no registers left for the sums.
static inline ints code_in_place(const uint32_t* from, int k) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(IN_PARTS)
    static const uint32_t masks[7] = {15u, 15u << 4, 15u << 8, 15u << 12, 15u << 16, 15u << 20, 15u << 24};
    ints code;
    if (k == 7) {
        __asm__ volatile("vpsrld $28, %1, %0" : "=x"(code) : "x"(read<words>(from)));
    } else {
        __asm__ volatile("vpbroadcastd %2, %0\n\tvpand %1, %0, %0" : "=&x"(code) : "m"(*(const char(*)[32])from), "m"(masks[k]));
    }
    return code;
#else
    const words eight = read<words>(from);
    return (ints)(k == 7 ? eight >> 28 : eight & (15u << (4 * k)));
#endif
}

// The same four bytes in every lane.
static inline ints same_word(const void* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return word - ints{};
}

// c + the products of the two integers of 16 bits in every lane of a and b.
static inline ints dot_pairs(ints a, ints b, ints c) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpwssd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
#else
    return c + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// c + the products of the four integers of 8 bits in every lane of a, which are not negative, and of b.
static inline ints dot_fours(ints a, ints b, ints c) {
#if defined(__AVX512VNNI__)
    return (ints)_mm512_dpbusd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
#else
    for (int shift = 0; shift < 32; shift += 8) c += (a >> shift & 255) * (b << (24 - shift) >> 24);
    return c;
#endif
}

template <class V>
static inline void write_few(void* to, V value) { std::memcpy(to, &value, sizeof value); }

template <int... at>
static inline octets middle_swapped_at(octets v, std::integer_sequence<int, at...>) {
#define OF(j) ((j) % 4 == 1 ? (j) + 1 : (j) % 4 == 2 ? (j) - 1 : (j))
#if defined(__clang__)
    return __builtin_shufflevector(v, v, OF(at)...);
#else
    return __builtin_shuffle(v, octets{OF(at)...});
#endif
#undef OF
}

// Of every four octets the first, third, second and fourth.
static inline octets middle_swapped(octets v) { return middle_swapped_at(v, std::make_integer_sequence<int, LANES>{}); }

// The first `count` numbers, and zeros where a vector has more.
static inline floats read_first(const float* from, int64_t count) {
    if (count >= LANES) return read<floats>(from);
    floats value{};
    std::memcpy(&value, from, count * 4);
    return value;
}

static inline void write_first(float* to, floats value, int64_t count) { std::memcpy(to, &value, (count < LANES ? count : LANES) * 4); }

static inline floats all(float value) { return value - floats{}; }

// The value, in a register from here on. Compilers otherwise fetch many numbers before they need the first, and then have no
// registers left for the sums.
static inline floats held(floats value) {
#if defined(__AVX512F__)
    __asm__ volatile("" : "+v"(value));
#elif defined(__AVX2__) && !defined(IN_PARTS)
    __asm__ volatile("" : "+x"(value));
#endif
    return value;
}

// The sum of all lanes, always in the same order.
static inline float total(floats v) {
    float part[LANES];
    std::memcpy(part, &v, sizeof part);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

static inline int32_t total(ints v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
#endif
}

// The largest lane.
static inline int32_t highest_of(ints v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)v);
#else
    int32_t highest = v[0];
    for (int lane = 1; lane < LANES; lane++) highest = v[lane] > highest ? v[lane] : highest;
    return highest;
#endif
}

// Blocks of 2 * width lanes: each begins with those of `a`, then those of `b`, whose halves are added.
template <int width, int... lane>
static inline floats halves_added(floats a, floats b, std::integer_sequence<int, lane...>) {
#define OF(j) ((j) / (2 * width) * (2 * width) + (j) % width + ((j) / width % 2 ? LANES : 0))
#if defined(__clang__)
    return __builtin_shufflevector(a, b, OF(lane)...) + __builtin_shufflevector(a, b, (OF(lane) + width)...);
#else
    return __builtin_shuffle(a, b, ints{OF(lane)...}) + __builtin_shuffle(a, b, ints{(OF(lane) + width)...});
#endif
#undef OF
}

template <int width>
static inline void add_halves(floats* v) {
    for (int i = 0; i < width; i++) v[i] = halves_added<width>(v[i], v[i + width], std::make_integer_sequence<int, LANES>{});
}

// The sums of the lanes of as many vectors as one has lanes, each in the order of `total`.
static inline floats totals(floats* v) {
    if (LANES == 16) add_halves<LANES / 2>(v);
    add_halves<4>(v);
    add_halves<2>(v);
    add_halves<1>(v);
    return v[0];
}

static inline floats larger(floats a, floats b) { return a > b ? a : b; }
static inline ints larger(ints a, ints b) { return a > b ? a : b; }
static inline floats smaller(floats a, floats b) { return a < b ? a : b; }

// e to the power of x, to within two units in the last place; 0 far below, finite far above.
static inline floats exponential(floats x) {
    const floats bounded = smaller(larger(x, all(-87.3f)), all(88.0f));
    const floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const floats n = fused(bounded, all(1.44269504f), magic) - magic;
    const floats r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), bounded));
    floats p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + 1.0f;
    const ints power = (__builtin_convertvector(n, ints) + 127) << 23;
    const floats out = p * read<floats>(&power);
    return x < -87.3f ? floats{} : out;
}
