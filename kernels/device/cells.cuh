// The cells of persistent recurrences: what a unit reads, computes and writes in a step, in the general form's layouts.
//
// CELL_LSTM, CELL_GRU (with reset_after) or CELL_RNN says which; BACKWARD, which way. The kernels' arguments are the same for
// all, PARAMETERS, those of the operations in launches.py; a cell leaves alone what it has no use for. A cell has
//
//     COLUMNS_OF_UNIT, WORDS, STATES         columns of the product, words of the operand, and floats carried, of a unit
//     first(), advance(step)                 the steps, in the order in which they are made
//     operand(step), operand_row, depth()    where a step's operand lies, and how many words a row has
//     Read, read(step, row, unit, state, read)     what does not depend on other blocks
//     offered(step), take(read, sums)        what a layer gives its neighbour in a step, and what becomes of a product with it
//     Made, step(step, read, sums, made)     the step itself, from what was read and the product; it touches no memory
//     offer(step, row, unit, made)           its operand to the array that other blocks read
//     store<OFFERED>(step, row, unit, made, state)    all the rest, nobody waits for it; with the operand unless OFFERED
//     begin, end (row, unit, state)          states from their arrays, and back
//
// Rows of all steps are counted in 32 bits: forms.py lets no longer sequences come here.
#pragma once
#include "gru.cuh"
#include "lstm.cuh"
#include "persistent.cuh"
#include "rnn.cuh"

// What a step must know of a row: whether it has ended, whether its state counts as nothing.
struct Row {
    int length;  // in steps of the whole sequence
    u8 marked;
    __device__ REAL unless_marked(REAL value) const { return marked ? REAL(0) : value; }
};
__device__ inline Row row_at(const i64* lengths, const u8* marks, int n, int row) {
    return {lengths ? int(lengths[row]) : 0x7fffffff, marks ? marks[n] : u8(0)};
}

#if !defined(BACKWARD)

struct Arguments {
    int steps;
    unsigned batch;
    int hidden, reverse, time, relu;
    Rows<const REAL> gates;  // by row, of 0 bytes where all have the same; with `ids` the table of tokens
    Rows<WORD> kept, side;
    Rows<REAL> h;
    Rows<WORD> op;
    Rows<REAL> c;
    int c_slots;
    const REAL* bias;
    const int* ids;
    const i64* lengths;
    const u8* clear;

    __device__ Step first() const {
        int t = reverse ? steps - 1 : 0;
        return {t, t + reverse, t + 1 - reverse, 0, (time + t + 1 - reverse) % c_slots, true};
    }
    __device__ void advance(Step& step) const {
        const int by = 1 - 2 * reverse;
        step.t += by, step.before += by, step.after += by, step.slot += by;
        step.slot = step.slot < 0 ? c_slots - 1 : step.slot == c_slots ? 0 : step.slot;
    }
    __device__ Rows<const WORD> operand(const Step& step) const { return op.from(step.before * batch); }
    __device__ Rows<const WORD> offered(const Step& step) const { return op.from(step.after * batch); }
    __device__ int depth() const { return hidden; }
    __device__ bool ended(const Step& step, const Row& of) const { return time + step.t >= of.length; }

    // The input's part of a unit's gates, computed for this row or that of its token; and h before, for a row that has ended.
    template <class Read> __device__ void read_row(const Step& step, int row, int unit, Read& read) const {
        constexpr int GATES = sizeof(read.x) / sizeof(REAL);
        const int n = step.t * batch + row;
        load<GATES>(gates.at(ids ? ids[n] : n, GATES * unit), read.x);
        read.of = row_at(lengths, clear, n, row);
        read.h = lengths ? *h.at(step.before * batch + row, unit) : REAL(0);
    }

    // Gates that another layer's h has a part in.
    template <class Read> __device__ static void take(Read& read, const REAL* sums) {
        #pragma unroll
        for (int gate = 0; gate < int(sizeof(read.x) / sizeof(REAL)); ++gate) read.x[gate] += sums[gate];
    }

    template <class Made> __device__ void offer(const Step& step, int row, int unit, const Made& made) const {
        *op.at(step.after * batch + row, unit) = made.words[0];
    }
    // h as it is, and as the next step's operand; in float32 they are one.
    template <bool OFFERED, class Made> __device__ void store_h(const Step& step, int row, int unit, const Made& made) const {
        constexpr bool NARROW = sizeof(WORD) < sizeof(REAL);
        if (NARROW || !OFFERED) *h.at(step.after * batch + row, unit) = made.h;
        if (NARROW && !OFFERED) offer(step, row, unit, made);
    }
};

