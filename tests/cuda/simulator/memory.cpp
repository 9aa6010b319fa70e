// What memory a kernel may access: its arguments' arrays, and the shared memories of its cluster's blocks.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

namespace simulator {

uintptr_t module_base;

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
uintptr_t module_end;

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
            return touch({begin, begin + (z.end - z.begin), z.element, z.granule, shared_cells + slot * SLOT_CELLS + z.cells,
                          z.name, std::max(grid_time, residents[slot]->start)},
                         a, size, how, pc);
        }
    }
    if (a >= module_base && a < module_end) return;  // __device__ and __constant__ variables: only that they exist is checked
    outside(a, size, how, pc);
}

bool start_memory(uint32_t resident_blocks) {
    ++launch;
    accesses = 0;
    last_array = nullptr;
    zones.clear();
    zones_end = RED_ZONE, cells_end = 0, dynamic_zone = 0;
    Dl_info module;
    dladdr(reinterpret_cast<void*>(request->kernel->invoke), &module);
    module_base = module_end = reinterpret_cast<uintptr_t>(module.dli_fbase);
    dl_iterate_phdr(find_module, nullptr);
    start_order();

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
        if (!grow(shared_base, bytes, resident_blocks * SLOT) || !grow(shared_cells, cells, resident_blocks * SLOT_CELLS))
            return false;
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
    if (!dynamic_zone)
        dynamic_zone = place("the dynamic shared memory", request->shared_bytes, 128, element, element % 4 ? 2 : 4);
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

}  // namespace simulator

