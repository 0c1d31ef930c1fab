// Pass two: F(x) at each pixel is what its nine neighbours hold for it, added up.
#pragma once
#if SHARED
#include "shared.cuh"
#else
#include "registers.cuh"
#endif

// Of the image's, the first that this block keeps.
__device__ inline int first_row() { return BANDS > 1 ? cluster_rank() * ROWS : 0; }
__device__ inline int first_channel() { return SPLITS > 1 ? cluster_rank() * OWN : 0; }

// Some neighbouring channels of a pixel, which one thread alone reads and writes.
struct Place {
  int image, row, column;  // within the cluster, the band, the row
  int channel;             // the first of VECTOR, within this block's
  int state;               // index in x and y
};

// Visits the images, of so many, that this warp's team has.
template <typename Visit>
__device__ inline void each_image(int count, const Visit& visit) {
  for (int image = warp() / TEAM; image < count; image += WARPS / TEAM) visit(image);
}

// Visits every place of one of the team's images that belongs to this thread.
template <typename Visit>
__device__ inline void each_place(int image, const Visit& visit) {
  constexpr int groups = OWN / VECTOR;
  const int rows = HEIGHT - first_row() < ROWS ? HEIGHT - first_row() : ROWS;
  for (int item = warp() % TEAM * 32 + lane(); item < rows * WIDTH * groups; item += 32 * TEAM) {
    const int pixel = item / groups;
    visit(Place{image, pixel / WIDTH, pixel % WIDTH, item % groups * VECTOR,
                image * (ROWS * WIDTH * OWN) + item * VECTOR});
  }
}

// Visits every place of all this thread's images.
template <typename Visit>
__device__ inline void each_place_of(int count, const Visit& visit) {
  each_image(count, [&](int image) { each_place(image, visit); });
}

using State = Numbers<VECTOR>;

__device__ inline State& state_at(float* numbers, const Place& place) {
  return *reinterpret_cast<State*>(numbers + place.state);
}

// F(x) at a place; bias: `last_bias`.
__device__ inline State branch_at(const Memory& memory, const float* bias, const Place& place) {
  State sum = *reinterpret_cast<const State*>(bias + place.channel);
  const int pixel = (place.image * PRODUCT_ROWS + place.row + HALO) * WIDTH + place.column;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    const int down = tap / 3 - 1, right = tap % 3 - 1;
    const int row = first_row() + place.row + down, column = place.column + right;
    if (row < 0 || row >= HEIGHT || column < 0 || column >= WIDTH) continue;
    const float* at = memory.products() + (pixel + down * WIDTH + right) * PRODUCT_PITCH +
                      tap * OWN + place.channel;
    const State product = *reinterpret_cast<const State*>(at);
    for (int v = 0; v < VECTOR; ++v) sum.at[v] += product.at[v];
  }
  return sum;
}

// Gives a block's input at a place, activated, to whoever gathers it in that turn: blocks of this
// cluster whose bands it reaches into, or all where channels are split.
__device__ inline void publish(const Memory& memory, int turn, const Place& place,
                               const State& value, bool begins_with_elu) {
  Halves<STORED> halves{};
  for (int v = 0; v < VECTOR; ++v)
    halves.at[v] = static_cast<Half>(pack(begins_with_elu ? elu(value.at[v]) : value.at[v], 0.0f));
  Half* here = memory.active(turn) + active_place(place.image, place.row, place.column) +
               first_channel() + place.channel;
  const auto give = [&](int rank, Half* to) {
    store_at(rank, reinterpret_cast<Halves<STORED>*>(to), halves);
  };
  if constexpr (SPLITS > 1) {
    for (int rank = 0; rank < SPLITS; ++rank) give(rank, here);
  } else {
    *reinterpret_cast<Halves<STORED>*>(here) = halves;
    if constexpr (BANDS > 1) {
      const int band = cluster_rank();
      if (place.row < REACH && band > 0) give(band - 1, here + ROWS * ACTIVE_ROW);
      if (place.row >= ROWS - REACH && band + 1 < BANDS) give(band + 1, here - ROWS * ACTIVE_ROW);
    }
  }
}

// The place of VECTOR numbers in global memory, which lie a channel apart.
__device__ inline long long global_place(const Strides& strides, const Place& place) {
  const int pixel = (first_row() + place.row) * WIDTH + place.column;
  return (cluster() * IMAGES + place.image) * strides.image + pixel * strides.pixel +
         (first_channel() + place.channel) * strides.channel;
}
