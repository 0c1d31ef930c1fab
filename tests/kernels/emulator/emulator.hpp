// What kernels/cuda/device.cuh says in PTX, on a CPU: each thread of a cluster is a fiber, and
// operations of a warp or a block are meetings of fibers. One host thread runs them all, warp by
// warp, in an order drawn anew from a seed, so a race shows as a wrong answer for some seed, and
// ThreadSanitizer sees it in any: fibers are threads to it, and only real barriers order them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

// Code of the emulator's own, whose memory is no memory of the kernel's to the sanitizer.
#if defined(__SANITIZE_THREAD__)
#define UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define UNSEEN
#endif

namespace emulator {

// Threads that wait for each other, over and over.
struct Meeting {
  int expected = 0, arrived = 0;
  std::uint64_t generation = 0;
};

// What the lanes of a warp hand each other, and get back.
struct Warp {
  Meeting meeting;
  unsigned given[32][10];
  unsigned taken[32][4];
};

struct Thread {
  int index, rank, cluster;  // of the thread in its block, of the block in the cluster, of that
  char* shared;
  Warp* warp;
  Meeting *block, *all;
  const Meeting* waits_for;
  std::uint64_t seen;
  bool ended;
};

extern Thread* current;
extern char* shared_of_rank[16];

// Waits for the other threads of a meeting. The last one calls `before_all_go` first.
void meet(Meeting& meeting, bool orders_memory, void (*before_all_go)(Warp&));
void copy_later(void* to, const void* from, int bytes);
void copy_now();

inline std::uint32_t bits(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}
inline float number(std::uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

}  // namespace emulator

UNSEEN inline int thread() { return emulator::current->index; }
UNSEEN inline int lane() { return thread() % 32; }
UNSEEN inline int warp() { return thread() / 32; }
UNSEEN inline int cluster() { return emulator::current->cluster; }
UNSEEN inline int cluster_rank() { return emulator::current->rank; }
UNSEEN inline char* shared_memory() { return emulator::current->shared; }

inline unsigned short narrow(float value) {
#if BF16
  const std::uint32_t word = emulator::bits(value);
  if (value != value) return 0x7fff;
  return static_cast<unsigned short>((word + 0x7fff + (word >> 16 & 1)) >> 16);
#else
  const _Float16 half = static_cast<_Float16>(value);
  unsigned short word;
  std::memcpy(&word, &half, 2);
  return word;
#endif
}
inline float widen(Half half) {
#if BF16
  return emulator::number(static_cast<std::uint32_t>(half) << 16);
#else
  _Float16 value;
  std::memcpy(&value, &half, 2);
  return static_cast<float>(value);
#endif
}
inline unsigned pack(float low, float high) {
  return narrow(low) | static_cast<unsigned>(narrow(high)) << 16;
}
inline float power_of_two(float x) { return std::exp2(x); }
inline float infinity() { return emulator::number(0x7f800000); }

// FORGETFUL: a block never meets, so that a test can see that the sanitizer sees it.
UNSEEN inline void meet_block() {
#ifndef FORGETFUL
  emulator::meet(*emulator::current->block, true, nullptr);
#endif
}
UNSEEN inline void meet_cluster() { emulator::meet(*emulator::current->all, true, nullptr); }

template <typename T>
inline void store_at(int rank, T* pointer, T value) {
  const auto place = reinterpret_cast<char*>(pointer) - shared_memory();
  *reinterpret_cast<T*>(emulator::shared_of_rank[rank] + place) = value;
}

inline void copy_async(Chunk* to, const Chunk* from) { emulator::copy_later(to, from, 16); }
inline void wait_for_copies() { emulator::copy_now(); }

void multiply_tile(float (&sum)[4], const unsigned (&a)[4], Words b);
void load_tile(unsigned (&a)[4], const Half* row);
float from_lane(float value, int source);
float from_partner(float value, int distance);
unsigned lanes_where(bool condition);
