// Decoder layers of the Llama kind over a cache, and single matrices, for a process that calls them through a C interface.
//
// The caller describes every layer by addresses (see layers.py); nothing is allocated for longer than a call.
#include "attention.h"
#include "integers.h"
#include "matrix.h"
#include "team.h"

enum Activation : int64_t { SILU = 0, GELU_TANH = 1 };

struct Layer {
    Matrix q, k, v, o, gate, up, down;  // without outputs where a sublayer is left out
    const float *norm, *norm_mlp, *norm_q, *norm_k;  // norm_q, norm_k: null where heads are not normalised
    float eps, eps_mlp, eps_head, scale;
    int64_t activation, kind, slot_of_cache;
};

// What differs between kinds of layers: rotations (B * N, rotated), and which slots every token sees (B, N, span), null for one token a row
// that sees all before it.
struct Kind {
    const float *cosines, *sines;
    const bool* visible;
};

struct Call {
    float* hidden;  // (B * N, width): input and output
    int64_t rows, tokens, width, heads, groups, size, rotated, span, kinds;
    const Kind* by_kind;
    const int64_t* starts;          // (B) first slot that is written
    float* const* keys;             // (layers in the cache, B): a row's (groups, slots, size)
    float* const* values;           // likewise
    int64_t slots;
};

namespace {

typedef std::vector<float> Buffer;

// The slots that every token of a call sees, for one kind of layer.
struct Seen {
    std::vector<int32_t> slots;
    std::vector<int64_t> first;  // of each token in `slots`, and the end of the last one
    int64_t longest = 0;

    Seen(const Call& call, const Kind& kind) {
        first.push_back(0);
        for (int64_t row = 0; row < call.rows; row++)
            for (int64_t token = 0; token < call.tokens; token++) {
                const bool* sees = kind.visible ? kind.visible + (row * call.tokens + token) * call.span : nullptr;
                const int64_t end = sees ? call.span : call.starts[row] + 1;
                for (int64_t slot = 0; slot < end; slot++)
                    if (!sees || sees[slot]) slots.push_back(int32_t(slot));
                longest = std::max(longest, int64_t(slots.size()) - first.back());
                first.push_back(int64_t(slots.size()));
            }
    }
};

// Compute this thread's tiles of several matrices with the same input, and hand each to `take(matrix, tile, y)`.
struct Multiplier {
    Buffer y, decoded, sums, in_place;
    Integers integers;

    void prepare(std::initializer_list<const Matrix*> matrices, const float* x, int64_t stride, int64_t tokens) {
        const int64_t inputs = (**matrices.begin()).inputs;
        bool shifted = false, fours = false, whole = false;
        for (const Matrix* matrix : matrices) {
            shifted |= matrix->coded() && matrix->shifts;
            fours |= matrix->format == CODES4;
            whole |= matrix->in_integers();
        }
        y.resize(tokens * TILE);
        decoded.resize(CHUNK * TILE);
        if (shifted) {
            sums.resize(tokens * (inputs / GROUP));
            sum_groups(x, stride, inputs, tokens, sums.data());
        }
        if (fours) {
            in_place.resize(tokens * inputs);
            put_in_place(x, stride, inputs, tokens, in_place.data());
        }
        if (whole) integers.take(x, stride, inputs, tokens);
    }

    // Compute one tile into y, after `prepare`.
    void compute(const Matrix& matrix, int64_t tile, const float* x, int64_t stride, int64_t tokens) {
        std::memset(y.data(), 0, tokens * TILE * sizeof(float));
        if (matrix.bias)
            for (int64_t token = 0; token < tokens; token++)
                std::memcpy(&y[token * TILE], matrix.bias + tile * TILE, matrix.outputs_of(tile) * sizeof(float));
        if (matrix.format == INTEGERS4) return IntegerTile<INTEGERS4>{matrix, tile, integers, y.data()}.add_to_y(tokens);
        if (matrix.format == INTEGERS8) return IntegerTile<INTEGERS8>{matrix, tile, integers, y.data()}.add_to_y(tokens);
        const bool fours = matrix.format == CODES4;
        const Product product{matrix, tile, fours ? in_place.data() : x, fours ? matrix.inputs : stride, sums.data(), y.data(), decoded.data()};
        product.add_to_y(tokens);
    }

