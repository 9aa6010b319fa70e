// Fibers: stacks, and the switch from one to another. What a call must preserve goes on the stack, then its pointer changes.
//
// A switch of our own takes nanoseconds; ucontext, for other processors, asks the system for the signal mask each time.
#include <sys/mman.h>

#include <cstring>

#include "runtime.hpp"
#if defined(FASTLSTM_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#include <ucontext.h>
#endif

namespace simulator {
namespace {

void* scheduler;
std::vector<uintptr_t> stacks;

extern "C" void fastlstm_switch(void** from, void* to);

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

}  // namespace

bool make_fiber(Fiber& f, size_t n) {
    f.stack = take_stack(n);
    if (f.stack) prepare(f);
    return f.stack;
}

void run_fiber(Fiber* f) { fastlstm_switch(&scheduler, f->stack_pointer); }
void leave_fiber(Fiber* f) { fastlstm_switch(&f->stack_pointer, scheduler); }

}  // namespace simulator
