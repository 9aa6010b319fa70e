// Judges every access of a kernel: is it inside an array or a shared variable, and does something order it after the accesses
// of other threads that it conflicts with?
//
// g++ instruments kernels for its thread and undefined-behaviour sanitizers; their runtimes are not linked, the functions
// that they would have are the last part of this file.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

namespace simulator {
namespace {

constexpr size_t SLOT = 512 << 10, SLOT_CELLS = 256 << 10;
constexpr uint32_t RED_ZONE = 256;

struct Zone {  // a shared variable
    uint32_t begin, end, element, granule, cells;
    const char* name;
};

char* shared_base;
Cell* shared_cells;
uint32_t slots;
std::vector<Zone> zones;
uint32_t zones_end, cells_end, dynamic_zone;
uint64_t launch;

Cell* array_cells;
size_t array_cell_count;
Array* last_array;
uint64_t accesses;
uint32_t threads_per_block, blocks_per_cluster, block_count;
uintptr_t module_base, module_begin, module_end;
std::unordered_map<const void*, Clock> published;  // by atomics

template <class T> bool grow(T*& memory, size_t& count, size_t needed) {
    if (needed <= count) return true;
    if (memory) munmap(memory, count * sizeof(T));
    memory = nullptr, count = 0;
    void* fresh = mmap(nullptr, needed * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED) return false;
    memory = static_cast<T*>(fresh), count = needed;
    return true;
}

uint32_t place(const char* name, uint32_t size, uint32_t alignment, uint32_t element, uint32_t granule) {
    if (alignment < 16) alignment = 16;
    uint32_t begin = (zones_end + alignment - 1) & -alignment;
    zones.push_back({begin, begin + size, element, granule, cells_end, name});
    zones_end = begin + size + RED_ZONE;
    cells_end += (size + granule - 1) / granule;
    if (zones_end > SLOT || cells_end > SLOT_CELLS)
        fail(MISUSE, nullptr, 0, "shared memory of %u bytes: more than any device has", zones_end);
    for (Block* b : residents) std::memset(shared_base + b->slot * SLOT + begin, 0xff, size + RED_ZONE);
    return begin;
}

// --- What is ordered. Identities and times as in Cell; a reader's upper bits tell which group it stands for.

constexpr uint32_t BY_ATOMIC = 1u << 28, ID = BY_ATOMIC - 1;
enum Group : uint32_t { THREAD, OF_WARP, OF_BLOCK, OF_CLUSTER, OF_GRID };

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
    uint32_t block = id / threads_per_block;
    if (!(id & BY_ASYNC)) {
        if (block_known(block, time, f)) return true;
        bool same_warp = block == f->block->id && id % threads_per_block / WARP == f->id % threads_per_block / WARP;
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
            block = id / threads_per_block;
            if (block == mine && id % threads_per_block / WARP == f->id % threads_per_block / WARP)
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
        case OF_WARP: return "the warp of " + describe_thread(id / warps_per_block() * threads_per_block + id % warps_per_block() * WARP);
        case OF_BLOCK: std::snprintf(text, sizeof text, "threads of block %u", id); break;
        case OF_CLUSTER: std::snprintf(text, sizeof text, "threads of cluster %u", id); break;
        default: return "threads of several blocks";
    }
    return text;
}

struct Place {  // the array or variable of an access
    uintptr_t begin, end;
    uint32_t element, granule;
    Cell* cells;
    const char* name;
    uint32_t since;  // cells that are older tell of another launch or block
};

void race(const Place& p, uintptr_t address, const char* does, const char* done, const std::string& by, uint32_t other_pc, void* pc) {
    fail(RACE, pc, other_pc, "%s %s %s[%zu], which %s has %s, and no barrier stands between the two",
         describe(current).c_str(), does, p.name, size_t(address - p.begin) / p.element, by.c_str(), done);
}

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
            else if (readers == (OF_BLOCK << 29 | mine) && c->read >= f->block->barrier.time)
                c->reader = readers | (atomic ? c->reader & BY_ATOMIC : 0);  // the common case, and I am one of them
            else if (readers_known(readers, c->read, f))
                c->reader = me;
            else
                c->reader = with_reader(readers, f) | (atomic ? c->reader & BY_ATOMIC : 0);
            c->read = now, c->read_pc = my_pc;
        }
    }
}

