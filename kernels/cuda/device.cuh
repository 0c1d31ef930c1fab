// The instructions that C++ has no word for. tests/kernels/emulator/ has its own for a CPU; all
// else is the same source there.
#pragma once
#include "shape.cuh"

// A bfloat16 or float16 number, by its bits.
using Half = unsigned short;

struct alignas(8) Words {
  unsigned low, high;
};
struct alignas(16) Chunk {
  unsigned word[4];
};
// As many bytes as one access may have: any power of two.
template <int N>
struct alignas(N % 2 ? 4 : 4 * N) Numbers {
  float at[N];
};
template <int N>
struct alignas(2 * N) Halves {
  Half at[N];
};

#ifdef CODEDINV_EMULATED
#include "emulator.hpp"
#else

__device__ inline int thread() { return threadIdx.x; }
__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }
__device__ inline int cluster() { return blockIdx.x / CLUSTER; }

__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Two numbers in the dtype of the products, the first in the lower half.
__device__ inline unsigned pack(float low, float high) {
  unsigned both;
#if BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
  return both;
}
__device__ inline float widen(Half half) {
  float number;
#if BF16
  number = __uint_as_float(static_cast<unsigned>(half) << 16);
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(half));
#endif
  return number;
}

// 2^x.
__device__ inline float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

// sum [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = lane % 4 a lane holds of sum rows
// g and g + 8, columns 2t and 2t + 1; of a rows g, g + 8, g, g + 8, columns from 2t, 2t, 2t + 8,
// 2t + 8; of b rows from 2t and 2t + 8, column g.
__device__ inline void multiply_tile(float (&sum)[4], const unsigned (&a)[4], Words b) {
#if BF16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "f"(sum[0]),
        "f"(sum[1]), "f"(sum[2]), "f"(sum[3]));
}

// a [16, 16] from 16 rows of halves: lane l names row l % 16, from column 8 (l / 16).
__device__ inline void load_tile(unsigned (&a)[4], const Half* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(row))
               : "memory");
}

// Copies into shared memory; there once `wait_for_copies` has returned in the thread that asked.
__device__ inline void copy_async(Chunk* to, const Chunk* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline float from_lane(float value, int source) {
  return __shfl_sync(0xffffffffu, value, source);
}
__device__ inline float from_partner(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
__device__ inline unsigned lanes_where(bool condition) {
  return __ballot_sync(0xffffffffu, condition);
}

// Waits for all threads of this block, and of the cluster. What was stored before is then seen.
__device__ inline void meet_block() { __syncthreads(); }
__device__ inline int cluster_rank() {
#if BANDS * SPLITS > 1
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}
__device__ inline void meet_cluster() {
#if BANDS * SPLITS > 1
  __syncwarp();  // "aligned": all lanes come together, whatever branches they took before
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  __syncthreads();
#endif
}

// *pointer = value in the shared memory of the cluster's block `rank`; pointer: into this block's.
template <typename T>
__device__ inline void store_at(int rank, T* pointer, T value) {
#if BANDS * SPLITS > 1
  // The window of another block's memory is looked up once, not for every pointer.
  const unsigned own = shared_address(shared_memory());
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(rank));
  address += shared_address(pointer) - own;
  if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(address),
                 "l"(*reinterpret_cast<unsigned long long*>(&value))
                 : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(address),
                 "r"(*reinterpret_cast<unsigned*>(&value))
                 : "memory");
  } else {
    static_assert(sizeof(T) == 2, "8, 4 or 2 bytes");
    asm volatile("st.shared::cluster.b16 [%0], %1;" ::"r"(address),
                 "h"(*reinterpret_cast<unsigned short*>(&value))
                 : "memory");
  }
#else
  *pointer = value;
#endif
}

#endif
