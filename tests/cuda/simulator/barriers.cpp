// Where threads wait for each other: barriers of block, cluster and grid, and what the lanes of a warp do together.
//
// Who will never come is known when a thread arrives or returns: those who have returned, and those who wait elsewhere.
#include <cstring>

#include "runtime.hpp"

namespace simulator {

unsigned remaining;
Barrier meeting_of_grid;

namespace {

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
             describe(current).c_str(), operation, where.file, where.line, b.arrived, group, b.operation, b.where.file,
             b.where.line);
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
        fail(DIVERGENCE, nullptr, 0, "%s returns while %u threads of its %s wait at %s (%s:%d)", describe(current).c_str(),
             b.arrived, group, b.operation, b.where.file, b.where.line);
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

}  // namespace

void finish(Fiber* f) {
    check_finished(f);
    f->wait = Wait::DONE;
    ++f->block->done, --remaining;
    check_left(f->block->barrier, "block");
    check_left(f->block->cluster->barrier, "cluster");
    check_left(meeting_of_grid, "grid");
    unsigned lanes;
    Fiber** warp = warp_of(f, lanes);
    for (unsigned l = 0; l < lanes; ++l)
        if (warp[l]->wait == Wait::WARP) complete_warp(warp[l]);  // they need not wait for this lane any longer
}

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
    if (!arrive(meeting_of_grid, "grid_sync", where, threads_of(residents), done_of(residents), "grid", false))
        return yield(Wait::GRID, where);
    grid_time = now;
    pool(residents);
    for (Block* b : residents) release_all(b->fibers, Wait::GRID);
}

void rendezvous(const char* operation, unsigned mask, void* operand, Where where, void (*complete)(void**)) {
    Fiber* f = current;
    if (!(mask >> f->lane & 1))
        fail(DIVERGENCE, nullptr, 0, "%s calls %s (%s:%d) with mask %08x, in which its lane is not", describe(f).c_str(),
             operation, where.file, where.line, mask);
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