// --- Where an address is.

Array* find_array(uintptr_t a) {
    if (last_array && a - last_array->begin < last_array->end - last_array->begin) return last_array;
    uint32_t low = 0, high = request->array_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (request->arrays[middle].end <= a) low = middle + 1;
        else high = middle;
    }
    if (low == request->array_count || a < request->arrays[low].begin) return nullptr;
    return last_array = &request->arrays[low];
}

[[noreturn]] void outside(uintptr_t a, unsigned size, unsigned how, void* pc) {
    const char* does = how & WRITE ? "writes" : "reads";
    if (a < 4096) fail(MEMORY, pc, 0, "%s %s through a null pointer (offset %zu)", describe(current).c_str(), does, size_t(a));
    uintptr_t best = 4096;
    char near[256] = "far from every array";
    auto consider = [&](uintptr_t begin, uintptr_t end, uint32_t element, const char* name) {
        bool after = a + size > begin;
        uintptr_t distance = after ? a + size - end : begin - a;
        if (distance >= best) return;
        best = distance;
        long index = after ? long((a - begin) / element) : -long((begin - a + element - 1) / element);
        std::snprintf(near, sizeof near, "%s[%ld], outside of its %zu elements", name, index, size_t(end - begin) / element);
    };
    for (uint32_t i = 0; i < request->array_count; ++i) {
        const Array& r = request->arrays[i];
        consider(r.begin, r.end, r.element, r.name);
    }
    uintptr_t base = reinterpret_cast<uintptr_t>(shared_base);
    if (a - base < slots * SLOT) {
        uintptr_t slot = base + (a - base) / SLOT * SLOT;
        for (const Zone& z : zones) consider(slot + z.begin, slot + z.end, z.element, z.name);
    }
    if (best == 4096)
        for (Block* b : residents)
            for (Fiber* f : b->fibers)
                if (a - f->stack < STACK) std::snprintf(near, sizeof near, "a local variable of %s", describe(f).c_str());
    fail(MEMORY, pc, 0, "%s %s %u bytes %s", describe(current).c_str(), does, size, near);
}

int find_module(dl_phdr_info* info, size_t, void*) {
    if (info->dlpi_addr != module_base) return 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& h = info->dlpi_phdr[i];
        if (h.p_type == PT_LOAD) module_end = std::max<uintptr_t>(module_end, module_base + h.p_vaddr + h.p_memsz);
    }
    return 1;
}

}  // namespace

void access(const void* pointer, unsigned size, unsigned how, void* pc) {
    Fiber* f = current;
    uintptr_t a = reinterpret_cast<uintptr_t>(pointer);
    if (!f || a - f->stack < STACK) return;
    if (++accesses > request->max_accesses)
        fail(DEADLOCK, pc, 0, "%s still runs after %lu accesses of the launch", describe(f).c_str(), (unsigned long)accesses);
    if (!(how & ANY_ALIGNMENT) && a & (size - 1))
        fail(MEMORY, pc, 0, "%s accesses %u bytes at an address that is not a multiple of %u", describe(f).c_str(), size, size);
    if (how & WRITE) progress = true;
    if (const Array* r = find_array(a)) {
        if (a + size > r->end) outside(a, size, how, pc);
        if (how & WRITE && !r->writable)
            fail(MEMORY, pc, 0, "%s writes to %s[%zu], which was passed as a pointer to const", describe(f).c_str(), r->name,
                 size_t(a - r->begin) / r->element);
        return touch({r->begin, r->end, r->element, r->granule, r->cells, r->name, grid_time}, a, size, how, pc);
    }
    uintptr_t base = reinterpret_cast<uintptr_t>(shared_base);
    if (a - base < slots * SLOT) {
        uint32_t slot = (a - base) / SLOT, offset = (a - base) % SLOT;
        for (const Zone& z : zones) {
            if (offset - z.begin >= z.end - z.begin) continue;
            if (offset + size > z.end) outside(a, size, how, pc);
            if (slot >= residents.size() || residents[slot]->cluster != f->block->cluster)
                fail(MEMORY, pc, 0, "%s accesses the shared memory of a block outside of its cluster", describe(f).c_str());
            if (Block* b = residents[slot]; b->done == b->fibers.size())
                fail(MEMORY, pc, 0, "%s accesses %s of block (%u, %u, %u), which has finished", describe(f).c_str(), z.name,
                     b->index.x, b->index.y, b->index.z);
            uintptr_t begin = base + slot * SLOT + z.begin;
            return touch({begin, begin + (z.end - z.begin), z.element, z.granule, shared_cells + slot * SLOT_CELLS + z.cells, z.name,
                          std::max(grid_time, residents[slot]->start)},
                         a, size, how, pc);
        }
    }
    if (a >= module_begin && a < module_end) return;  // __device__ and __constant__ variables: only that they exist is checked
    outside(a, size, how, pc);
}

