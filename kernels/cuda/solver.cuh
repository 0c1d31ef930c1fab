// When an image is done: sums over the cluster, and what follows from them. As kernels/solver.py.
//
// Sums are taken in units of an image's size, or the squares of large images would overflow and
// those of small ones vanish. Every warp of the cluster adds up the same numbers in the same order
// and comes to the same verdict, so nobody has to be told it. Lane i speaks for image i.
#pragma once
#include "memory.cuh"

static_assert(IMAGES <= 32, "a lane speaks for an image");

// Beyond this a float counts as infinite; units lie in here, so that one over them is normal too;
// one over the unit that is taken where a sum overflowed.
constexpr float LARGEST = 3.0e38f, LEAST_UNIT = 1.0e-37f, LARGEST_UNIT = 8.0e37f;
constexpr float SMALLER = 0x1p-100f;

__device__ inline float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += from_partner(value, distance);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int distance = 16; distance > 0; distance /= 2)
    value = fmaxf(value, from_partner(value, distance));
  return value;
}

struct Verdict {
  float per, goal2;  // one over the unit, ||y||^2 in that unit
  float last;        // relative step
  int steps;
  bool done;
};

// Gives this warp's two numbers of an image to all warps of the cluster. There once all have met.
__device__ inline void tell(const Memory& memory, int turn, int image, float first, float second) {
  if (lane() < CLUSTER)
    store_at(lane(), memory.sums(turn, image) + cluster_rank() * TEAM + warp() % TEAM,
             Numbers<2>{first, second});
}

// The sums of what fold makes of the pairs that were told of an image.
template <typename Fold>
__device__ inline Numbers<2> sum_told(const Memory& memory, int turn, int image, const Fold& fold) {
  Numbers<2> sum{0, 0};
  for (int i = lane(); i < CLUSTER * TEAM; i += 32) {
    const Numbers<2> told = fold(memory.sums(turn, image)[i]);
    sum.at[0] += told.at[0];
    sum.at[1] += told.at[1];
  }
  return Numbers<2>{warp_sum(sum.at[0]), warp_sum(sum.at[1])};
}

// Goals of this block of layers, from pairs (||y||^2, its unit).
__device__ inline void set_goals(const Memory& memory, int turn, int count, Verdict& verdict) {
  for (int image = 0; image < count; ++image) {
    float unit = LEAST_UNIT;
    for (int i = lane(); i < CLUSTER * TEAM; i += 32)
      unit = fmaxf(unit, memory.sums(turn, image)[i].at[1]);
    unit = warp_max(unit);
    const Numbers<2> goal = sum_told(memory, turn, image, [&](const Numbers<2>& told) {
      const float smaller = told.at[1] / unit;
      return Numbers<2>{told.at[0] * smaller * smaller, 0};
    });
    if (lane() == image) {
      verdict.per = 1.0f / unit;
      verdict.goal2 = goal.at[0];
    }
  }
}

// Judges an iteration, from pairs (||step||^2, ||x_new||^2). Not a number and sums that
// overflow count as infinitely far, so a diverging image is never done.
__device__ inline void judge(const Memory& memory, int turn, int count, int iteration,
                             float tolerance, Verdict& verdict) {
  float step2 = 0, norm2 = 0;
  for (int image = 0; image < count; ++image) {
    const auto as_told = [](const Numbers<2>& told) { return told; };
    const Numbers<2> sum = sum_told(memory, turn, image, as_told);
    if (lane() == image) {
      step2 = sum.at[0];
      norm2 = sum.at[1];
    }
  }
  float relative = sqrtf(step2) / (sqrtf(fmaxf(norm2, verdict.goal2)) + 1e-37f);
  const bool fits = norm2 <= LARGEST;
  if (!(fits && relative <= LARGEST)) relative = infinity();
  if (!fits) {
    verdict.per *= SMALLER;
    verdict.goal2 = verdict.goal2 * SMALLER * SMALLER;
  }
  if (!verdict.done) {
    verdict.last = relative;
    verdict.steps = iteration;
    verdict.done = relative <= tolerance;
  }
}
