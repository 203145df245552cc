// What the kernels use of CUDA, on the host: each thread of a block is a stack of its own, and runs until it waits for others.

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>

namespace {

constexpr unsigned THREADS = 256, WARP = 32;
constexpr size_t STACK = 64 * 1024;

struct Index {
    unsigned x;
};

/// What a thread waits for.
enum Wait { NOTHING, FOR_WARP, FOR_BLOCK, ENDED };

struct Thread {
    ucontext_t start;
    jmp_buf at;
    bool has_started;
    Wait wait;
    /// Shuffles that it took part in.
    unsigned shuffles;
};

Thread threads[THREADS];
jmp_buf scheduler;
ucontext_t never;
unsigned current;
/// Values that lanes hand to each other, and in which of their shuffles. Two sets: one is read while the next is written.
uint32_t slots[2][THREADS];
unsigned written[2][THREADS];
/// The kernel with its arguments, as a thread calls it.
void (*work)(void *);
void *work_arg;

Index blockIdx, blockDim, threadIdx;

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "emulated kernel: %s\n", what);
    std::abort();
}

void wait_for(Wait what) {
    unsigned self = current;
    threads[self].wait = what;
    if (!_setjmp(threads[self].at))
        _longjmp(scheduler, 1);
    threadIdx.x = self;
}

void life() {
    for (;;) {
        work(work_arg);
        wait_for(ENDED);
    }
}

void resume(unsigned thread) {
    current = thread;
    threadIdx.x = thread;
    if (_setjmp(scheduler))
        return;
    Thread &that = threads[thread];
    if (that.has_started)
        _longjmp(that.at, 1);
    that.has_started = true;
    getcontext(&that.start);
    void *stack = std::malloc(STACK);
    if (!stack)
        fail("no memory for a stack");
    that.start.uc_stack.ss_sp = stack;
    that.start.uc_stack.ss_size = STACK;
    that.start.uc_link = &never;
    makecontext(&that.start, life, 0);
    setcontext(&that.start);
}

/// Threads that wait for `what`, of those from `first` on; none unless all that have not ended do.
bool release(unsigned first, unsigned count, Wait what) {
    bool any = false;
    for (unsigned i = first; i < first + count; i++) {
        if (threads[i].wait == ENDED)
            continue;
        if (threads[i].wait != what)
            return false;
        any = true;
    }
    for (unsigned i = first; any && i < first + count; i++)
        if (threads[i].wait == what)
            threads[i].wait = NOTHING;
    return any;
}

void run_block() {
    for (Thread &thread : threads)
        thread.wait = NOTHING, thread.shuffles = 0;
    std::memset(written, 0, sizeof written);
    for (;;) {
        bool any = false;
        for (unsigned first = 0; first < THREADS; first += WARP) {
            // A warp runs for as long as it waits for none but its own lanes.
            do {
                for (unsigned i = first; i < first + WARP; i++)
                    if (threads[i].wait == NOTHING)
                        resume(i), any = true;
            } while (release(first, WARP, FOR_WARP));
        }
        if (release(0, THREADS, FOR_BLOCK))
            continue;
        bool ended = true;
        for (const Thread &thread : threads)
            ended = ended && thread.wait == ENDED;
        if (ended)
            return;
        if (!any)
            fail("threads wait at different barriers");
    }
}

void __syncthreads() { wait_for(FOR_BLOCK); }

template <class T> T __shfl_xor_sync(unsigned mask, T value, int far) {
    static_assert(sizeof(T) == 4);
    if (mask != 0xffffffffu)
        fail("a shuffle of a part of a warp");
    unsigned self = current, other = self ^ (unsigned)far, number = ++threads[self].shuffles, turn = number % 2;
    std::memcpy(&slots[turn][self], &value, 4);
    written[turn][self] = number;
    wait_for(FOR_WARP);
    if (written[turn][other] != number)
        fail("a shuffle with a lane that takes no part");
    std::memcpy(&value, &slots[turn][other], 4);
    return value;
}

float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#define __device__
#define __global__
// Blocks run one after the other.
#define __shared__ static

#include "numbers.cu"
#include "clip.cu"
#include "packed.cu"

/// A kernel with its arguments where a launch has them.
template <class... A> struct Call {
    void (*kernel)(A...);
    void **args;

    template <size_t... I> void run(std::index_sequence<I...>) const { kernel(*static_cast<A *>(args[I])...); }
    static void of(void *self) { static_cast<Call *>(self)->run(std::index_sequence_for<A...>{}); }
};

template <class... A> void launch(void (*kernel)(A...), unsigned blocks, void **args) {
    Call<A...> call{kernel, args};
    work = Call<A...>::of;
    work_arg = &call;
    blockDim.x = THREADS;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        run_block();
}

} // namespace

/// Runs a kernel by its name; false if there is none. One at a time.
extern "C" bool oq_emulated_launch(const char *name, unsigned blocks, void **args) {
#define KERNEL(NAME)                                                                                                   \
    if (!std::strcmp(name, #NAME)) {                                                                                   \
        launch(NAME, blocks, args);                                                                                    \
        return true;                                                                                                   \
    }
#define WIDTH(BITS) KERNEL(multiply_w##BITS##_1) KERNEL(multiply_w##BITS##_2) KERNEL(multiply_w##BITS##_4) KERNEL(multiply_w##BITS##_8)
    KERNEL(clip_f32)
    KERNEL(clip_bf16)
    KERNEL(gradients_f32)
    KERNEL(gradients_bf16)
    KERNEL(move_offsets_f32)
    KERNEL(move_offsets_bf16)
    KERNEL(decode_f32)
    KERNEL(decode_bf16)
    WIDTH(2)
    WIDTH(3)
    WIDTH(4)
    return false;
}