    template <class Take>
    void run(std::initializer_list<const Matrix*> matrices, const float* x, int64_t stride, int64_t tokens, int rank, int size,
             const Take& take) {
        int64_t tiles = 0;
        for (const Matrix* matrix : matrices) tiles += matrix->tiles();
        prepare(matrices, x, stride, tokens);
        const Share share(tiles, rank, size);
        int64_t first = 0;
        for (const Matrix* matrix : matrices) {
            const int64_t end = first + matrix->tiles();
            for (int64_t at = std::max(first, share.first); at < std::min(end, share.end); at++) {
                compute(*matrix, at - first, x, stride, tokens);
                take(*matrix, at - first, y.data());
            }
            first = end;
        }
    }
};

floats activated(floats x, int64_t activation) {
    if (activation == SILU) return x / (exponential(-x) + 1.0f);
    const floats inner = (x + x * x * x * 0.044715f) * 0.7978845608f;
    return x - x / (exponential(inner * 2.0f) + 1.0f);
}

// What the threads of one call share.
struct Run {
    const Call& call;
    Team team;
    std::vector<Seen> seen;
    int64_t tokens, of_q, of_kv, widest;
    Buffer projected, attended, inner;

    Run(const Call& call, const Layer* layers, int64_t count, int threads)
        : call(call), team(threads), tokens(call.rows * call.tokens), of_q(call.heads * call.size), of_kv(call.groups * call.size) {
        for (int64_t kind = 0; kind < call.kinds; kind++) seen.emplace_back(call, call.by_kind[kind]);
        widest = 0;
        for (int64_t at = 0; at < count; at++) widest = std::max(widest, layers[at].gate.tiles() * TILE);
        projected.resize(tokens * (of_q + 2 * of_kv));
        attended.resize(tokens * of_q);
        inner.resize(tokens * widest);
    }

    void attention(const Layer& layer, int rank, Multiplier& multiplier, Buffer& normed, Buffer& scores) {
        const int64_t stride = of_q + 2 * of_kv;
        normed.resize(tokens * call.width);
        for (int64_t t = 0; t < tokens; t++)
            normalise(call.hidden + t * call.width, layer.norm, layer.eps, call.width, &normed[t * call.width]);
        multiplier.run({&layer.q, &layer.k, &layer.v}, normed.data(), call.width, tokens, rank, team.size,
                       [&](const Matrix& matrix, int64_t tile, const float* y) {
                           const int64_t begin = &matrix == &layer.q ? 0 : &matrix == &layer.k ? of_q : of_q + of_kv;
                           for (int64_t t = 0; t < tokens; t++)
                               std::memcpy(&projected[t * stride + begin + tile * TILE], y + t * TILE, matrix.outputs_of(tile) * 4);
                       });
        team.meet();
        const Kind& kind = call.by_kind[layer.kind];
        const Share heads(tokens * (call.heads + 2 * call.groups), rank, team.size);
        for (int64_t at = heads.first; at < heads.end; at++) {
            const int64_t t = at / (call.heads + 2 * call.groups), head = at % (call.heads + 2 * call.groups);
            float* numbers = &projected[t * stride + head * call.size];
            if (head < call.heads + call.groups) {
                const float* norm = head < call.heads ? layer.norm_q : layer.norm_k;
                if (norm) normalise(numbers, norm, layer.eps_head, call.size, numbers);
                rotate(numbers, kind.cosines + t * call.rotated, kind.sines + t * call.rotated, call.rotated);
            }
            if (head < call.heads) {
                for (int64_t d = 0; d < call.size; d++) numbers[d] *= layer.scale;
                continue;
            }
            const int64_t row = t / call.tokens, slot = call.starts[row] + t % call.tokens, group = (head - call.heads) % call.groups;
            float* const* side = head < call.heads + call.groups ? call.keys : call.values;
            std::memcpy(side[layer.slot_of_cache * call.rows + row] + (group * call.slots + slot) * call.size, numbers, call.size * 4);
        }
        team.meet();
        attend_all(layer, rank, scores);
        team.meet();
        add_to_hidden(layer.o, attended.data(), of_q, rank, multiplier);
    }