#if defined(CELL_LSTM)
struct Cell : Arguments {  // carries c
    static constexpr int COLUMNS_OF_UNIT = 4, WORDS = 1, STATES = 1;
    struct Read {
        REAL x[4], h, c;
        Row of;
    };
    struct Made {
        REAL a[4], c, h;
        WORD words[1];
        bool over;
    };
    __device__ void begin(int row, int unit, State state) const {
        state[0] = *c.at((time + first().before) % c_slots * batch + row, unit);
    }
    __device__ void end(int, int, State) const {}
    __device__ void read(const Step& step, int row, int unit, State state, Read& read) const {
        read_row(step, row, unit, read);
        read.c = state[0];
    }

    __device__ void step(const Step& step, Read& read, const REAL* sums, Made& made) const {
        #pragma unroll
        for (int gate = 0; gate < 4; ++gate) read.x[gate] += read.of.unless_marked(sums[gate]);
        made.h = lstm_step(read.x, read.of.unless_marked(read.c), made.a, made.c);
        made.over = ended(step, read.of);
        if (made.over) made.h = read.h, made.c = read.c;
        made.words[0] = word_of(made.h);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State state) const {
        state[0] = made.c;
        if (kept.first && !made.over) {
            WORD words[4];
            #pragma unroll
            for (int gate = 0; gate < 4; ++gate) words[gate] = word_of(made.a[gate]);
            ::store<4>(kept.at(step.t * batch + row, 4 * unit), words);
        }
        *c.at(step.slot * batch + row, unit) = made.c;
        store_h<OFFERED>(step, row, unit, made);
    }
};
#elif defined(CELL_GRU)
struct Cell : Arguments {  // carries h
    static constexpr int COLUMNS_OF_UNIT = 3, WORDS = 1, STATES = 1;
    struct Read {
        REAL x[3], bias, h;
        Row of;
    };
    struct Made {
        REAL a[3], hn, h;
        WORD words[1];
    };
    __device__ void begin(int row, int unit, State state) const { state[0] = *h.at(first().before * batch + row, unit); }
    __device__ void end(int, int, State) const {}
    __device__ void read(const Step& step, int row, int unit, State state, Read& read) const {
        read_row(step, row, unit, read);
        read.h = state[0];
        read.bias = bias[unit];
    }

    __device__ void step(const Step& step, Read& read, const REAL* sums, Made& made) const {
        const REAL s[2] = {read.of.unless_marked(sums[0]), read.of.unless_marked(sums[1])};
        made.hn = read.of.unless_marked(sums[2]) + read.bias;
        made.h = gru_step(read.x, s, made.hn, read.of.unless_marked(read.h), made.a);
        if (ended(step, read.of)) made.h = read.h;
        made.words[0] = word_of(made.h);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State state) const {
        state[0] = made.h;
        if (kept.first) {
            const int n = step.t * batch + row;
            WORD* to = kept.at(n, 3 * unit);
            #pragma unroll
            for (int gate = 0; gate < 3; ++gate) to[gate] = word_of(made.a[gate]);
            *side.at(n, unit) = word_of(made.hn);
        }
        store_h<OFFERED>(step, row, unit, made);
    }
};
#else
struct Cell : Arguments {
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 1, STATES = 0;
    struct Read {
        REAL x[1], h;
        Row of;
    };
    struct Made {
        REAL h;
        WORD words[1];
    };
    __device__ void begin(int, int, State) const {}
    __device__ void end(int, int, State) const {}
    __device__ void read(const Step& step, int row, int unit, State, Read& read) const { read_row(step, row, unit, read); }

