// Whether something orders an access after those of other threads that it conflicts with; and what atomics and fences order.
//
// Each element of an array or variable has a cell that tells who wrote it last and who has read it since, and when.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

namespace simulator {
namespace {

uint32_t threads_per_block, blocks_per_cluster, block_count;
int block_shift;  // of a thread's identity, where a block has a power of two of them; else -1
std::unordered_map<const void*, Clock> published;  // by atomics

// Identities and times are as in Cell; a reader's upper bits tell which group it stands for.

constexpr uint32_t BY_ATOMIC = 1u << 28, ID = BY_ATOMIC - 1;
enum Group : uint32_t { THREAD, OF_WARP, OF_BLOCK, OF_CLUSTER, OF_GRID };

uint32_t block_of(uint32_t id) { return block_shift >= 0 ? id >> block_shift : id / threads_per_block; }
uint32_t warps_per_block() { return (threads_per_block + WARP - 1) / WARP; }
uint32_t warp_id(const Fiber* f) { return f->block->id * warps_per_block() + (f->id % threads_per_block) / WARP; }

bool block_known(uint32_t block, uint32_t time, const Fiber* f) {
    if (time < grid_time) return true;
    const Block* mine = f->block;
    if (block == mine->id && time < mine->barrier.time) return true;
    if (block / blocks_per_cluster == mine->cluster->id && time < mine->cluster->barrier.time) return true;
    for (const Clock* c : {f->clock.get(), mine->clock.get()})
        if (c && block < c->blocks.size() && time < c->blocks[block]) return true;
    return false;
}

bool thread_known(uint32_t id, uint32_t time, const Fiber* f) {
    if (id == f->id || time < grid_time) return true;
    if (!(id & BY_ASYNC)) {
        if (block_known(block_of(id), time, f)) return true;
        bool same_warp = id - (f->id - f->lane) < WARP && block_of(id) == f->block->id;
        if (same_warp && time < f->warp_time) return true;
    }
    for (const Clock* c : {f->clock.get(), f->block->clock.get()})
        if (c && time < c->known(id)) return true;
    return false;
}

bool readers_known(uint32_t reader, uint32_t time, const Fiber* f) {
    if (time < grid_time) return true;
    uint32_t id = reader & ID;
    uint32_t begin = 0, end = 0;  // the threads that are meant
    switch (reader >> 29) {
        case THREAD: return thread_known(id, time, f);
        case OF_WARP:
            begin = id / warps_per_block() * threads_per_block + id % warps_per_block() * WARP;
            end = std::min(begin + WARP, (id / warps_per_block() + 1) * threads_per_block);
            break;
        case OF_BLOCK: begin = id * threads_per_block, end = begin + threads_per_block; break;
        case OF_CLUSTER:
            begin = id * blocks_per_cluster * threads_per_block, end = begin + blocks_per_cluster * threads_per_block;
            break;
        default: end = block_count * threads_per_block;
    }
    for (uint32_t t = begin; t < end;) {
        if (block_known(t / threads_per_block, time, f)) t = (t / threads_per_block + 1) * threads_per_block;
        else if (thread_known(t, time, f)) ++t;
        else return false;
    }
    return true;
}

uint32_t with_reader(uint32_t readers, const Fiber* f) {
    uint32_t id = readers & ID, mine = f->block->id, block = 0, cluster = 0;
    switch (readers >> 29) {
        case THREAD:
            block = block_of(id);
            if (block == mine && id - (f->id - f->lane) < WARP)
                return OF_WARP << 29 | warp_id(f);
            break;
        case OF_WARP:
            if (id == warp_id(f)) return readers;
            block = id / warps_per_block();
            break;
        case OF_BLOCK: block = id; break;
        case OF_CLUSTER: block = id * blocks_per_cluster; break;
        default: return OF_GRID << 29;
    }
    if ((readers >> 29) < OF_CLUSTER && block == mine) return OF_BLOCK << 29 | mine;
    cluster = block / blocks_per_cluster;
    return cluster == f->block->cluster->id ? OF_CLUSTER << 29 | cluster : OF_GRID << 29;
}

std::string describe_readers(uint32_t reader) {
    uint32_t id = reader & ID;
    char text[64];
    switch (reader >> 29) {
        case THREAD: return describe_thread(id);
        case OF_WARP:
            return "the warp of " + describe_thread(id / warps_per_block() * threads_per_block + id % warps_per_block() * WARP);
        case OF_BLOCK: std::snprintf(text, sizeof text, "threads of block %u", id); break;
        case OF_CLUSTER: std::snprintf(text, sizeof text, "threads of cluster %u", id); break;
        default: return "threads of several blocks";
    }
    return text;
}

void race(const Place& p, uintptr_t address, const char* does, const char* done, const std::string& by, uint32_t other_pc,
          void* pc) {
    fail(RACE, pc, other_pc, "%s %s %s[%zu], which %s has %s, and no barrier stands between the two",
         describe(current).c_str(), does, p.name, size_t(address - p.begin) / p.element, by.c_str(), done);
}

}  // namespace

void touch(const Place& p, uintptr_t a, unsigned size, unsigned how, void* pc) {
    Fiber* f = current;
    const bool atomic = how & ATOMIC;
    const uint32_t my_pc = uint32_t(reinterpret_cast<uintptr_t>(pc) - module_base), mine = f->block->id;
    const uint32_t me = f->id | (how & ASYNC ? BY_ASYNC : 0) | (atomic ? BY_ATOMIC : 0);
    Cell* last = p.cells + (a + size - 1 - p.begin) / p.granule;
    for (Cell* c = p.cells + (a - p.begin) / p.granule; c <= last; ++c) {
        const char* does = how & WRITE ? "writes" : "reads";
        if (c->written >= p.since && !(atomic && c->writer & BY_ATOMIC) && !thread_known(c->writer & ID, c->written, f))
            race(p, a, does, "written", describe_thread(c->writer & ID), c->write_pc, pc);
        if (how & WRITE) {
            if (c->read >= p.since && !(atomic && c->reader & BY_ATOMIC) && !readers_known(c->reader, c->read, f))
                race(p, a, does, "read", describe_readers(c->reader), c->read_pc, pc);
            c->writer = me, c->written = now, c->write_pc = my_pc, c->read = 0;
        } else {
            const uint32_t readers = c->reader & ~BY_ATOMIC;
            if (c->read < p.since || readers == f->id)
                c->reader = me;
            else if (readers == OF_GRID << 29 || (readers == (OF_BLOCK << 29 | mine) && c->read >= f->block->barrier.time))
                c->reader = readers | (atomic ? c->reader & BY_ATOMIC : 0);  // the common case, and I am one of them
            else if (readers_known(readers, c->read, f))
                c->reader = me;
            else
                c->reader = with_reader(readers, f) | (atomic ? c->reader & BY_ATOMIC : 0);
            c->read = now, c->read_pc = my_pc;
        }
    }
}

void start_order() {
    threads_per_block = request->block[0] * request->block[1] * request->block[2];
    blocks_per_cluster = request->cluster[0] * request->cluster[1] * request->cluster[2];
    block_count = request->grid[0] * request->grid[1] * request->grid[2];
    bool power = !(threads_per_block & (threads_per_block - 1));
    block_shift = power ? __builtin_ctz(threads_per_block) : -1;
    published.clear();
}

void Clock::join(const Clock& other) {
    if (blocks.size() < other.blocks.size()) blocks.resize(other.blocks.size());
    for (size_t i = 0; i < other.blocks.size(); ++i) blocks[i] = std::max(blocks[i], other.blocks[i]);
    join_threads(other.threads);
}

void Clock::join_threads(const Threads& other) {
    if (other.empty()) return;
    Threads both;
    both.reserve(threads.size() + other.size());
    auto add = [&](std::pair<uint32_t, uint32_t> entry) {  // unless it is known of the whole block
        size_t block = entry.first & BY_ASYNC ? SIZE_MAX : entry.first / threads_per_block;
        if (block >= blocks.size() || blocks[block] < entry.second) both.push_back(entry);
    };
    auto a = threads.begin();
    auto b = other.begin();
    while (a != threads.end() || b != other.end()) {
        if (b == other.end() || (a != threads.end() && a->first < b->first)) add(*a++);
        else if (a == threads.end() || b->first < a->first) add(*b++);
        else add({a->first, std::max(a->second, b->second)}), ++a, ++b;
    }
    threads = std::move(both);
}

uint32_t Clock::known(uint32_t id) const {
    auto found = std::lower_bound(threads.begin(), threads.end(), std::make_pair(id, 0u));
    return found != threads.end() && found->first == id ? found->second : 0;
}

Clock knowledge(const Fiber* f) {
    Clock all;
    all.blocks.assign(block_count, grid_time);
    for (const Block* b : f->block->cluster->blocks) all.blocks[b->id] = f->block->cluster->barrier.time;
    all.blocks[f->block->id] = std::max(all.blocks[f->block->id], f->block->barrier.time);
    uint32_t first = f->id - f->lane, end = std::min<uint32_t>(first + WARP, (f->block->id + 1) * threads_per_block);
    for (uint32_t id = first; id < end; ++id) {
        uint32_t time = id == f->id ? now + 1 : f->warp_time;
        if (time > all.blocks[f->block->id]) all.threads.push_back({id, time});
    }
    for (const Clock* c : {f->clock.get(), f->block->clock.get()})
        if (c) all.join(*c);
    return all;
}

void learn(Fiber* f, const Clock& clock) {
    if (!f->clock) f->clock = std::make_unique<Clock>();
    f->clock->join(clock);
}

void release() { ++now; }

void note_read(const void* address, Order order) {
    auto found = published.find(address);
    if (found == published.end()) return;
    if (order == Order::ACQUIRE) return learn(current, found->second);
    if (!current->read) current->read = std::make_unique<Clock>();
    current->read->join(found->second);
}

void fence() {
    Fiber* f = current;
    if (f->read) learn(f, *f->read), f->read.reset();
    f->fenced = std::make_unique<Clock>(knowledge(f));
    release();
}

void atomic_read(const void* address, void* value, unsigned size, Order order) {
    access(address, size, READ | ATOMIC, CALLER);
    if (order == Order::ACQUIRE) poll(address);
    std::memcpy(value, address, size);
    note_read(address, order);
}

void publish(void* address, Order order, bool anew) {
    if (anew) published.erase(address);
    if (order == Order::RELEASE) {
        published[address].join(knowledge(current));
        release();
    } else if (current->fenced) {
        published[address].join(*current->fenced);
    }
}

void atomic_write(void* address, const void* value, unsigned size, Order order) {
    access(address, size, WRITE | ATOMIC, CALLER);
    std::memcpy(address, value, size);
    publish(address, order, true);
}

void atomic_update(void* address, const void* value, unsigned size, bool changed, Order order) {
    access(address, size, (changed ? WRITE : READ) | ATOMIC, CALLER);
    std::memcpy(address, value, size);
    publish(address, order, false);
    if (!changed) poll(address);
}

}  // namespace simulator
