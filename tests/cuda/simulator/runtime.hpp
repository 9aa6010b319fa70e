// What the parts of the simulator share: threads as fibers, blocks, clusters, the launch, and what is known of memory.
//
// One OS thread runs everything. Time is a counter that moves at every synchronisation; an access is labelled with it, and
// "v knows u up to t" means that all that u did before t happened before what v does now.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "host.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef assert
#undef memcpy
#undef memset

namespace simulator {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;
struct Block;

// What a thread knows of others beyond the barriers that they share: of whole blocks, and of single threads by identity.
struct Clock {
    using Threads = std::vector<std::pair<uint32_t, uint32_t>>;
    std::vector<uint32_t> blocks;
    Threads threads;  // sorted
    void join(const Clock&);
    void join_threads(const Threads&);
    uint32_t known(uint32_t id) const;
};
using Knowledge = std::unique_ptr<Clock>;

enum class Wait : uint8_t { NONE, POLL, WARP, BLOCK, CLUSTER, GRID, DONE };

struct Copy {
    void* shared;
    const void* global;
    unsigned bytes;
    void* pc;
};

struct Fiber {
    void* stack_pointer;
    uintptr_t stack;  // its lower end
    Block* block;
    uint32_t id, lane;  // id: in the launch
    uint3 thread;
    Wait wait;
    Where where;            // of what it waits for
    const char* operation;  // what the warp does together, with its lanes' mask and this lane's operand
    unsigned mask;
    void* operand;
    void (*complete)(void** operands);
    const void* polled;
    uint32_t warp_time;
    Knowledge clock, fenced, read;  // known; known at the last fence; found at atomics, known after the next fence
    std::vector<Copy> copies;
    std::vector<unsigned> groups;  // copies in each committed group
};

struct Barrier {
    unsigned arrived = 0, agreed = 0, result = 0;
    const char* operation = nullptr;
    Where where = {};
    uint32_t time = 0;
};

struct Cluster {
    uint32_t id;
    std::vector<Block*> blocks;
    Barrier barrier;
};

struct Block {
    uint3 index;
    uint32_t id;
    Cluster* cluster;
    unsigned rank, slot;  // slot: which piece of the shared memories is its
    std::vector<Fiber*> fibers;
    uint32_t start = 0;  // time
    unsigned done = 0;
    Barrier barrier;
    Knowledge clock;
    std::map<uint32_t, struct Mbarrier> mbarriers;  // by offset in the slot
};

// What the device writes by itself for a thread (st.async) is as if by another thread, of whom only mbarriers tell.
constexpr uint32_t BY_ASYNC = 1u << 27;

// Who last wrote and who read an element; `reader` is one thread or, by its upper bits, a group of them.
struct Cell {
    uint32_t writer, written, write_pc, reader, read, read_pc;
};

struct Mbarrier {
    unsigned count, pending, phase;
    int64_t bytes;
    Clock clock, arriving;  // known to who waited for the last phase; of this one so far
    struct Store {
        char* to;
        char value[16];
        unsigned bytes;
    };
    std::vector<Store> stores;
};

struct Place {  // the array or shared variable of an access
    uintptr_t begin, end;
    uint32_t element, granule;
    Cell* cells;
    const char* name;
    uint32_t since;  // cells that are older tell of another launch or block
};

// Filled in by simulator.py; the layouts are repeated there.
struct Array {
    uintptr_t begin, end;
    uint32_t element, granule, writable;
    const char* name;
    Cell* cells;
};
struct Request {
    const Kernel* kernel;
    void** arguments;
    uint32_t grid[3], block[3], cluster[3];
    uint32_t cooperative, order;
    uint64_t seed, shared_bytes, max_accesses;
    Array* arrays;  // by address, disjoint
    uint32_t array_count;
    uint32_t kind;  // of the error
    uint64_t pcs[2];  // offsets in the kernel's library: of the error, and of the access that it conflicts with
    char message[1024];
};
enum Kind : uint32_t { FINE, MEMORY, RACE, DIVERGENCE, DEADLOCK, ARITHMETIC, MISUSE };
enum Schedule : uint32_t { FORWARD, REVERSE, RANDOM };

extern Fiber* current;
extern Request* request;
extern uint32_t now, grid_time;
extern uintptr_t module_base;  // where the kernel's library is
extern std::vector<Block*> residents;
extern unsigned remaining;  // threads that have not returned
extern Barrier meeting_of_grid;
extern bool progress;  // something happened that a polling thread may have waited for

[[noreturn]] void fail(Kind, void* pc, uint32_t other_pc, const char* format, ...) __attribute__((format(printf, 4, 5)));
std::string describe(const Fiber*);
std::string describe_thread(uint32_t id);
bool make_fiber(Fiber&, size_t n);  // on the n-th stack
void run_fiber(Fiber*);             // until it
void leave_fiber(Fiber*);           // does this
void yield(Wait, Where);
void finish(Fiber*);
// Waits for the other lanes; the last to come runs `complete` for all: operands[lane], null for those that are not there.
void rendezvous(const char* operation, unsigned mask, void* operand, Where, void (*complete)(void** operands));

enum Access : unsigned { READ = 0, WRITE = 1, ATOMIC = 2, ANY_ALIGNMENT = 4, ASYNC = 8 };
void access(const void*, unsigned size, unsigned how, void* pc);
void touch(const Place&, uintptr_t address, unsigned size, unsigned how, void* pc);
void start_order();
void publish(void* address, Order, bool anew);  // by an atomic; a store starts anew, an update goes on
void note_read(const void* address, Order);     // of an atomic
void poll(const void* address, Where = {});
bool start_memory(uint32_t resident_blocks);
void start_block(Block*);
void check_finished(Fiber*);
Block* owner_of(const void* shared, uint32_t& offset);  // null: not in the shared memory of a running block
Clock knowledge(const Fiber*);
void learn(Fiber*, const Clock&);
void release();  // what comes now is later than what is released

#define CALLER __builtin_extract_return_addr(__builtin_return_address(0))

}  // namespace simulator
