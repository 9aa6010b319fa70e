// The cells of persistent recurrences: what a unit reads, computes and writes in a step, in the general form's layouts.
//
// CELL_LSTM, CELL_GRU (with reset_after) or CELL_RNN says which; BACKWARD, which way. The kernels' arguments are the same for
// all, PARAMETERS, those of the operations in launches.py; a cell leaves alone what it has no use for. A cell has
//
//     COLUMNS_OF_UNIT, WORDS, STATES             columns of the product, words of the operand, and floats carried, of a unit
//     at(s), operand(step), operand_row, depth() which step is the s-th, where its operand lies, and how many words a row has
//     Read, read(step, row, unit, read)          what does not depend on other blocks
//     offered(step), take(read, sums)            what a layer gives its neighbour in a step, and what becomes of a product with it
//     begin, step, end (row, unit, ...)          states from their arrays, a step, states back
#pragma once
#include "gru.cuh"
#include "lstm.cuh"
#include "persistent.cuh"
#include "rnn.cuh"

#if !defined(BACKWARD)

struct Arguments {
    i64 steps, batch, hidden, reverse, time, relu;
    const REAL* gates;
    i64 gates_row;  // 0 where all rows have the same
    WORD* kept;
    i64 kept_row;
    WORD* side;
    i64 side_row;
    REAL* h;
    WORD* op;
    i64 operand_row;
    REAL* c;
    i64 c_slots;
    const REAL* bias;
    const int* ids;
    const REAL* table;
    const i64* lengths;
    const u8* clear;

    __device__ Step at(i64 s) const { return forward_step(s, steps, reverse); }
    __device__ const WORD* operand(const Step& step) const { return op + step.before * batch * operand_row; }
    __device__ const WORD* offered(const Step& step) const { return op + step.after * batch * operand_row; }
    __device__ i64 depth() const { return hidden; }
    __device__ i64 cell_of(i64 row, i64 unit) const { return row * hidden + unit; }
    __device__ REAL* c_at(i64 slot) const { return c + (time + slot) % c_slots * batch * hidden; }
    __device__ bool ended(const Step& step, i64 row) const { return has_ended(lengths, row, time + step.t); }
    __device__ const u8* marks(const Step& step) const { return clear ? clear + step.t * batch : nullptr; }

    // The input's part of a unit's gates: computed for this row, or that of its token.
    template <int GATES> __device__ void read_gates(const Step& step, i64 row, i64 unit, REAL x[GATES]) const {
        i64 n = step.t * batch + row;
        const REAL* from = (ids ? table + ids[n] * GATES * hidden : gates + n * gates_row) + GATES * unit;
        #pragma unroll
        for (int gate = 0; gate < GATES; ++gate) x[gate] = from[gate];
    }

    // Gates that another layer's h has a part in.
    template <class Read> __device__ static void take(Read& read, const REAL* sums) {
        #pragma unroll
        for (int gate = 0; gate < int(sizeof(read.x) / sizeof(REAL)); ++gate) read.x[gate] += sums[gate];
    }

    // h, or what it was where the row has ended, to its array and as the next step's operand.
    __device__ void give(const Step& step, i64 row, i64 unit, REAL value, WORD made[1]) const {
        i64 from = step.before * batch + row, to = step.after * batch + row;
        if (ended(step, row)) value = h[from * hidden + unit];
        made[0] = word_of(value);
        h[to * hidden + unit] = value;
        if (sizeof(WORD) < sizeof(REAL)) op[to * operand_row + unit] = made[0];
    }
};

#if defined(CELL_LSTM)
struct Cell : Arguments {  // carries c
    static constexpr int COLUMNS_OF_UNIT = 4, WORDS = 1, STATES = 1;
    struct Read {
        REAL x[4];
    };
    __device__ void begin(i64 row, i64 unit, State state) const { state[0] = c_at(at(0).before)[cell_of(row, unit)]; }
    __device__ void end(i64, i64, State) const {}
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const { read_gates<4>(step, row, unit, read.x); }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State state, WORD* made) const {
        REAL a[4], after, out;
        #pragma unroll
        for (int gate = 0; gate < 4; ++gate) read.x[gate] += unless_marked(marks(step), row, sums[gate]);
        out = lstm_step(read.x, unless_marked(marks(step), row, state[0]), a, after);
        bool over = ended(step, row);
        if (kept && !over)
            #pragma unroll
            for (int gate = 0; gate < 4; ++gate) kept[(step.t * batch + row) * kept_row + 4 * unit + gate] = word_of(a[gate]);
        if (!over) state[0] = after;
        c_at(step.after)[cell_of(row, unit)] = state[0];
        give(step, row, unit, out, made);
    }
};
#elif defined(CELL_GRU)
struct Cell : Arguments {  // carries h
    static constexpr int COLUMNS_OF_UNIT = 3, WORDS = 1, STATES = 1;
    struct Read {
        REAL x[3], bias;
    };
    __device__ void begin(i64 row, i64 unit, State state) const {
        state[0] = h[at(0).before * batch * hidden + cell_of(row, unit)];
    }
    __device__ void end(i64, i64, State) const {}
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const {
        read_gates<3>(step, row, unit, read.x);
        read.bias = bias[unit];
    }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State state, WORD* made) const {
        const u8* marked = marks(step);
        REAL s[2] = {unless_marked(marked, row, sums[0]), unless_marked(marked, row, sums[1])};
        REAL hn = unless_marked(marked, row, sums[2]) + read.bias, a[3];
        REAL out = gru_step(read.x, s, hn, unless_marked(marked, row, state[0]), a);
        if (kept) {
            i64 n = step.t * batch + row;
            #pragma unroll
            for (int gate = 0; gate < 3; ++gate) kept[n * kept_row + 3 * unit + gate] = word_of(a[gate]);
            side[n * side_row + unit] = word_of(hn);
        }
        if (!ended(step, row)) state[0] = out;
        give(step, row, unit, out, made);
    }
};
#else
struct Cell : Arguments {
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 1, STATES = 0;
    struct Read {
        REAL x[1];
    };
    __device__ void begin(i64, i64, State) const {}
    __device__ void end(i64, i64, State) const {}
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const { read_gates<1>(step, row, unit, read.x); }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State, WORD* made) const {
        give(step, row, unit, rnn_step(read.x[0] + unless_marked(marks(step), row, sums[0]), relu), made);
    }
};
#endif

