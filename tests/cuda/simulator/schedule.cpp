// Runs a launch: one fiber for each CUDA thread, blocks one after another or, where they may meet, side by side.
//
// A fiber runs until it waits or polls. When nothing moves any more, the launch has hung and every wait is reported.
#include <time.h>

#include <cstdio>
#include <deque>

#include "runtime.hpp"

namespace simulator {

Fiber* current;
Request* request;
uint32_t now = 1, grid_time;
std::vector<Block*> residents;
bool progress;

namespace {

constexpr int IDLE_PASSES = 100;

bool failed;
uint64_t random_state;
std::vector<Fiber> fibers;
std::deque<Block> blocks;
std::deque<Cluster> clusters;

// --- The order in which threads run.

uint64_t draw() {  // xorshift64*
    random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

// Calls visit(i) for each i < n, in the launch's order, until it says false.
template <class Visit> bool in_order(unsigned n, Visit visit) {
    if (request->order == RANDOM) {
        unsigned mask = 1;
        while (mask < n) mask *= 2;
        uint64_t drawn = draw();
        unsigned start = drawn >> 32, step = drawn | 1;  // odd: passes through every residue of a power of two
        for (unsigned k = 0; k < mask; ++k)
            if (unsigned i = (start + k * step) & (mask - 1); i < n && !visit(i)) return false;
        return true;
    }
    for (unsigned k = 0; k < n; ++k)
        if (!visit(request->order == REVERSE ? n - 1 - k : k)) return false;
    return true;
}

bool resume(Fiber* f) {
    current = f;
    f->wait = Wait::NONE;
    run_fiber(f);
    current = nullptr;
    return !failed;
}

bool run_warp(Block* b, unsigned first) {
    unsigned lanes = b->fibers.size() - first < WARP ? b->fibers.size() - first : WARP;
    bool again, polled = false;  // a thread that polls gets one turn at each visit
    do {
        again = false;
        bool fine = in_order(lanes, [&](unsigned l) {
            Fiber* f = b->fibers[first + l];
            if (f->wait == Wait::POLL ? polled : f->wait != Wait::NONE) return true;
            bool polling = f->wait == Wait::POLL;
            if (!resume(f)) return false;
            if (!polling || f->wait != Wait::POLL) again = progress = true;
            return true;
        });
        if (!fine) return false;
        polled = true;
    } while (again);
    return true;
}

void report_hang() {
    std::string waits;
    std::map<std::string, unsigned> counts;
    for (Block* b : residents)
        for (Fiber* f : b->fibers) {
            char line[256];
            const char* what = f->wait == Wait::POLL      ? "polls memory"
                               : f->wait == Wait::BLOCK   ? f->block->barrier.operation
                               : f->wait == Wait::CLUSTER ? "cluster_sync"
                               : f->wait == Wait::GRID    ? "grid_sync"
                               : f->wait == Wait::DONE    ? "has returned"
                                                          : f->operation;
            if (f->where.line)
                std::snprintf(line, sizeof line, "%s (%s:%d)", what, f->where.file, f->where.line);
            else
                std::snprintf(line, sizeof line, "%s", what);
            ++counts[line];
        }
    for (auto& [what, count] : counts) waits += (waits.empty() ? "" : "; ") + std::to_string(count) + " threads: " + what;
    request->kind = DEADLOCK;
    std::snprintf(request->message, sizeof request->message, "nothing moves any more: %s", waits.c_str());
}

bool run_residents() {
    for (int idle = 0; remaining;) {
        progress = false;
        bool fine = in_order(residents.size(), [](unsigned i) {
            Block* b = residents[i];
            if (b->done == b->fibers.size()) return true;
            unsigned warps = (b->fibers.size() + WARP - 1) / WARP;
            return in_order(warps, [&](unsigned w) { return run_warp(b, w * WARP); });
        });
        if (!fine) return false;
        idle = progress ? 0 : idle + 1;
        if (idle == IDLE_PASSES) return report_hang(), false;
    }
    return true;
}

// --- Setting up.

uint3 unravel(uint32_t i, const uint32_t (&size)[3]) { return {i % size[0], i / size[0] % size[1], i / size[0] / size[1]}; }

// Block `i` of the order in which clusters are counted one after another, as coordinates in the grid.
uint3 block_in_cluster(uint32_t cluster, uint32_t rank) {
    uint32_t per[3];
    for (int d = 0; d < 3; ++d) per[d] = request->grid[d] / request->cluster[d];
    uint3 c = unravel(cluster, per), r = unravel(rank, request->cluster);
    return {c.x * request->cluster[0] + r.x, c.y * request->cluster[1] + r.y, c.z * request->cluster[2] + r.z};
}

bool set_up(uint32_t first_cluster, uint32_t count) {
    uint32_t size = request->cluster[0] * request->cluster[1] * request->cluster[2];
    uint32_t threads = request->block[0] * request->block[1] * request->block[2];
    blocks.clear(), clusters.clear(), residents.clear();
    fibers.clear();
    fibers.resize(size_t(count) * size * threads);
    meeting_of_grid = {};
    remaining = fibers.size();
    size_t next = 0;
    for (uint32_t k = 0; k < count; ++k) {
        clusters.push_back({first_cluster + k, {}, {}});
        Cluster& cluster = clusters.back();
        cluster.barrier.time = grid_time;
        for (uint32_t r = 0; r < size; ++r) {
            blocks.emplace_back();
            Block& b = blocks.back();
            b.index = block_in_cluster(cluster.id, r);
            b.id = cluster.id * size + r;
            b.cluster = &cluster, b.rank = r, b.slot = residents.size();
            b.barrier.time = grid_time;
            cluster.blocks.push_back(&b), residents.push_back(&b);
            for (uint32_t t = 0; t < threads; ++t, ++next) {
                Fiber& f = fibers[next];
                f.block = &b, f.id = b.id * threads + t, f.lane = t % WARP;
                f.thread = unravel(t, request->block);
                f.warp_time = grid_time;
                if (!make_fiber(f, next)) return false;
                b.fibers.push_back(&f);
            }
            start_block(&b);
        }
    }
    return true;
}

}  // namespace

void fail(Kind kind, void* pc, uint32_t other_pc, const char* format, ...) {
    va_list list;
    va_start(list, format);
    std::vsnprintf(request->message, sizeof request->message, format, list);
    va_end(list);
    request->kind = kind;
    request->pcs[0] = pc ? reinterpret_cast<uintptr_t>(pc) - module_base : 0, request->pcs[1] = other_pc;
    failed = true;
    leave_fiber(current);
    __builtin_unreachable();
}

std::string describe_thread(uint32_t id) {
    if (id & BY_ASYNC) return "st.async of " + describe_thread(id & ~BY_ASYNC);
    uint32_t threads = request->block[0] * request->block[1] * request->block[2];
    uint32_t size = request->cluster[0] * request->cluster[1] * request->cluster[2];
    uint3 t = unravel(id % threads, request->block), b = block_in_cluster(id / threads / size, id / threads % size);
    char text[96];
    std::snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
    return text;
}

std::string describe(const Fiber* f) { return describe_thread(f->id); }

void yield(Wait wait, Where where) {
    Fiber* me = current;
    me->wait = wait;
    me->where = where;
    leave_fiber(me);
}

void pause() { yield(Wait::POLL, {}); }

void poll(const void* address, Where where) {
    progress |= current->polled != address;
    current->polled = address;
    yield(Wait::POLL, where);
}

void trap(const char* why, Where where) {
    fail(ARITHMETIC, nullptr, 0, "%s: %s (%s:%d)", describe(current).c_str(), why, where.file, where.line);
}

long long ticks() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

uint3 thread_index() { return current->thread; }
uint3 block_index() { return current->block->index; }
uint3 block_size() { return {request->block[0], request->block[1], request->block[2]}; }
uint3 grid_size() { return {request->grid[0], request->grid[1], request->grid[2]}; }
unsigned rank_in_cluster() { return current->block->rank; }
unsigned size_of_cluster() { return current->block->cluster->blocks.size(); }

}  // namespace simulator

extern "C" uint32_t fastlstm_launch(simulator::Request* asked) {
    using namespace simulator;
    request = asked;
    request->kind = FINE;
    failed = false;
    random_state = request->seed | 1;
    grid_time = ++now;
    uint32_t all = 1, size = 1;
    for (int d = 0; d < 3; ++d) all *= request->grid[d], size *= request->cluster[d];
    uint32_t together = request->cooperative ? all / size : 1;  // clusters
    bool memory = start_memory(together * size);
    if (memory)
        in_order(all / size / together,
                 [&](unsigned k) { return (memory = set_up(k * together, together)) && run_residents(); });
    if (!memory) {
        request->kind = MISUSE;
        std::snprintf(request->message, sizeof request->message, "no memory for the threads of this launch");
    }
    return request->kind;
}
