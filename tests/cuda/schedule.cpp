// Runs a launch: one fiber for each CUDA thread, blocks one after another or, where they may meet, side by side.
//
// A fiber runs until it waits or polls. What waits for what is checked when a thread arrives or returns; when nothing moves
// any more, the launch has hung and every wait is reported.
#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <cstring>
#include <deque>

#include "runtime.hpp"
#if defined(FASTLSTM_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#include <ucontext.h>
#endif

namespace simulator {

Fiber* current;
Request* request;
uint32_t now = 1, grid_time;
std::vector<Block*> residents;
bool progress;

namespace {

constexpr int IDLE_PASSES = 100;

void* scheduler;
bool failed;
unsigned remaining;
uint64_t random_state;
Barrier grid_barrier_;
std::vector<Fiber> fibers;
std::deque<Block> blocks;
std::deque<Cluster> clusters;
std::vector<uintptr_t> stacks;

// --- The switch between fibers: what a call must preserve goes on the stack, then the stack pointer changes.

extern "C" void fastlstm_switch(void** from, void* to);

void finish(Fiber*);

extern "C" __attribute__((used)) void fastlstm_run() {
    request->kernel->invoke(request->arguments);
    finish(current);
    yield(Wait::DONE, {});
}

#if defined(__x86_64__) && !defined(FASTLSTM_UCONTEXT)
asm(R"(
.text
.hidden fastlstm_switch
.globl fastlstm_switch
fastlstm_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.hidden fastlstm_start
.globl fastlstm_start
fastlstm_start:
    call fastlstm_run
    ud2
)");
extern "C" void fastlstm_start();
void prepare(Fiber& f) {
    size_t colour = f.id % 61 * 64;  // that equal depths do not all fall into the same sets of the cache
    void** top = reinterpret_cast<void**>(f.stack + STACK - colour) - 9;  // six registers, the address, and what aligns to 16
    std::memset(top, 0, 9 * sizeof(void*));
    top[6] = reinterpret_cast<void*>(fastlstm_start);
    f.stack_pointer = top;
}
#elif defined(__aarch64__) && !defined(FASTLSTM_UCONTEXT)
asm(R"(
.text
.hidden fastlstm_switch
.globl fastlstm_switch
fastlstm_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.hidden fastlstm_start
.globl fastlstm_start
fastlstm_start:
    bl fastlstm_run
    brk #1
)");
extern "C" void fastlstm_start();
void prepare(Fiber& f) {
    size_t colour = f.id % 61 * 64;  // that equal depths do not all fall into the same sets of the cache
    void** top = reinterpret_cast<void**>(f.stack + STACK - colour) - 20;
    std::memset(top, 0, 20 * sizeof(void*));
    top[11] = reinterpret_cast<void*>(fastlstm_start);
    f.stack_pointer = top;
}
#else
ucontext_t scheduler_context;
extern "C" void fastlstm_switch(void** from, void* to) {
    swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
void prepare(Fiber& f) {
    scheduler = &scheduler_context;
    ucontext_t* context = reinterpret_cast<ucontext_t*>(f.stack);  // at the end that is used last
    getcontext(context);
    context->uc_stack.ss_sp = context + 1;
    context->uc_stack.ss_size = STACK - sizeof *context;
    makecontext(context, fastlstm_run, 0);
    f.stack_pointer = context;
}
#endif


// --- Waiting.

void release_all(const std::vector<Fiber*>& waiting, Wait wait) {
    for (Fiber* f : waiting)
        if (f->wait == wait) f->wait = Wait::NONE;
    progress = true;
}

// True for the last to arrive, when `expected` have.
bool arrive(Barrier& b, const char* operation, Where where, unsigned expected, unsigned done, const char* group, bool vote) {
    if (done)
        fail(DIVERGENCE, nullptr, 0, "%s waits at %s (%s:%d), which %u threads of its %s will not reach: they have returned",
             describe(current).c_str(), operation, where.file, where.line, done, group);
    if (b.arrived && (b.operation != operation || b.where.line != where.line || std::strcmp(b.where.file, where.file)))
        fail(DIVERGENCE, nullptr, 0, "%s waits at %s (%s:%d) while %u threads of its %s wait at %s (%s:%d)",
             describe(current).c_str(), operation, where.file, where.line, b.arrived, group, b.operation, b.where.file, b.where.line);
    b.operation = operation;
    b.where = where;
    b.agreed += vote;
    if (++b.arrived < expected) return false;
    b.result = b.agreed;
    b.arrived = b.agreed = 0;
    b.time = ++now;
    return true;
}

void check_left(const Barrier& b, const char* group) {
    if (b.arrived)
        fail(DIVERGENCE, nullptr, 0, "%s returns while %u threads of its %s wait at %s (%s:%d)", describe(current).c_str(), b.arrived,
             group, b.operation, b.where.file, b.where.line);
}

// What single threads learned, all threads of the block know after a barrier.
void pool(Block* b) {
    for (Fiber* f : b->fibers)
        if (f->clock) {
            if (!b->clock) b->clock = std::make_unique<Clock>();
            b->clock->join(*f->clock);
            f->clock.reset();
        }
}

void pool(const std::vector<Block*>& group) {
    Clock all;
    bool any = false;
    for (Block* b : group) {
        pool(b);
        if (b->clock) all.join(*b->clock), any = true;
    }
    if (any)
        for (Block* b : group) b->clock = std::make_unique<Clock>(all);
}

unsigned threads_of(const std::vector<Block*>& group) { return group.size() * group[0]->fibers.size(); }

unsigned done_of(const std::vector<Block*>& group) {
    unsigned done = 0;
    for (Block* b : group) done += b->done;
    return done;
}

Fiber** warp_of(const Fiber* f, unsigned& lanes) {
    auto& all = f->block->fibers;
    size_t first = f - all[0] - f->lane;
    lanes = all.size() - first < WARP ? all.size() - first : WARP;
    return &all[first];
}

// If every lane of the mask that has not returned waits for the same, does it.
bool complete_warp(Fiber* f) {
    unsigned lanes;
    Fiber** warp = warp_of(f, lanes);
    void* operands[WARP] = {};
    for (unsigned l = 0; l < lanes; ++l) {
        if (!(f->mask >> l & 1) || warp[l]->wait == Wait::DONE) continue;
        if (warp[l]->wait != Wait::WARP) return false;
        if (warp[l]->mask != f->mask && !(warp[l]->mask >> f->lane & 1)) return false;  // it has others to meet first
        if (warp[l]->mask != f->mask || warp[l]->operation != f->operation)
            fail(DIVERGENCE, nullptr, 0, "%s is at %s (%s:%d) with mask %08x while lane %u is at %s (%s:%d) with mask %08x",
                 describe(f).c_str(), f->operation, f->where.file, f->where.line, f->mask, l, warp[l]->operation,
                 warp[l]->where.file, warp[l]->where.line, warp[l]->mask);
        operands[l] = warp[l]->operand;
    }
    f->complete(operands);
    for (unsigned l = 0; l < lanes; ++l)
        if (operands[l]) warp[l]->wait = Wait::NONE;
    progress = true;
    return true;
}

void finish(Fiber* f) {
    check_finished(f);
    f->wait = Wait::DONE;
    ++f->block->done, --remaining;
    check_left(f->block->barrier, "block");
    check_left(f->block->cluster->barrier, "cluster");
    check_left(grid_barrier_, "grid");
    unsigned lanes;
    Fiber** warp = warp_of(f, lanes);
    for (unsigned l = 0; l < lanes; ++l)
        if (warp[l]->wait == Wait::WARP) complete_warp(warp[l]);  // they need not wait for this lane any longer
}

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
    fastlstm_switch(&scheduler, f->stack_pointer);
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

uintptr_t take_stack(size_t n) {
    constexpr size_t CHUNK = 64;
    if (n >= stacks.size()) {
        void* memory = mmap(nullptr, CHUNK * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return 0;
        madvise(memory, CHUNK * STACK, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < CHUNK; ++i) stacks.push_back(reinterpret_cast<uintptr_t>(memory) + i * STACK);
    }
    return stacks[n];
}

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
    grid_barrier_ = {};
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
                f.stack = take_stack(next);
                if (!f.stack) return false;
                f.block = &b, f.id = b.id * threads + t, f.lane = t % WARP;
                f.thread = unravel(t, request->block);
                f.warp_time = grid_time;
                prepare(f);
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
    request->pcs[0] = reinterpret_cast<uint64_t>(pc), request->pcs[1] = other_pc;
    failed = true;
    fastlstm_switch(&current->stack_pointer, scheduler);
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
    fastlstm_switch(&me->stack_pointer, scheduler);
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

int block_barrier(Vote vote, bool value, Where where) {
    static const char* const names[] = {"__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};
    Block* b = current->block;
    unsigned threads = b->fibers.size();
    if (arrive(b->barrier, names[int(vote)], where, threads, b->done, "block", value)) {
        pool(b);
        release_all(b->fibers, Wait::BLOCK);
    } else {
        yield(Wait::BLOCK, where);
    }
    unsigned agreed = b->barrier.result;
    return vote == Vote::COUNT ? agreed : vote == Vote::AND ? agreed == threads : agreed != 0;
}

void cluster_barrier(Where where) {
    Cluster* c = current->block->cluster;
    if (!arrive(c->barrier, "cluster_sync", where, threads_of(c->blocks), done_of(c->blocks), "cluster", false))
        return yield(Wait::CLUSTER, where);
    pool(c->blocks);
    for (Block* b : c->blocks) release_all(b->fibers, Wait::CLUSTER);
}

void grid_barrier(Where where) {
    if (!request->cooperative) fail(MISUSE, nullptr, 0, "grid_sync() in a launch that is not cooperative");
    if (!arrive(grid_barrier_, "grid_sync", where, threads_of(residents), done_of(residents), "grid", false))
        return yield(Wait::GRID, where);
    grid_time = now;
    pool(residents);
    for (Block* b : residents) release_all(b->fibers, Wait::GRID);
}

void rendezvous(const char* operation, unsigned mask, void* operand, Where where, void (*complete)(void**)) {
    Fiber* f = current;
    if (!(mask >> f->lane & 1))
        fail(DIVERGENCE, nullptr, 0, "%s calls %s (%s:%d) with mask %08x, in which its lane is not", describe(f).c_str(), operation,
             where.file, where.line, mask);
    f->operation = operation, f->mask = mask, f->operand = operand, f->where = where;
    f->complete = complete;
    f->wait = Wait::WARP;
    if (!complete_warp(f)) yield(Wait::WARP, where);
}

unsigned active_lanes() {
    unsigned lanes, active = 0;
    Fiber** warp = warp_of(current, lanes);
    for (unsigned l = 0; l < lanes; ++l) active |= unsigned(warp[l]->wait != Wait::DONE) << l;
    return active;
}

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
        in_order(all / size / together, [&](unsigned k) { return (memory = set_up(k * together, together)) && run_residents(); });
    if (!memory) {
        request->kind = MISUSE;
        std::snprintf(request->message, sizeof request->message, "no memory for the threads of this launch");
    }
    return request->kind;
}
