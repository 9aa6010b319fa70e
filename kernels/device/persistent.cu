// A layer's recurrence in one launch, `recur_forward` or, with BACKWARD, `recur_backward`: the loop of persistent.cuh over a cell of
// cells.cuh. EXCHANGE is Grid, Alone or Cluster (exchange.cuh), with CLUSTER_BLOCKS.

#include "cells.cuh"
#include "exchange.cuh"

extern "C" __global__ BLOCKS void __launch_bounds__(THREADS, 1)
    NAMED(recur)(PARAMETERS(), i64 passes, unsigned* counters) {
    Cell cell = CELL();
    EXCHANGE<Cell> exchange(counters);
    Apart apart;
    recur(cell, exchange, apart, weights, weights_row, nullptr, blockIdx.y, passes);
}
