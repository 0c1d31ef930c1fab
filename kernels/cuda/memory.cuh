// Where everything lies in shared memory.
#pragma once
#include "device.cuh"

constexpr int ACTIVE_AT = SHARED_WEIGHT_BYTES;
constexpr int LAYERS_AT = ACTIVE_AT + 2 * TURNS * ACTIVE;
constexpr int PRODUCTS_AT = LAYERS_AT + 2 * 2 * LAYER;
constexpr int X_AT = PRODUCTS_AT + round_up(4 * PIXELS * PRODUCT_PITCH, 16);
constexpr int FORWARD_BYTES = X_AT + 4 * STATE;
// Only an inversion has a right-hand side and sums of images.
constexpr int Y_AT = FORWARD_BYTES;
constexpr int SUMS_AT = Y_AT + 4 * STATE;
constexpr int INVERSION_BYTES = SUMS_AT + 8 * 2 * IMAGES * CLUSTER * TEAM;

struct Memory {
  char* base;

  __device__ Words* first() const { return reinterpret_cast<Words*>(base); }
  __device__ Words* second() const { return reinterpret_cast<Words*>(base + FIRST_BYTES); }
  __device__ Words* last() const {
    return reinterpret_cast<Words*>(base + FIRST_BYTES + SECOND_BYTES);
  }
  __device__ float* first_bias() const {
    return reinterpret_cast<float*>(base + FIRST_BYTES + SECOND_BYTES + LAST_BYTES);
  }
  __device__ float* second_bias() const { return first_bias() + OWN_INNER; }

  // Of one turn.
  __device__ Half* active(int turn) const {
    return reinterpret_cast<Half*>(base + ACTIVE_AT) + (turn % TURNS) * ACTIVE;
  }
  __device__ Half* layer(int which) const {
    return reinterpret_cast<Half*>(base + LAYERS_AT) + which * LAYER;
  }
  __device__ float* products() const { return reinterpret_cast<float*>(base + PRODUCTS_AT); }
  __device__ float* x() const { return reinterpret_cast<float*>(base + X_AT); }
  __device__ float* y() const { return reinterpret_cast<float*>(base + Y_AT); }

  // [CLUSTER * TEAM] of one image in one turn: a pair of numbers from each warp that has it.
  __device__ Numbers<2>* sums(int turn, int image) const {
    return reinterpret_cast<Numbers<2>*>(base + SUMS_AT) +
           ((turn % 2) * IMAGES + image) * (CLUSTER * TEAM);
  }
};

// This block's part of the weights of a block of layers.
__device__ inline const char* part_of_weights(const char* weights, int block) {
  const int part = SPLITS > 1 ? cluster_rank() : 0;
  return weights + (static_cast<long long>(block) * SPLITS + part) * WEIGHT_BYTES;
}

// Asks for weights in the place of others that nobody reads any more.
__device__ inline void fetch_weights(const char* weights, int block, const Memory& memory) {
  const char* from = part_of_weights(weights, block);
  for (int at = 16 * thread(); at < SHARED_WEIGHT_BYTES; at += 16 * THREADS)
    copy_async(reinterpret_cast<Chunk*>(memory.base + at),
               reinterpret_cast<const Chunk*>(from + at));
}

// The bias of each channel that a block keeps. Read where it lies, in global memory: in shared
// memory it would be overwritten by the next weights while it is still needed.
__device__ inline const float* last_bias(const char* weights, int block) {
  return reinterpret_cast<const float*>(part_of_weights(weights, block) + SHARED_WEIGHT_BYTES);
}

// Zeros where activations and their borders will be.
__device__ inline void clear_activations(const Memory& memory) {
  Chunk* chunks = reinterpret_cast<Chunk*>(memory.base + ACTIVE_AT);
  for (int at = thread(); at < 2 * TURNS * ACTIVE / 16; at += THREADS) chunks[at] = Chunk{};
}
