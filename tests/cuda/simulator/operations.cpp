// What the lanes of a warp do together, and what the device does by itself: shuffles, votes, tensor-core products, copies,
// mbarriers.
#include <cmath>
#include <cstring>

#include "runtime.hpp"

namespace simulator {
namespace {

struct Exchange {
    uint64_t value;
    int source;
    uint64_t result;
};
struct Ballot {
    bool value;
    unsigned result;
};
struct Reduce {
    Reduction operation;
    uint32_t value;
    bool is_signed;
    uint32_t result;
};
struct Fragments {
    Product kind;
    float* d;
    const uint32_t *a, *b;
    const float* c;
};
struct Rows {
    const void* row;
    bool transposed;
    unsigned* result;
};

template <class T> T& at(void* operand) { return *static_cast<T*>(operand); }

void all_lanes(void** operands, const char* operation) {
    for (unsigned l = 0; l < WARP; ++l)
        if (!operands[l]) fail(DIVERGENCE, nullptr, 0, "%s: %s takes all 32 lanes of a warp, and lane %u is not there",
                               describe(current).c_str(), operation, l);
}

uint32_t reduced(Reduction operation, uint32_t a, uint32_t b, bool is_signed) {
    bool less = is_signed ? int32_t(a) < int32_t(b) : a < b;
    switch (operation) {
        case Reduction::ADD: return a + b;
        case Reduction::MIN: return less ? a : b;
        case Reduction::MAX: return less ? b : a;
        case Reduction::AND: return a & b;
        case Reduction::OR: return a | b;
        default: return a ^ b;
    }
}

// Element k of a row of A (of the upper or the lower half) or of a column of B, of the lane that holds it: PTX ISA, "Matrix
// fragments".
double element(const Fragments& f, bool of_a, unsigned half_rows, unsigned k) {
    if (f.kind == Product::TF32) {  // k in 0..7: registers 4 apart
        uint32_t pattern = of_a ? f.a[half_rows + 2 * (k / 4)] : f.b[k / 4];
        return bits<float>(pattern & 0xffffe000u);
    }
    uint32_t both = of_a ? f.a[half_rows + 2 * (k / 8)] : f.b[k / 8];
    uint16_t pattern = k % 2 ? both >> 16 : both & 0xffff;
    return f.kind == Product::BF16 ? of_bfloat16(pattern) : of_half(pattern);
}

void multiply(void** operands) {
    all_lanes(operands, "mma");
    auto lane = [&](unsigned l) -> Fragments& { return at<Fragments>(operands[l]); };
    Product kind = lane(0).kind;
    unsigned depth = kind == Product::TF32 ? 8 : 16;
    float result[16][8];
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < 8; ++column) {
            double sum = 0;
            for (unsigned k = 0; k < depth; ++k) {
                unsigned holder = kind == Product::TF32 ? k % 4 : k % 8 / 2;
                double a = element(lane(row % 8 * 4 + holder), true, row / 8, k);
                sum += a * element(lane(column * 4 + holder), false, 0, k);
            }
            unsigned l = row % 8 * 4 + column / 2, i = row / 8 * 2 + column % 2;
            sum += lane(l).c[i];
            float nearest = float(sum);  // tensor cores cut their sums off
            result[row][column] = std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
        }
    for (unsigned l = 0; l < WARP; ++l)
        for (unsigned i = 0; i < 4; ++i) lane(l).d[i] = result[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

void load_rows(void** operands) {
    all_lanes(operands, "ldmatrix");
    uint16_t rows[WARP][8];
    for (unsigned l = 0; l < WARP; ++l) std::memcpy(rows[l], at<Rows>(operands[l]).row, 16);
    for (unsigned l = 0; l < WARP; ++l)
        for (unsigned matrix = 0; matrix < 4; ++matrix) {
            const uint16_t(*m)[8] = &rows[matrix * 8];
            unsigned i = l / 4, j = l % 4 * 2;
            unsigned low = at<Rows>(operands[l]).transposed ? m[j][i] : m[i][j];
            unsigned high = at<Rows>(operands[l]).transposed ? m[j + 1][i] : m[i][j + 1];
            at<Rows>(operands[l]).result[matrix] = high << 16 | low;
        }
}

void order_lanes(void** operands) {
    auto& all = current->block->fibers;
    size_t first = current - all[0] - current->lane;
    bool everyone = true, learned = false;
    Clock together;
    for (size_t l = 0; l < WARP && first + l < all.size(); ++l) {
        Fiber* f = all[first + l];
        everyone &= operands[l] || f->wait == Wait::DONE;
        if (operands[l] && f->clock) together.join(*f->clock), learned = true;
        if (operands[l]) together.join_threads({{f->id, now + 1}});
    }
    release();
    for (unsigned l = 0; l < WARP; ++l)
        if (Fiber* f = static_cast<Fiber*>(operands[l])) {
            if (everyone) f->warp_time = now;
            if (!everyone || learned) learn(f, together);
        }
}

Mbarrier& find_mbarrier(unsigned long long* barrier, const char* operation, Block*& block, void* pc, unsigned rank,
                        bool remote) {
    uint32_t offset;
    block = owner_of(barrier, offset);
    if (block != current->block)
        fail(MEMORY, pc, 0, "%s: %s on an address that is not in its block's shared memory", describe(current).c_str(),
             operation);
    if (remote) {
        block = owner_of(map_shared(barrier, rank), offset);
        if (!block)
            fail(MEMORY, pc, 0, "%s: %s on block %u of the cluster, which has finished", describe(current).c_str(), operation,
                 rank);
    }
    auto found = block->mbarriers.find(offset);
    if (found == block->mbarriers.end())
        fail(MISUSE, pc, 0, "%s: %s on an mbarrier that was not initialised", describe(current).c_str(), operation);
    return found->second;
}

void advance(Mbarrier& m) {
    if (m.pending || m.bytes) return;
    m.phase ^= 1;
    m.pending = m.count;
    m.clock = std::move(m.arriving);
    m.arriving = {};
    progress = true;
}

}  // namespace

void warp_barrier(unsigned mask, Where where) { rendezvous("__syncwarp", mask, current, where, order_lanes); }

uint64_t shuffle(unsigned mask, uint64_t value, int source, Where where) {
    Exchange mine = {value, source, ~0ull};  // what a lane that is not there would give is undefined
    rendezvous("__shfl_sync", mask, &mine, where, [](void** operands) {
        for (unsigned l = 0; l < WARP; ++l)
            if (operands[l])
                if (auto& e = at<Exchange>(operands[l]); operands[e.source]) e.result = at<Exchange>(operands[e.source]).value;
    });
    return mine.result;
}

unsigned ballot(unsigned mask, bool value, Where where) {
    Ballot mine = {value, 0};
    rendezvous("__ballot_sync", mask, &mine, where, [](void** operands) {
        unsigned votes = 0;
        for (unsigned l = 0; l < WARP; ++l)
            if (operands[l] && at<Ballot>(operands[l]).value) votes |= 1u << l;
        for (unsigned l = 0; l < WARP; ++l)
            if (operands[l]) at<Ballot>(operands[l]).result = votes;
    });
    return mine.result;
}

uint32_t reduce(unsigned mask, Reduction operation, uint32_t value, bool is_signed, Where where) {
    Reduce mine = {operation, value, is_signed, 0};
    rendezvous("__reduce_sync", mask, &mine, where, [](void** operands) {
        Reduce* sum = nullptr;
        for (unsigned l = 0; l < WARP; ++l)
            if (operands[l]) {
                auto& r = at<Reduce>(operands[l]);
                r.result = sum ? reduced(r.operation, sum->result, r.value, r.is_signed) : r.value;
                sum = &r;
            }
        for (unsigned l = 0; l < WARP; ++l)
            if (operands[l]) at<Reduce>(operands[l]).result = sum->result;
    });
    return mine.result;
}

void mma(Product kind, float* d, const uint32_t* a, const uint32_t* b, const float* c, Where where) {
    static const char* const names[] = {"mma (bf16)", "mma (f16)", "mma (tf32)"};
    Fragments mine = {kind, d, a, b, c};
    rendezvous(names[int(kind)], ~0u, &mine, where, multiply);
}

void load_matrix(unsigned* result, const void* row, bool transposed, Where where) {
    uint32_t offset;
    if (owner_of(row, offset) != current->block)
        fail(MEMORY, CALLER, 0, "%s: ldmatrix from outside of its block's shared memory", describe(current).c_str());
    access(row, 16, READ, CALLER);
    Rows mine = {row, transposed, result};
    rendezvous(transposed ? "ldmatrix.trans" : "ldmatrix", ~0u, &mine, where, load_rows);
}

// --- cp.async

void copy_async(void* shared, const void* global, unsigned bytes) {
    uint32_t offset;
    if (owner_of(shared, offset) != current->block)
        fail(MEMORY, CALLER, 0, "%s: cp.async to outside of its block's shared memory", describe(current).c_str());
    access(global, bytes, READ, CALLER);
    current->copies.push_back({shared, global, bytes, CALLER});
}

void copy_commit() {
    unsigned before = 0;
    for (unsigned n : current->groups) before += n;
    current->groups.push_back(current->copies.size() - before);
}

void copy_wait(unsigned left) {
    auto &groups = current->groups;
    auto& copies = current->copies;
    size_t done = 0, first = 0;
    while (groups.size() - first > left) done += groups[first++];
    for (size_t i = 0; i < done; ++i) {
        access(copies[i].shared, copies[i].bytes, WRITE, copies[i].pc);
        std::memcpy(copies[i].shared, copies[i].global, copies[i].bytes);
    }
    copies.erase(copies.begin(), copies.begin() + done);
    groups.erase(groups.begin(), groups.begin() + first);
}

void check_finished(Fiber* f) {
    if (!f->copies.empty())
        fail(MISUSE, f->copies[0].pc, 0, "%s returns without waiting for its cp.async", describe(f).c_str());
    if (f->block->done + 1 == f->block->fibers.size())
        for (auto& [offset, m] : f->block->mbarriers)
            if (!m.stores.empty())
                fail(MISUSE, nullptr, 0, "%s, the last of its block, returns while st.async still writes to the block",
                     describe(f).c_str());
}

// --- mbarriers

void mbarrier_create(unsigned long long* barrier, unsigned count) {
    uint32_t offset;
    Block* block = owner_of(barrier, offset);
    if (block != current->block)
        fail(MEMORY, CALLER, 0, "%s: mbarrier.init outside of its block's shared memory", describe(current).c_str());
    access(barrier, 8, WRITE, CALLER);
    Mbarrier fresh = {};
    fresh.count = fresh.pending = count;
    if (!block->mbarriers.emplace(offset, std::move(fresh)).second)
        fail(MISUSE, CALLER, 0, "%s: mbarrier.init of one that is in use", describe(current).c_str());
}

void mbarrier_drop(unsigned long long* barrier) {
    Block* block;
    find_mbarrier(barrier, "mbarrier.inval", block, CALLER, 0, false);
    access(barrier, 8, WRITE, CALLER);
    uint32_t offset;
    owner_of(barrier, offset);
    block->mbarriers.erase(offset);
}

void mbarrier_signal(unsigned long long* barrier, unsigned rank, bool remote, bool arrives, unsigned expected_bytes) {
    Block* block;
    Mbarrier& m = find_mbarrier(barrier, "mbarrier.arrive", block, CALLER, rank, remote);
    access(remote ? map_shared(barrier, rank) : barrier, 8, READ | ATOMIC, CALLER);
    m.bytes += expected_bytes;
    if (!arrives) return;
    m.arriving.join(knowledge(current));
    release();
    --m.pending;
    advance(m);
}

bool mbarrier_test(unsigned long long* barrier, unsigned parity) {
    Block* block;
    Mbarrier* m = &find_mbarrier(barrier, "mbarrier.try_wait", block, CALLER, 0, false);
    access(barrier, 8, READ | ATOMIC, CALLER);
    for (auto& s : m->stores) {
        std::memcpy(s.to, s.value, s.bytes);
        m->bytes -= s.bytes;
        progress = true;
    }
    m->stores.clear();
    advance(*m);
    if (m->phase != (parity & 1)) return learn(current, m->clock), true;
    poll(barrier);
    return false;
}

void mbarrier_block(unsigned long long* barrier, unsigned parity, Where where) {
    while (!mbarrier_test(barrier, parity)) current->where = where;
}

void store_async(void* mine, const void* value, unsigned bytes, unsigned long long* barrier, unsigned rank) {
    Block* block;
    Mbarrier& m = find_mbarrier(barrier, "st.async", block, CALLER, rank, true);
    access(map_shared(barrier, rank), 8, READ | ATOMIC, CALLER);
    char* to = static_cast<char*>(map_shared(mine, rank));
    access(to, bytes, WRITE | ASYNC, CALLER);
    Mbarrier::Store store = {to, {}, bytes};
    std::memcpy(store.value, value, bytes);
    m.stores.push_back(store);
    m.arriving.join_threads({{current->id | BY_ASYNC, now + 1}});
    release();
}

}  // namespace simulator
