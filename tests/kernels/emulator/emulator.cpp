// Runs the kernels of kernels/cuda/stage.cu on a CPU; see emulator.hpp.
#include "stage.cu"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {

Thread* current;
char* shared_of_rank[16];

namespace {

constexpr std::size_t STACK = 64 << 10;
// At the far end of every stack, where only one that is too small would write.
constexpr std::uint64_t UNTOUCHED = 0x5afe5afe5afe5afe;

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber : Thread {
  ucontext_t context;
  jmp_buf again;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> copies;
  void* sanitized = nullptr;
};

[[maybe_unused]] ucontext_t scheduler;
[[maybe_unused]] void* sanitized_scheduler;
void (*kernel)(const Arguments&);
const Arguments* arguments;

// swapcontext asks the kernel at each switch; a jump, ten times faster, is beyond the sanitizers.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
UNSEEN void yield() {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(sanitized_scheduler, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&static_cast<Fiber*>(current)->context, &scheduler);
}

UNSEEN void resume(Fiber& fiber) {
  current = &fiber;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.sanitized, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&scheduler, &fiber.context);
}
#else
jmp_buf to_scheduler;

// Not to be inlined: what a caller has in registers is as it was after a jump back into these.
__attribute__((noinline)) void yield() {
  if (!_setjmp(static_cast<Fiber*>(current)->again)) _longjmp(to_scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(to_scheduler)) return;
  if (fiber.begun) _longjmp(fiber.again, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}
#endif

UNSEEN void run_kernel() {
  kernel(*arguments);
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&scheduler);
#endif
  current->ended = true;
  yield();
}

UNSEEN bool can_go(const Fiber& fiber) {
  return !fiber.ended && (!fiber.waits_for || fiber.waits_for->generation != fiber.seen);
}

// Runs the lanes of a warp until none can go on. Returns whether any could.
UNSEEN bool run_warp(Fiber* lanes) {
  bool any = false;
  for (bool gone = true; gone;) {
    gone = false;
    for (int i = 0; i < 32; ++i)
      if (can_go(lanes[i])) {
        resume(lanes[i]);
        gone = any = true;
      }
  }
  return any;
}

}  // namespace

UNSEEN void meet(Meeting& meeting, [[maybe_unused]] bool orders_memory,
                 void (*before_all_go)(Warp&)) {
#if defined(__SANITIZE_THREAD__)
  if (orders_memory) __tsan_release(&meeting);
#endif
  current->seen = meeting.generation;
  if (++meeting.arrived == meeting.expected) {
    if (before_all_go) before_all_go(*current->warp);
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    current->waits_for = &meeting;
    yield();
    current->waits_for = nullptr;
  }
#if defined(__SANITIZE_THREAD__)
  if (orders_memory) __tsan_acquire(&meeting);
#endif
}

// A copy is made as late as may be, so that whoever does not wait for it finds the old.
UNSEEN void copy_later(void* to, const void* from, int bytes) {
  static_cast<Fiber*>(current)->copies.push_back({to, from, bytes});
}
UNSEEN std::vector<Copy> taken_copies() { return std::move(static_cast<Fiber*>(current)->copies); }
void copy_now() {
  for (const Copy& copy : taken_copies()) std::memcpy(copy.to, copy.from, copy.bytes);
}

namespace {

// The element of a fragment's word at an even column or row, and at the odd one after it.
float low(unsigned word) { return widen(static_cast<Half>(word)); }
float high(unsigned word) { return widen(static_cast<Half>(word >> 16)); }

UNSEEN void multiply_all(Warp& warp) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int part = 0; part < 4; ++part) {
      float* at = &a[g + 8 * (part % 2)][8 * (part / 2) + 2 * t];
      at[0] = low(warp.given[l][4 + part]);
      at[1] = high(warp.given[l][4 + part]);
    }
    for (int part = 0; part < 2; ++part) {
      b[8 * part + 2 * t][g] = low(warp.given[l][8 + part]);
      b[8 * part + 2 * t + 1][g] = high(warp.given[l][8 + part]);
    }
  }
  for (int l = 0; l < 32; ++l)
    for (int part = 0; part < 4; ++part) {
      const int row = l / 4 + 8 * (part / 2), column = l % 4 * 2 + part % 2;
      float sum = number(warp.given[l][part]);
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      warp.taken[l][part] = bits(sum);
    }
}

UNSEEN void load_all(Warp& warp) {
  for (int l = 0; l < 32; ++l)
    for (int part = 0; part < 4; ++part)
      warp.taken[l][part] = warp.given[8 * part + l / 4][l % 4];
}

// Every lane's first word to every lane.
UNSEEN void show_all(Warp& warp) {
  for (int l = 0; l < 32; ++l) warp.taken[l][0] = warp.given[l][0];
}

UNSEEN unsigned shown(unsigned word, int source) {
  Warp& warp = *current->warp;
  warp.given[lane()][0] = word;
  meet(warp.meeting, false, show_all);
  return warp.taken[source][0];
}

UNSEEN void load_row(unsigned (&a)[4], const Chunk& row) {
  Warp& warp = *current->warp;
  for (int i = 0; i < 4; ++i) warp.given[lane()][i] = row.word[i];
  meet(warp.meeting, false, load_all);
  for (int i = 0; i < 4; ++i) a[i] = warp.taken[lane()][i];
}

}  // namespace
}  // namespace emulator