    __device__ void step(const Step& step, Read& read, const REAL* sums, Made& made) const {
        made.h = rnn_step(read.x[0] + read.of.unless_marked(sums[0]), relu);
        if (ended(step, read.of)) made.h = read.h;
        made.words[0] = word_of(made.h);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State) const {
        store_h<OFFERED>(step, row, unit, made);
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
    Cell{{int(steps##k), unsigned(batch##k), int(hidden##k), int(reverse##k), int(time##k), int(relu##k),                     \
          rows(ids##k ? table##k : gates##k, ids##k ? hidden##k * Cell::COLUMNS_OF_UNIT : gates_row##k),                 \
          rows(kept##k, kept_row##k), rows(side##k, side_row##k), rows(h##k, hidden##k), rows(op##k, op_row##k),         \
          rows(c##k, hidden##k), int(c_slots##k), bias##k, ids##k, lengths##k, clear##k}}
#define NAMED(kernel) kernel##_forward

#else

struct Arguments {
    int steps;
    unsigned batch;
    int hidden, reverse, time, start, relu;
    Rows<WORD> kept;   // activations in, gradients of the gates out
    Rows<WORD> inner;  // GRU: those on h's side, which is what travels
    Rows<const WORD> side;
    Rows<const REAL> h, c, dout;
    Rows<REAL> dh, dc;
    const i64* lengths;
    const u8* clear;

    __device__ Step first() const {
        int t = reverse ? 0 : steps - 1;
        return {t, t + reverse, t + 1 - reverse, reverse ? t - 1 : t + 1, 0, !start};
    }
    __device__ void advance(Step& step) const {
        const int by = 2 * reverse - 1;
        step.t += by, step.before += by, step.after += by, step.next += by;
        step.linked = true;
    }
    __device__ bool ended(const Step& step, const Row& of) const { return time + step.t >= of.length; }

    // What all cells read of a row; nothing comes back through the step after where that was marked.
    template <class Read> __device__ void read_row(const Step& step, int row, int unit, Read& read) const {
        const int n = step.t * batch + row;
        read.of = row_at(lengths, clear, n, row);
        read.after_marked = clear && step.linked ? clear[step.next * batch + row] : u8(0);
        read.dout = dout.first ? *dout.at(n, unit) : REAL(0);
    }
    template <int GATES> __device__ void read_gates(int n, int unit, REAL a[GATES]) const {
        WORD words[GATES];
        load<GATES>(kept.at(n, GATES * unit), words);
        #pragma unroll
        for (int gate = 0; gate < GATES; ++gate) a[gate] = value_of(words[gate]);
    }
    __device__ Rows<const WORD> offered(const Step& step) const { return kept.from(step.t * batch); }
    template <class Read> __device__ static void take(Read& read, const REAL* sums) { read.dout += sums[0]; }
    template <int GATES> static __device__ void words_of(const REAL d[GATES], WORD words[GATES]) {
        #pragma unroll
        for (int gate = 0; gate < GATES; ++gate) words[gate] = word_of(d[gate]);
    }
};

#if defined(CELL_LSTM)
struct Cell : Arguments {  // carries dh, which is zero but where a row has ended, and dc
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 4, STATES = 2;
    struct Read {
        REAL a[4], c_prev, c, dout, dh, dc;
        Row of;
        u8 after_marked;
    };
    struct Made {
        REAL dh, dc;
        WORD words[4];
    };
    __device__ int depth() const { return 4 * hidden; }
    __device__ Rows<const WORD> operand(const Step& step) const { return kept.from(step.next * batch); }
    __device__ void begin(int row, int unit, State state) const {
        state[0] = *dh.at(row, unit);
        state[1] = *dc.at(row, unit);
    }
    __device__ void end(int row, int unit, State state) const {
        *dh.at(row, unit) = state[0];
        *dc.at(row, unit) = state[1];
    }
    __device__ void read(const Step& step, int row, int unit, State state, Read& read) const {
        read_row(step, row, unit, read);
        read_gates<4>(step.t * batch + row, unit, read.a);
        read.c_prev = *c.at(step.before * batch + row, unit);
        read.c = *c.at(step.after * batch + row, unit);
        read.dh = state[0], read.dc = state[1];
    }

    __device__ void step(const Step& step, const Read& read, const REAL* sums, Made& made) const {
        REAL incoming = read.after_marked ? REAL(0) : read.dh + sums[0], d_c = read.after_marked ? REAL(0) : read.dc, d[4];
        const bool over = ended(step, read.of);
        made.dh = over ? incoming : REAL(0);
        incoming += read.dout;  // grad: out
        made.dc = lstm_step_back(read.a, read.of.unless_marked(read.c_prev), read.c, incoming, d_c, d);
        if (over) made.dc = d_c, d[0] = d[1] = d[2] = d[3] = 0;
        words_of<4>(d, made.words);
    }
    __device__ void offer(const Step& step, int row, int unit, const Made& made) const {
        ::store<4>(kept.at(step.t * batch + row, 4 * unit), made.words);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State state) const {
        state[0] = made.dh, state[1] = made.dc;
        if (!OFFERED) offer(step, row, unit, made);
    }
};
#elif defined(CELL_GRU)
struct Cell : Arguments {  // carries dh but for the products
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 3, STATES = 1;
    struct Read {
        REAL a[3], hn, h_prev, dout, dh;
        Row of;
        u8 after_marked;
    };
    struct Made {
        REAL dh;
        WORD words[3], n;  // on h's side, which travel, and that of n on the input's
    };
    __device__ int depth() const { return 3 * hidden; }
    __device__ Rows<const WORD> operand(const Step& step) const { return inner.from(step.next * batch); }
    __device__ void begin(int row, int unit, State state) const { state[0] = *dh.at(row, unit); }
    __device__ void end(int row, int unit, State state) const { *dh.at(row, unit) = state[0]; }
    __device__ void read(const Step& step, int row, int unit, State state, Read& read) const {
        const int n = step.t * batch + row;
        read_row(step, row, unit, read);
        read_gates<3>(n, unit, read.a);
        read.hn = value_of(*side.at(n, unit));
        read.h_prev = *h.at(step.before * batch + row, unit);
        read.dh = state[0];
    }

    __device__ void step(const Step& step, const Read& read, const REAL* sums, Made& made) const {
        REAL total = read.after_marked ? REAL(0) : read.dh + sums[0], d[3], d_hn;
        const REAL carried = total;
        total += read.dout;  // grad: out
        made.dh = gru_step_back(read.a, read.hn, read.of.unless_marked(read.h_prev), total, d, d_hn);
        if (ended(step, read.of)) made.dh = carried, d[0] = d[1] = d[2] = d_hn = 0;
        made.n = word_of(d[2]);
        d[2] = d_hn;
        words_of<3>(d, made.words);
    }
    __device__ void offer(const Step& step, int row, int unit, const Made& made) const {
        ::store<3>(inner.at(step.t * batch + row, 3 * unit), made.words);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State state) const {
        state[0] = made.dh;
        if (!OFFERED) offer(step, row, unit, made);
        const WORD words[3] = {made.words[0], made.words[1], made.n};
        ::store<3>(kept.at(step.t * batch + row, 3 * unit), words);
    }
};
#else
struct Cell : Arguments {  // carries dh, which is zero but where a row has ended
    static constexpr int COLUMNS_OF_UNIT = 1, WORDS = 1, STATES = 1;
    struct Read {
        REAL h, dout, dh;
        Row of;
        u8 after_marked;
    };
    struct Made {
        REAL dh;
        WORD words[1];
    };
    __device__ int depth() const { return hidden; }
    __device__ Rows<const WORD> operand(const Step& step) const { return kept.from(step.next * batch); }
    __device__ void begin(int row, int unit, State state) const { state[0] = *dh.at(row, unit); }
    __device__ void end(int row, int unit, State state) const { *dh.at(row, unit) = state[0]; }
    __device__ void read(const Step& step, int row, int unit, State state, Read& read) const {
        read_row(step, row, unit, read);
        read.h = *h.at(step.after * batch + row, unit);
        read.dh = state[0];
    }

    __device__ void step(const Step& step, const Read& read, const REAL* sums, Made& made) const {
        REAL total = read.after_marked ? REAL(0) : read.dh + sums[0];
        const bool over = ended(step, read.of);
        made.dh = over ? total : REAL(0);
        total += read.dout;  // grad: out
        made.words[0] = word_of(over ? REAL(0) : rnn_step_back(read.h, total, relu));
    }
    __device__ void offer(const Step& step, int row, int unit, const Made& made) const {
        ::store<1>(kept.at(step.t * batch + row, 1 * unit), made.words);
    }
    template <bool OFFERED> __device__ void store(const Step& step, int row, int unit, const Made& made, State state) const {
        state[0] = made.dh;
        if (!OFFERED) offer(step, row, unit, made);
    }
};
#endif

#define PARAMETERS(k)                                                                                                    \
    i64 steps##k, i64 batch##k, i64 hidden##k, i64 reverse##k, i64 time##k, i64 start##k, i64 relu##k, WORD *kept##k,     \
        WORD *inner##k, i64 kept_row##k, const WORD *side##k, i64 side_row##k, const REAL *h##k, const REAL *c##k,        \
        const REAL *dout##k, i64 dout_row##k, REAL *dh##k, REAL *dc##k, const i64 *lengths##k, const u8 *clear##k,        \
        const WORD *weights##k, i64 weights_row##k
#define CELL(k)                                                                                                          \
    Cell{{int(steps##k), unsigned(batch##k), int(hidden##k), int(reverse##k), int(time##k), int(start##k), int(relu##k),      \
          rows(kept##k, kept_row##k), rows(inner##k, kept_row##k), rows(side##k, side_row##k), rows(h##k, hidden##k),    \
          rows(c##k, hidden##k), rows(dout##k, dout_row##k), rows(dh##k, hidden##k), rows(dc##k, hidden##k), lengths##k, \
          clear##k}}
#define NAMED(kernel) kernel##_backward

#endif