bool start_memory(uint32_t resident_blocks) {
    threads_per_block = request->block[0] * request->block[1] * request->block[2];
    blocks_per_cluster = request->cluster[0] * request->cluster[1] * request->cluster[2];
    block_count = request->grid[0] * request->grid[1] * request->grid[2];
    ++launch;
    accesses = 0;
    last_array = nullptr;
    published.clear();
    zones.clear();
    zones_end = RED_ZONE, cells_end = 0, dynamic_zone = 0;
    Dl_info module;
    dladdr(reinterpret_cast<void*>(request->kernel->invoke), &module);
    module_begin = module_base = module_end = reinterpret_cast<uintptr_t>(module.dli_fbase);
    dl_iterate_phdr(find_module, nullptr);

    size_t needed = 0;
    for (uint32_t i = 0; i < request->array_count; ++i) {
        const Array& r = request->arrays[i];
        needed += (r.end - r.begin + r.granule - 1) / r.granule;
    }
    // Cells are never cleared: what an earlier launch left in them is older than this one.
    if (!grow(array_cells, array_cell_count, needed)) return false;
    Cell* next = array_cells;
    for (uint32_t i = 0; i < request->array_count; ++i) {
        Array& r = request->arrays[i];
        r.cells = next;
        next += (r.end - r.begin + r.granule - 1) / r.granule;
    }
    if (resident_blocks > slots) {
        size_t bytes = slots * SLOT, cells = slots * SLOT_CELLS;
        slots = 0;
        if (!grow(shared_base, bytes, resident_blocks * SLOT) || !grow(shared_cells, cells, resident_blocks * SLOT_CELLS)) return false;
        slots = resident_blocks;
    }
    return true;
}

void start_block(Block* b) {
    b->start = ++now;
    std::memset(shared_base + b->slot * SLOT, 0xff, zones_end);
}

void* shared_variable(Variable* v, const char* name) {
    if (v->launch != launch) {
        v->offset = place(name, v->size, v->alignment, v->element, v->granule);
        v->launch = launch;
    }
    return shared_base + current->block->slot * SLOT + v->offset;
}

void* dynamic_shared(uint32_t element) {
    if (!dynamic_zone) dynamic_zone = place("the dynamic shared memory", request->shared_bytes, 128, element, element % 4 ? 2 : 4);
    return shared_base + current->block->slot * SLOT + dynamic_zone;
}

Block* owner_of(const void* shared, uint32_t& offset) {
    size_t distance = static_cast<const char*>(shared) - shared_base;
    if (distance >= slots * SLOT || distance / SLOT >= residents.size()) return nullptr;
    offset = distance % SLOT;
    Block* b = residents[distance / SLOT];
    return b->done == b->fibers.size() ? nullptr : b;
}

