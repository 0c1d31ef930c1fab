// Pass one where hidden layers go through shared memory: a warp computes some channels of a layer
// for some tiles. So the blocks of a cluster can split channels whose weights are too many for one
// multiprocessor, each giving its own to all; and many warps can work on few tiles.
#pragma once
#include "products.cuh"

// Column tiles that a warp computes at once: as many as leave every warp something to do.
constexpr int columns_at_once(int tiles) {
  int most = 1;
  for (int n = 1; n <= tiles; ++n)
    if (tiles % n == 0 && TILES / TALL * (tiles / n) >= WARPS) most = n;
  return most;
}
constexpr int INNER_AT_ONCE = columns_at_once(INNER_TILES);
constexpr int LAST_AT_ONCE = columns_at_once(LAST_TILES);

// Rows of a layer in shared memory as the left operand of a product.
struct Rows {
  const Half* first;  // this lane's row of the first tile

  __device__ Rows(const Half* layer, int tile)
      : first(layer + (tile * TILE_M + lane() % 16) * INNER_PITCH + lane() / 16 * 8) {}

  __device__ void operator()(unsigned (&a)[4], int i, int step) const {
    load_tile(a, first + i * TILE_M * INNER_PITCH + step * TILE_K);
  }
};

// Stores two channels of a layer in every block that needs them; column: within this block's.
__device__ inline void give_pair(Half* layer, int row, int column, unsigned pair) {
  Half* at = layer + row * INNER_PITCH + column;
  if constexpr (SPLITS > 1) {
    at += cluster_rank() * OWN_INNER;
    for (int rank = 0; rank < SPLITS; ++rank)
      store_at(rank, reinterpret_cast<unsigned*>(at), pair);
  } else {
    *reinterpret_cast<unsigned*>(at) = pair;
  }
}

// Waits until a layer is there.
__device__ inline void meet_sharers() {
  if constexpr (SPLITS > 1) {
    meet_cluster();
  } else {
    meet_block();
  }
}

// This block's columns of layer [TILES * TILE_M, INNER] <- elu(left * weights + bias), given to
// whoever shares it; left_of(tile) gives the left operand.
template <int STEPS, typename LeftOf>
__device__ inline void shared_layer(Half* layer, const LeftOf& left_of, const Words* weights,
                                   const float* bias) {
  constexpr int N = INNER_AT_ONCE, groups = INNER_TILES / N;
  for (int unit = warp(); unit < TILES / TALL * groups; unit += WARPS) {
    const int tile = unit / groups * TALL, n = unit % groups * N;
    float sums[TALL][N][4];
    begin_with(sums, bias + n * TILE_N);
    multiply<N, STEPS>(sums, left_of(tile), weights + n * STEPS * 32);
#pragma unroll
    for (int i = 0; i < TALL; ++i)
#pragma unroll
      for (int m = 0; m < N; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          give_pair(layer, (tile + i) * TILE_M + lane() / 4 + 8 * half,
                    (n + m) * TILE_N + lane() % 4 * 2,
                    pack(elu(sums[i][m][2 * half]), elu(sums[i][m][2 * half + 1])));
  }
}

// All products of this block's channels, from the activations of a turn. They are there for all
// threads of the block once these have met.
__device__ inline void branch_products(const Memory& memory, int turn) {
  shared_layer<FIRST_STEPS>(
      memory.layer(0), [&](int tile) { return Gather(memory.active(turn), tile); },
      memory.first(), memory.first_bias());
  meet_sharers();
  shared_layer<INNER_STEPS>(
      memory.layer(1), [&](int tile) { return Rows(memory.layer(0), tile); }, memory.second(),
      memory.second_bias());
  meet_sharers();
  constexpr int N = LAST_AT_ONCE, groups = LAST_TILES / N;
  for (int unit = warp(); unit < TILES / TALL * groups; unit += WARPS) {
    const int tile = unit / groups * TALL;
    last_products<N>(memory, Rows(memory.layer(1), tile), tile, unit % groups * N);
  }
}
