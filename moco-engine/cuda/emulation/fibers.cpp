// Runs blocks of threads as fibers. See cuda.h.
#include "cuda.h"

#include <setjmp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <vector>

thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;

enum class State { Ready, AtBarrier, AtShuffle, Done };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool started = false;
  State state = State::Done;
  uint64_t slots[2] = {0, 0};
  unsigned shuffles = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<void*> poisoned;
  jmp_buf scheduler;
  ucontext_t back;
  Fiber* current = nullptr;
  unsigned own = 0;
  void (*run)(const void*) = nullptr;
  const void* arguments = nullptr;
};

struct Kernel {
  const char* symbol;
  void (*run)(const void*);
  size_t arguments;
};

// Filled before main by static constructors of the same translation unit's users.
std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

thread_local Block* block = nullptr;

void give_way(State state) {
  Fiber* fiber = block->current;
  fiber->state = state;
  if (_setjmp(fiber->at) == 0) _longjmp(block->scheduler, 1);
}

// Lives for the life of the OS thread: runs one thread of a block, gives way, runs the next.
void live() {
  for (;;) {
    block->run(block->arguments);
    give_way(State::Done);
  }
}

void resume(unsigned i) {
  Fiber& fiber = block->fibers[i];
  block->current = &fiber;
  block->own = i;
  threadIdx = {i, 0, 0};
  if (_setjmp(block->scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
}

void make(unsigned threads) {
  if (!block) block = new Block();
  const size_t before = block->fibers.size();
  if (before >= threads) return;
  block->fibers.resize(threads);
  for (size_t i = before; i < threads; ++i) {
    Fiber& fiber = block->fibers[i];
    void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack;
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = &block->back;
    makecontext(&fiber.start, live, 0);
  }
}

// Runs the lanes of a warp until each stands at a barrier of the block or is done.
const char* run_warp(unsigned first, unsigned lanes, bool descending) {
  for (;;) {
    for (unsigned l = 0; l < lanes; ++l) {
      const unsigned i = first + (descending ? lanes - 1 - l : l);
      if (block->fibers[i].state == State::Ready) resume(i);
    }
    unsigned shuffling = 0;
    for (unsigned l = 0; l < lanes; ++l) shuffling += block->fibers[first + l].state == State::AtShuffle;
    if (shuffling == 0) return nullptr;
    if (shuffling != lanes) return "a shuffle that not every lane of the warp reaches";
    for (unsigned l = 0; l < lanes; ++l) block->fibers[first + l].state = State::Ready;
  }
}

const char* run_block(unsigned threads, bool descending) {
  for (unsigned i = 0; i < threads; ++i) {
    block->fibers[i].state = State::Ready;
    block->fibers[i].shuffles = 0;
  }
  block->poisoned.clear();
  for (;;) {
    const unsigned warps = (threads + WARP - 1) / WARP;
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned first = (descending ? warps - 1 - w : w) * WARP;
      const char* error = run_warp(first, threads - first < WARP ? threads - first : WARP, descending);
      if (error) return error;
    }
    unsigned waiting = 0, done = 0;
    for (unsigned i = 0; i < threads; ++i) {
      waiting += block->fibers[i].state == State::AtBarrier;
      done += block->fibers[i].state == State::Done;
    }
    if (done == threads) return nullptr;
    if (waiting != threads) return "a __syncthreads that not every thread of the block reaches";
    for (unsigned i = 0; i < threads; ++i) block->fibers[i].state = State::Ready;
  }
}

}  // namespace

Registered::Registered(const char* symbol, void (*run)(const void*), size_t arguments) {
  kernels().push_back({symbol, run, arguments});
}

void poison(void* shared, size_t bytes) {
  for (void* seen : block->poisoned)
    if (seen == shared) return;
  block->poisoned.push_back(shared);
  memset(shared, 0xff, bytes);
}

unsigned own_lane() { return block->own % WARP; }

uint64_t exchange(uint64_t value, unsigned lane) {
  Fiber* fiber = block->current;
  const unsigned own = block->own, parity = fiber->shuffles++ & 1;
  fiber->slots[parity] = value;
  give_way(State::AtShuffle);
  // The other slot serves the next shuffle: nobody writes this one again before every lane has read it.
  return block->fibers[own / WARP * WARP + lane % WARP].slots[parity];
}

}  // namespace emulation

void __syncthreads() { emulation::give_way(emulation::State::AtBarrier); }

// Index of a kernel, or -1; `arguments` gets the size of its argument struct.
extern "C" int32_t moco_emulation_find(const char* symbol, uint64_t* arguments) {
  const auto& all = emulation::kernels();
  for (size_t i = 0; i < all.size(); ++i)
    if (strcmp(all[i].symbol, symbol) == 0) {
      *arguments = all[i].arguments;
      return (int32_t)i;
    }
  return -1;
}

// Runs a kernel; returns null or what is wrong with it, to be followed by no other launch of this OS thread.
extern "C" const char* moco_emulation_launch(int32_t kernel, const uint32_t grid[3], uint32_t threads, const void* arguments,
                                             int32_t descending) {
  using namespace emulation;
  make(threads);
  block->run = kernels()[kernel].run;
  block->arguments = arguments;
  blockDim = {threads, 1, 1};
  gridDim = {grid[0], grid[1], grid[2]};
  const uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
  for (uint64_t b = 0; b < blocks; ++b) {
    const uint64_t i = descending ? blocks - 1 - b : b;
    blockIdx = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / grid[0] / grid[1])};
    const char* error = run_block(threads, descending != 0);
    if (error) return error;
  }
  return nullptr;
}