UNSEEN void multiply_tile(float (&sum)[4], const unsigned (&a)[4], Words b) {
  emulator::Warp& warp = *emulator::current->warp;
  unsigned* given = warp.given[lane()];
  for (int i = 0; i < 4; ++i) given[i] = emulator::bits(sum[i]), given[4 + i] = a[i];
  given[8] = b.low, given[9] = b.high;
  emulator::meet(warp.meeting, false, emulator::multiply_all);
  for (int i = 0; i < 4; ++i) sum[i] = emulator::number(warp.taken[lane()][i]);
}

void load_tile(unsigned (&a)[4], const Half* row) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16) {
    std::fputs("ldmatrix: an address that is not a multiple of 16\n", stderr);
    std::abort();
  }
  const Chunk mine = *reinterpret_cast<const Chunk*>(row);
  emulator::load_row(a, mine);
}

float from_lane(float value, int source) {
  return emulator::number(emulator::shown(emulator::bits(value), source));
}
float from_partner(float value, int distance) { return from_lane(value, lane() ^ distance); }

UNSEEN unsigned lanes_where(bool condition) {
  unsigned mask = emulator::shown(condition, 0);
  for (int l = 1; l < 32; ++l) mask |= emulator::current->warp->taken[l][0] << l;
  return mask;
}

namespace emulator {
namespace {

// Numbers at random: <random> takes a third of the time that all else takes to compile.
struct Random {
  std::uint32_t state;

  std::uint32_t operator()() {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
  }
  // About normal.
  float normal() {
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>((*this)() >> 8) * 0x1p-24f;
    return sum;
  }
};

// One cluster from beginning to end, its shared memory full of not-a-numbers. Returns false if its
// threads wait for each other forever.
bool run_cluster(int cluster, int shared_bytes, Random& random) {
  constexpr int WARPS_OF_ALL = CLUSTER * WARPS;
  std::vector<std::unique_ptr<Chunk[]>> shared;
  std::vector<Warp> warps(WARPS_OF_ALL);
  std::vector<Meeting> blocks(CLUSTER);
  std::vector<Fiber> fibers(32 * WARPS_OF_ALL);
  Meeting all{32 * WARPS_OF_ALL};
  for (int rank = 0; rank < CLUSTER; ++rank) {
    shared.emplace_back(new Chunk[quotient(shared_bytes, 16)]);
    shared_of_rank[rank] = reinterpret_cast<char*>(shared[rank].get());
    std::memset(shared_of_rank[rank], 0xff, shared_bytes);
    blocks[rank].expected = THREADS;
  }
  for (int i = 0; i < 32 * WARPS_OF_ALL; ++i) {
    Fiber& fiber = fibers[i];
    const int rank = i / THREADS;
    warps[i / 32].meeting.expected = 32;
    static_cast<Thread&>(fiber) = {i % THREADS, rank, cluster, shared_of_rank[rank],
                                   &warps[i / 32], &blocks[rank], &all, nullptr, 0, false};
    fiber.stack.reset(new char[STACK]);
    std::memcpy(fiber.stack.get(), &UNTOUCHED, sizeof UNTOUCHED);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_kernel, 0);
#if defined(__SANITIZE_THREAD__)
    fiber.sanitized = __tsan_create_fiber(0);
#endif
  }
  std::vector<int> order(WARPS_OF_ALL);
  for (int i = 0; i < WARPS_OF_ALL; ++i) order[i] = i;
  bool any = true;
  while (any) {
    any = false;
    for (int i = WARPS_OF_ALL - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    for (const int i : order) any |= run_warp(&fibers[32 * i]);
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&scheduler);
#endif
  bool ended = true;
  for (Fiber& fiber : fibers) {
    ended &= fiber.ended;
    if (std::memcmp(fiber.stack.get(), &UNTOUCHED, sizeof UNTOUCHED)) {
      std::fputs("a fiber's stack is too small\n", stderr);
      std::abort();
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fiber.sanitized);
#endif
  }
  return ended;
}

}  // namespace
}  // namespace emulator

// What shape.cuh makes of a layout: weights of a block in shared memory and in all, shared memory
// of the kernels.
extern "C" void sizes(int* numbers) {
  numbers[0] = SHARED_WEIGHT_BYTES, numbers[1] = WEIGHT_BYTES;
  numbers[2] = FORWARD_BYTES, numbers[3] = INVERSION_BYTES;
}

// Launches a kernel with so many clusters. Returns 0; 1 if threads waited forever.
extern "C" int launch(const char* name, const Arguments* arguments, int clusters, unsigned seed) {
  const bool forward = !std::strcmp(name, "forward_kernel");
  emulator::kernel = forward ? [](const Arguments& a) { forward_kernel(a); }
                             : [](const Arguments& a) { inversion_kernel(a); };
  emulator::arguments = arguments;
#if defined(__SANITIZE_THREAD__)
  emulator::sanitized_scheduler = __tsan_get_current_fiber();
#endif
  emulator::Random random{2 * seed + 1};
  for (int i = 0; i < clusters; ++i)
    if (!emulator::run_cluster(i, forward ? FORWARD_BYTES : INVERSION_BYTES, random)) return 1;
  return 0;
}