// A layer's arguments, and its cell made of them; `k` is a mark that sets their names apart from those of another.
#define PARAMETERS(k)                                                                                                    \
    i64 steps##k, i64 batch##k, i64 hidden##k, i64 reverse##k, i64 time##k, i64 relu##k, const REAL *gates##k,           \
        i64 gates_row##k, WORD *kept##k, i64 kept_row##k, WORD *side##k, i64 side_row##k, REAL *h##k, WORD *op##k,        \
        i64 op_row##k, REAL *c##k, i64 c_slots##k, const REAL *bias##k, const int *ids##k, const REAL *table##k,          \
        const i64 *lengths##k, const u8 *clear##k, const WORD *weights##k, i64 weights_row##k
#define CELL(k)                                                                                                          \
    Cell{{steps##k, batch##k, hidden##k, reverse##k, time##k, relu##k, gates##k, gates_row##k, kept##k, kept_row##k,      \
          side##k, side_row##k, h##k, op##k, op_row##k, c##k, c_slots##k, bias##k, ids##k, table##k, lengths##k, clear##k}}
#define NAMED(kernel) kernel##_forward

#else

struct Arguments {
    i64 steps, batch, hidden, reverse, time, start, relu;
    WORD* kept;      // activations in, gradients of the gates out
    WORD* inner;     // GRU: those on h's side, which is what travels
    i64 operand_row;
    const WORD* side;
    i64 side_row;
    const REAL* h;
    const REAL* c;
    const REAL* dout;
    i64 dout_row;
    REAL* dh;
    REAL* dc;
    const i64* lengths;
    const u8* clear;

    __device__ Step at(i64 s) const { return backward_step(s, steps, reverse, start); }
    __device__ i64 cell_of(i64 row, i64 unit) const { return row * hidden + unit; }
    __device__ bool ended(const Step& step, i64 row) const { return has_ended(lengths, row, time + step.t); }
    __device__ const u8* marks(const Step& step) const { return clear ? clear + step.t * batch : nullptr; }

    // What comes back through the step after: nothing where it was marked, or was none.
    __device__ REAL passed(const Step& step, i64 row, REAL value) const {
        return unless_marked(clear && step.linked ? clear + step.next * batch : nullptr, row, value);
    }
    __device__ REAL dout_of(const Step& step, i64 row, i64 unit) const {
        return dout ? dout[(step.t * batch + row) * dout_row + unit] : REAL(0);
    }
    __device__ const WORD* offered(const Step& step) const { return kept + step.t * batch * operand_row; }
    template <class Read> __device__ static void take(Read& read, const REAL* sums) { read.dout += sums[0]; }
    template <int GATES> __device__ static void read_gates(const WORD* from, REAL a[GATES]) {
        #pragma unroll
        for (int gate = 0; gate < GATES; ++gate) a[gate] = value_of(from[gate]);
    }
    // Gradients as words to their array and as the next step's operand.
    template <int GATES> __device__ static void give(WORD* to, const REAL d[GATES], WORD made[GATES]) {
        #pragma unroll
        for (int gate = 0; gate < GATES; ++gate) to[gate] = made[gate] = word_of(d[gate]);
    }
};

#if defined(CELL_LSTM)
struct Cell : Arguments {  // carries dh, which is zero but where a row has ended, and dc
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 4, STATES = 2;
    struct Read {
        REAL a[4], c_prev, c, dout;
    };
    __device__ i64 depth() const { return 4 * hidden; }
    __device__ const WORD* operand(const Step& step) const { return kept + step.next * batch * operand_row; }
    __device__ void begin(i64 row, i64 unit, State state) const {
        state[0] = dh[cell_of(row, unit)];
        state[1] = dc[cell_of(row, unit)];
    }
    __device__ void end(i64 row, i64 unit, State state) const {
        dh[cell_of(row, unit)] = state[0];
        dc[cell_of(row, unit)] = state[1];
    }
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const {
        read_gates<4>(kept + (step.t * batch + row) * operand_row + 4 * unit, read.a);
        read.c_prev = unless_marked(marks(step), row, c[step.before * batch * hidden + cell_of(row, unit)]);
        read.c = c[step.after * batch * hidden + cell_of(row, unit)];
        read.dout = dout_of(step, row, unit);
    }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State state, WORD* made) const {
        REAL incoming = passed(step, row, state[0] + sums[0]), d_c = passed(step, row, state[1]), d[4] = {};
        if (ended(step, row)) {
            state[0] = incoming;
            state[1] = d_c;
        } else {
            state[0] = 0;
            incoming += read.dout;  // grad: out
            state[1] = lstm_step_back(read.a, read.c_prev, read.c, incoming, d_c, d);
        }
        give<4>(kept + (step.t * batch + row) * operand_row + 4 * unit, d, made);
    }
};
#elif defined(CELL_GRU)
struct Cell : Arguments {  // carries dh but for the products
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 3, STATES = 1;
    struct Read {
        REAL a[3], hn, h_prev, dout;
    };
    __device__ i64 depth() const { return 3 * hidden; }
    __device__ const WORD* operand(const Step& step) const { return inner + step.next * batch * operand_row; }
    __device__ void begin(i64 row, i64 unit, State state) const { state[0] = dh[cell_of(row, unit)]; }
    __device__ void end(i64 row, i64 unit, State state) const { dh[cell_of(row, unit)] = state[0]; }
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const {
        i64 n = step.t * batch + row;
        read_gates<3>(kept + n * operand_row + 3 * unit, read.a);
        read.hn = value_of(side[n * side_row + unit]);
        read.h_prev = unless_marked(marks(step), row, h[step.before * batch * hidden + cell_of(row, unit)]);
        read.dout = dout_of(step, row, unit);
    }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State state, WORD* made) const {
        REAL total = passed(step, row, state[0] + sums[0]), d[3] = {}, d_hn = 0;
        if (ended(step, row)) {
            state[0] = total;
        } else {
            total += read.dout;  // grad: out
            state[0] = gru_step_back(read.a, read.hn, read.h_prev, total, d, d_hn);
        }
        i64 at = (step.t * batch + row) * operand_row + 3 * unit;
        give<3>(kept + at, d, made);
        d[2] = d_hn;
        give<3>(inner + at, d, made);
    }
};
#else
struct Cell : Arguments {  // carries dh, which is zero but where a row has ended
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 1, STATES = 1;
    struct Read {
        REAL h, dout;
    };
    __device__ i64 depth() const { return hidden; }
    __device__ const WORD* operand(const Step& step) const { return kept + step.next * batch * operand_row; }
    __device__ void begin(i64 row, i64 unit, State state) const { state[0] = dh[cell_of(row, unit)]; }
    __device__ void end(i64 row, i64 unit, State state) const { dh[cell_of(row, unit)] = state[0]; }
    __device__ void read(const Step& step, i64 row, i64 unit, Read& read) const {
        read.h = h[step.after * batch * hidden + cell_of(row, unit)];
        read.dout = dout_of(step, row, unit);
    }

