// Pass one where hidden layers stay in registers: a warp takes TALL tiles of 16 pixels through
// all three layers in its registers. The accumulators of one product, two columns to a lane, are
// the left operand of the next.
#pragma once
#include "products.cuh"

// A layer in registers as the left operand of the next product.
struct Layer {
  unsigned a[TALL][INNER_STEPS][4];

  __device__ explicit Layer(const float (&sums)[TALL][INNER_STEPS * 2][4]) {
#pragma unroll
    for (int i = 0; i < TALL; ++i)
#pragma unroll
      for (int step = 0; step < INNER_STEPS; ++step)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float* pair = &sums[i][2 * step + part / 2][part % 2 * 2];
          a[i][step][part] = pack(elu(pair[0]), elu(pair[1]));
        }
  }

  __device__ void operator()(unsigned (&tile)[4], int i, int step) const {
    for (int part = 0; part < 4; ++part) tile[part] = a[i][step][part];
  }
};

// All products of this block's pixels, from the activations of a turn. They are there for all
// threads of the block once these have met.
__device__ inline void branch_products(const Memory& memory, int turn) {
  for (int tile = warp() * TALL; tile < TILES; tile += WARPS * TALL) {
    float sums[TALL][INNER_TILES][4];
    begin_with(sums, memory.first_bias());
    multiply<INNER_TILES, FIRST_STEPS>(sums, Gather(memory.active(turn), tile), memory.first());
    const Layer first(sums);
    begin_with(sums, memory.second_bias());
    multiply<INNER_TILES, INNER_STEPS>(sums, first, memory.second());
    const Layer second(sums);
#pragma unroll(LAST_TILES <= 4 ? 2 : 1)
    for (int n = 0; n < LAST_TILES; n += 2) last_products<2>(memory, second, tile, n);
  }
}