    // Queries are numbered by row, group of heads with the same keys, token and head in the group, so that those beside each other
    // mostly see the same keys.
    void attend_all(const Layer& layer, int rank, Buffer& scores) {
        const Seen& sees = seen[layer.kind];
        const int64_t room = sees.longest + LANES, shared = call.heads / call.groups, of_group = call.tokens * shared;
        scores.resize(QUERIES * room);
        const Share share(call.rows * call.groups * of_group, rank, team.size);
        Query queries[QUERIES];
        for (int64_t at = share.first; at < share.end;) {
            const int64_t row = at / of_group / call.groups, group = at / of_group % call.groups;
            const int64_t end = std::min({share.end, (at / of_group + 1) * of_group, at + QUERIES});
            int count = 0;
            for (; at < end; at++, count++) {
                const int64_t t = row * call.tokens + at % of_group / shared, head = group * shared + at % shared;
                queries[count].numbers = &projected[t * (of_q + 2 * of_kv) + head * call.size];
                queries[count].slots = &sees.slots[sees.first[t]];
                queries[count].count = sees.first[t + 1] - sees.first[t];
                queries[count].scores = &scores[count * room];
                queries[count].out = &attended[t * of_q + head * call.size];
            }
            const int64_t memory = layer.slot_of_cache * call.rows + row, begin = group * call.slots * call.size;
            attend(queries, count, call.keys[memory] + begin, call.values[memory] + begin, call.size);
        }
    }

    void mlp(const Layer& layer, int rank, Multiplier& multiplier, Buffer& normed) {
        normed.resize(tokens * call.width);
        for (int64_t t = 0; t < tokens; t++)
            normalise(call.hidden + t * call.width, layer.norm_mlp, layer.eps_mlp, call.width, &normed[t * call.width]);
        // Both tiles of the same outputs are this thread's: with half the tiles of one matrix, half of the other's.
        const Share share(layer.gate.tiles(), rank, team.size);
        multiplier.prepare({&layer.gate, &layer.up}, normed.data(), call.width, tokens);
        Buffer gates;
        for (int64_t tile = share.first; tile < share.end; tile++) {
            multiplier.compute(layer.gate, tile, normed.data(), call.width, tokens);
            gates.swap(multiplier.y);
            multiplier.y.resize(tokens * TILE);
            multiplier.compute(layer.up, tile, normed.data(), call.width, tokens);
            for (int64_t t = 0; t < tokens; t++)
                for (int i = 0; i < TILE; i += LANES)
                    write(&inner[t * widest + tile * TILE + i],
                          activated(read<floats>(&gates[t * TILE + i]), layer.activation) * read<floats>(&multiplier.y[t * TILE + i]));
        }
        team.meet();
        add_to_hidden(layer.down, inner.data(), widest, rank, multiplier);
    }

    void add_to_hidden(const Matrix& matrix, const float* x, int64_t stride, int rank, Multiplier& multiplier) {
        multiplier.run({&matrix}, x, stride, tokens, rank, team.size, [&](const Matrix&, int64_t tile, const float* y) {
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t i = 0; i < matrix.outputs_of(tile); i++) call.hidden[t * call.width + tile * TILE + i] += y[t * TILE + i];
        });
        team.meet();
    }
};

}  // namespace

extern "C" {

// Whether codes of 4 and 8 bits are multiplied faster in integers here.
int64_t selfdraft_prefers_integers() { return INTEGERS_ARE_FAST; }

// Run layers in a row: change call.hidden, and write the new keys and values to the cache.
void selfdraft_layers(const Layer* layers, int64_t count, const Call* call, int64_t threads) {
    Run run(*call, layers, count, int(threads));
    run.team.run([&](int rank) {
        Multiplier multiplier;
        Buffer normed, scores;
        for (int64_t at = 0; at < count; at++) {
            if (layers[at].q.outputs) run.attention(layers[at], rank, multiplier, normed, scores);
            if (layers[at].gate.outputs) run.mlp(layers[at], rank, multiplier, normed);
        }
    });
}

// out = a root-mean-square norm of x, both (tokens, width).
void selfdraft_norm(const float* x, const float* weight, float eps, int64_t tokens, int64_t width, float* out) {
    for (int64_t t = 0; t < tokens; t++) normalise(x + t * width, weight, eps, width, out + t * width);
}

// y (tokens, outputs) = x (tokens, inputs) times a matrix.
void selfdraft_product(const Matrix* matrix, const float* x, int64_t tokens, float* y, int64_t threads) {
    Team team{int(threads)};
    team.run([&](int rank) {
        Multiplier multiplier;
        multiplier.run({matrix}, x, matrix->inputs, tokens, rank, team.size, [&](const Matrix&, int64_t tile, const float* part) {
            for (int64_t t = 0; t < tokens; t++)
                std::memcpy(y + t * matrix->outputs + tile * TILE, part + t * TILE, matrix->outputs_of(tile) * 4);
        });
    });
}

}