    __device__ void step(const Step& step, i64 row, i64 unit, Read& read, const REAL* sums, State state, WORD* made) const {
        REAL total = passed(step, row, state[0] + sums[0]), d[1] = {};
        bool over = ended(step, row);
        state[0] = over ? total : REAL(0);
        if (!over) {
            total += read.dout;  // grad: out
            d[0] = rnn_step_back(read.h, total, relu);
        }
        give<1>(kept + (step.t * batch + row) * operand_row + unit, d, made);
    }
};
#endif

#define PARAMETERS(k)                                                                                                    \
    i64 steps##k, i64 batch##k, i64 hidden##k, i64 reverse##k, i64 time##k, i64 start##k, i64 relu##k, WORD *kept##k,     \
        WORD *inner##k, i64 kept_row##k, const WORD *side##k, i64 side_row##k, const REAL *h##k, const REAL *c##k,        \
        const REAL *dout##k, i64 dout_row##k, REAL *dh##k, REAL *dc##k, const i64 *lengths##k, const u8 *clear##k,        \
        const WORD *weights##k, i64 weights_row##k
#define CELL(k)                                                                                                          \
    Cell{{steps##k, batch##k, hidden##k, reverse##k, time##k, start##k, relu##k, kept##k, inner##k, kept_row##k, side##k, \
          side_row##k, h##k, c##k, dout##k, dout_row##k, dh##k, dc##k, lengths##k, clear##k}}
#define NAMED(kernel) kernel##_backward

#endif
