// What pass one is made of: the products of every pixel with all nine taps of the last convolution,
//
//   products [PIXELS, 9 OWN] = W3 elu(W2 elu(W1 * a + b1) + b2).
//
// registers.cuh and shared.cuh put it together, by where hidden layers lie between the products.
#pragma once
#include "memory.cuh"

// exp(x) - 1 below zero. Near zero that difference would cancel, and x is within 2^-11 of it, less
// than 16 bits resolve.
__device__ inline float elu(float x) {
  const float power = power_of_two(x * 1.4426950408889634f);
  return x > -0x1p-10f ? x : power - 1.0f;
}

// A pixel's place in activations.
__device__ inline int active_place(int image, int row, int column) {
  return image * ACTIVE_IMAGE + (row + REACH) * ACTIVE_ROW + (column + 1) * PITCH;
}

// The place of product row m; of the first one, where m is only there to fill a tile.
__device__ inline int place_of_product(int m) {
  m = m < PIXELS ? m : 0;
  const int row = m / WIDTH;
  return active_place(row / PRODUCT_ROWS, row % PRODUCT_ROWS - HALO, m % WIDTH);
}

__device__ constexpr int tap_offset(int tap) {
  return (tap / 3 - 1) * ACTIVE_ROW + (tap % 3 - 1) * PITCH;
}

// Tiles of im2col columns of activations, columns tap * DEPTH + channel.
struct Gather {
  const Half* active;
  int first[TALL], second[TALL];  // places of this lane's rows

  __device__ Gather(const Half* active, int tile) : active(active) {
    for (int i = 0; i < TALL; ++i) {
      const int start = (tile + i) * TILE_M;
      if constexpr (DEPTH % TILE_K == 0) {
        first[i] = place_of_product(start + lane() % 16) + lane() / 16 * 8;
      } else {
        first[i] = place_of_product(start + lane() / 4);
        second[i] = place_of_product(start + lane() / 4 + 8);
      }
    }
  }

  __device__ void operator()(unsigned (&a)[4], int i, int step) const {
    if constexpr (DEPTH % TILE_K == 0) {
      const int column = step * TILE_K;
      load_tile(a, active + first[i] + tap_offset(column / DEPTH) + column % DEPTH);
    } else {
      // Few channels: eight columns are several taps, not one run in memory.
      for (int half = 0; half < 2; ++half) {
        const int column = step * TILE_K + half * 8 + lane() % 4 * 2;
        const int tap = column / DEPTH < 9 ? column / DEPTH : 8;  // beyond: weights are zero
        const Half* at = active + tap_offset(tap) + column % DEPTH;
        a[2 * half] = *reinterpret_cast<const unsigned*>(at + first[i]);
        a[2 * half + 1] = *reinterpret_cast<const unsigned*>(at + second[i]);
      }
    }
  }
};

// sums [TALL tiles, N tiles] += left * weights; left(a, i, step) gives a tile of the left operand.
template <int N, int STEPS, typename Left>
__device__ inline void multiply(float (&sums)[TALL][N][4], const Left& left, const Words* weights) {
  // A product waits for the one before it that adds to the same sum, some 33 cycles: where a warp
  // has few sums and many steps, odd ones get others.
  constexpr bool few = TALL * N <= 2 && STEPS > 4;
  float odd[TALL][N][4] = {};
  // Of many steps with many sums the assembler hoists loads until its registers are full.
#pragma unroll(STEPS <= 16 || few ? STEPS : 6)
  for (int step = 0; step < STEPS; ++step) {
    unsigned a[TALL][4];
#pragma unroll
    for (int i = 0; i < TALL; ++i) left(a[i], i, step);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const Words b = weights[(n * STEPS + step) * 32 + lane()];
#pragma unroll
      for (int i = 0; i < TALL; ++i)
        multiply_tile(few && step % 2 ? odd[i][n] : sums[i][n], a[i], b);
    }
  }
  if constexpr (few)
#pragma unroll
    for (int i = 0; i < TALL; ++i)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int part = 0; part < 4; ++part) sums[i][n][part] += odd[i][n][part];
}

// sums = the bias of each column.
template <int N>
__device__ inline void begin_with(float (&sums)[TALL][N][4], const float* bias) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float* pair = bias + n * TILE_N + lane() % 4 * 2;
    const float low = pair[0], high = pair[1];
#pragma unroll
    for (int i = 0; i < TALL; ++i) {
      sums[i][n][0] = sums[i][n][2] = low;
      sums[i][n][1] = sums[i][n][3] = high;
    }
  }
}

// Stores one tile of products; rows and columns that only fill it are left out.
__device__ inline void store_products(float* products, const float (&sum)[4], int tile, int n) {
  const int column = n * TILE_N + lane() % 4 * 2;
  const int columns = (n + 1) * TILE_N <= COLUMNS ? 2 : COLUMNS - column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int m = tile * TILE_M + lane() / 4 + 8 * half;
    if (TILES * TILE_M != PIXELS && m >= PIXELS) continue;
    float* at = products + m * PRODUCT_PITCH + column;
    if constexpr (PRODUCT_PITCH % 2 == 0) {
      if (columns > 0)
        *reinterpret_cast<Numbers<2>*>(at) = Numbers<2>{sum[2 * half], sum[2 * half + 1]};
    } else {
      if (columns > 0) at[0] = sum[2 * half];
      if (columns > 1) at[1] = sum[2 * half + 1];
    }
  }
}

// N tiles of products from a column tile on.
template <int N, typename Left>
__device__ inline void last_products(const Memory& memory, const Left& left, int tile, int n) {
  float sums[TALL][N][4] = {};
  multiply<N, INNER_STEPS>(sums, left, memory.last() + n * INNER_STEPS * 32);
#pragma unroll
  for (int i = 0; i < TALL; ++i)
#pragma unroll
    for (int m = 0; m < N; ++m) store_products(memory.products(), sums[i][m], tile + i, n + m);
}
