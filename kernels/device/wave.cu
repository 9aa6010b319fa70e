// Two layers' recurrences in one launch, `wave_forward` or, with BACKWARD, `wave_backward`: persistent.cu twice, with wave.cuh between
// them. The layer that goes ahead comes first among the arguments; `between`: the weights with which the other takes what it made.

#include "cells.cuh"
#include "wave.cuh"

extern "C" __global__ BLOCKS void __launch_bounds__(THREADS, 1)
    NAMED(wave)(PARAMETERS(_1), PARAMETERS(_2), const WORD* between, i64 passes, unsigned* counters) {
    const unsigned groups = gridDim.y / 2, part = turn<EXCHANGE<Cell>>(counters + 3 * groups * APART), group = part % groups;
    const bool second = part >= groups;
    const Cell first = CELL(_1), cell = second ? CELL(_2) : first;
    EXCHANGE<Cell> exchange(counters);
    Between<Cell> neighbour(first, second, counters + (2 * groups + group) * APART);
    recur(cell, exchange, neighbour, second ? weights_2 : weights_1, weights_row_1, between, group, passes);
}