void* map_shared(const void* mine, unsigned rank) {
    uint32_t offset;
    if (owner_of(mine, offset) != current->block)
        fail(MEMORY, CALLER, 0, "%s maps an address that is not in its block's shared memory", describe(current).c_str());
    if (rank >= current->block->cluster->blocks.size())
        fail(MEMORY, CALLER, 0, "%s asks for block %u of a cluster of %zu", describe(current).c_str(), rank,
             current->block->cluster->blocks.size());
    return shared_base + current->block->cluster->blocks[rank]->slot * SLOT + offset;
}

void* copy_bytes(void* to, const void* from, size_t size) {
    if (size) access(from, size, READ | ANY_ALIGNMENT, CALLER), access(to, size, WRITE | ANY_ALIGNMENT, CALLER);
    return std::memcpy(to, from, size);
}

void* set_bytes(void* to, int value, size_t size) {
    if (size) access(to, size, WRITE | ANY_ALIGNMENT, CALLER);
    return std::memset(to, value, size);
}

// --- What atomics and fences order.

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

static void publish(void* address, Order order) {
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
    published.erase(address);
    publish(address, order);
}

void atomic_update(void* address, const void* value, unsigned size, bool changed, Order order) {
    access(address, size, (changed ? WRITE : READ) | ATOMIC, CALLER);
    std::memcpy(address, value, size);
    publish(address, order);
    if (!changed) poll(address);
}

}  // namespace simulator

// --- What the instrumentation calls.

using simulator::access;
using namespace simulator;

#define ACCESS(size)                                                                                             \
    void __tsan_read##size(void* p) { access(p, size, READ, CALLER); }                                           \
    void __tsan_write##size(void* p) { access(p, size, WRITE, CALLER); }                                         \
    void __tsan_unaligned_read##size(void* p) { access(p, size, READ | ANY_ALIGNMENT, CALLER); }                 \
    void __tsan_unaligned_write##size(void* p) { access(p, size, WRITE | ANY_ALIGNMENT, CALLER); }               \
    void __tsan_volatile_write##size(void* p) {                                                                  \
        access(p, size, WRITE | ATOMIC, CALLER);                                                                 \
        if (current) published.erase(p), publish(p, Order::RELAXED);                                             \
    }                                                                                                            \
    void __tsan_volatile_read##size(void* p) {                                                                   \
        access(p, size, READ | ATOMIC, CALLER);                                                                  \
        if (current) poll(p), note_read(p, Order::RELAXED);                                                      \
    }
#define UNDEFINED(kind, name, what)                                                                              \
    void __ubsan_handle_##name(void*) { fail(kind, CALLER, 0, "%s: " what, describe(current).c_str()); }
extern "C" {
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* p, size_t size) { access(p, size, READ | ANY_ALIGNMENT, CALLER); }
void __tsan_write_range(void* p, size_t size) { access(p, size, WRITE | ANY_ALIGNMENT, CALLER); }
void __tsan_init() {}
void __tsan_func_exit() {}
void __tsan_func_entry(void*) {
    if (current && reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) < current->stack + (4 << 10))
        fail(MEMORY, CALLER, 0, "%s: local variables take more than %zu bytes", describe(current).c_str(), STACK - (4 << 10));
}

struct Type {
    uint16_t kind, info;
    char name[1];
};
struct BoundsData {
    const char* file;
    uint32_t line, column;
    const Type *array, *index;
};
void __ubsan_handle_out_of_bounds(BoundsData* data, uintptr_t index) {
    fail(MEMORY, CALLER, 0, "%s: index %ld is outside of %s", describe(current).c_str(), long(index), data->array->name);
}
UNDEFINED(ARITHMETIC, shift_out_of_bounds, "shifts by a negative number of bits or by more than there are")
UNDEFINED(ARITHMETIC, divrem_overflow, "divides an integer by zero")
UNDEFINED(ARITHMETIC, add_overflow, "a signed sum overflows")
UNDEFINED(ARITHMETIC, sub_overflow, "a signed difference overflows")
UNDEFINED(ARITHMETIC, mul_overflow, "a signed product overflows")
UNDEFINED(ARITHMETIC, negate_overflow, "a signed negation overflows")
UNDEFINED(MEMORY, type_mismatch_v1, "an address is not aligned to its type")
}
