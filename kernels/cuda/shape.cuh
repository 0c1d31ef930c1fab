// The shape that a kernel is compiled for, and what follows from it.
//
// Given by -D, as `Layout.defines` of kernels/on_chip_shape.py does: BF16 (1, or 0 for float16),
// CHANNELS, HEIGHT, WIDTH, HIDDEN, IMAGES (of a cluster), BANDS or SPLITS (blocks of threads of a
// cluster, which share its images by rows or by channels), SHARED (1 where warps share hidden
// layers through shared memory, as splits always do), WARPS (of a block), TALL (tiles of 16 pixels
// that a warp multiplies at once, so that each fragment of weights is loaded for all of them).
#pragma once

constexpr int quotient(int number, int by) { return (number + by - 1) / by; }
constexpr int round_up(int number, int to) { return quotient(number, to) * to; }

// Tiles of mma.m16n8k16.
constexpr int TILE_M = 16, TILE_N = 8, TILE_K = 16;

constexpr int THREADS = 32 * WARPS;
constexpr int CLUSTER = BANDS * SPLITS;
static_assert(BANDS == 1 || SPLITS == 1, "a cluster shares its images by rows or by channels");

// Rows of a band (the last band may have fewer), rows beyond it on each side whose products it
// computes too, and rows beyond it whose activations it needs for these.
constexpr int ROWS = quotient(HEIGHT, BANDS);
constexpr int HALO = BANDS > 1 ? 1 : 0;
constexpr int REACH = HALO + 1;
static_assert(ROWS * (BANDS - 1) < HEIGHT, "a band without rows");
static_assert(BANDS == 1 || ROWS >= REACH, "a halo would reach beyond the next band");
constexpr int PRODUCT_ROWS = ROWS + 2 * HALO;

// Channels whose x a block keeps, and hidden channels that it computes.
constexpr int OWN = CHANNELS / SPLITS;
constexpr int INNER = round_up(HIDDEN, TILE_K);
constexpr int OWN_INNER = INNER / SPLITS;
static_assert(OWN * SPLITS == CHANNELS, "channels that cannot be split");
static_assert(OWN_INNER * SPLITS == INNER && OWN_INNER % TILE_N == 0, "hidden channels likewise");

// Channels that a thread treats at once, and activations that it stores: of three channels it also
// stores the zero that fills them up to four.
constexpr int VECTOR = CHANNELS == 3 && SPLITS == 1 ? 3 : OWN % 4 == 0 ? 4 : OWN % 2 == 0 ? 2 : 1;
constexpr int STORED = VECTOR == 3 ? 4 : VECTOR;

// Warps that share an image outside the products, so that those of a warp are of one image.
constexpr int TEAM = WARPS > IMAGES ? WARPS / IMAGES : 1;

// Activations: [IMAGES, ROWS + 2 REACH, WIDTH + 2, PITCH] with a border of zeros, so that no
// gather has a mask. DEPTH: channels, padded; PITCH: so that eight pixels lie in other banks.
constexpr int DEPTH = CHANNELS <= 2   ? 2
                      : CHANNELS <= 4 ? 4
                      : CHANNELS <= 8 ? 8
                                      : round_up(CHANNELS, TILE_K);
constexpr int PITCH = DEPTH < TILE_K ? DEPTH : DEPTH + 8;
constexpr int ACTIVE_ROW = (WIDTH + 2) * PITCH;
constexpr int ACTIVE_IMAGE = (ROWS + 2 * REACH) * ACTIVE_ROW;
constexpr int ACTIVE = round_up(IMAGES * ACTIVE_IMAGE, 8);
// Halves, of which one is read while neighbours write to the other.
constexpr int TURNS = BANDS > 1 ? 2 : 1;

// Products: [PIXELS, COLUMNS], columns tap * OWN + channel. PRODUCT_PITCH: odd where numbers are
// loaded one by one, so that neighbouring pixels lie in other banks, else a multiple of VECTOR.
constexpr int PIXELS = IMAGES * PRODUCT_ROWS * WIDTH;
constexpr int TILES = round_up(quotient(PIXELS, TILE_M), TALL);
constexpr int COLUMNS = 9 * OWN;
constexpr int PRODUCT_PITCH = VECTOR % 2 ? COLUMNS | 1 : COLUMNS;

// Steps of TILE_K and tiles of TILE_N of the three products; of the last an even number, so that
// two warps can share them.
constexpr int FIRST_STEPS = quotient(9 * DEPTH, TILE_K);
constexpr int INNER_STEPS = INNER / TILE_K;
constexpr int INNER_TILES = OWN_INNER / TILE_N;
constexpr int LAST_TILES = round_up(quotient(COLUMNS, TILE_N), 2);

// The weights of a block of layers, as kernels/on_chip_packing.py packs them for one block of
// threads: fragments [tile, step, lane] of two words each, then biases.
constexpr int FRAGMENT = 32 * 8;
constexpr int FIRST_BYTES = INNER_TILES * FIRST_STEPS * FRAGMENT;
constexpr int SECOND_BYTES = INNER_TILES * INNER_STEPS * FRAGMENT;
constexpr int LAST_BYTES = LAST_TILES * INNER_STEPS * FRAGMENT;
constexpr int SHARED_WEIGHT_BYTES =
    FIRST_BYTES + SECOND_BYTES + LAST_BYTES + 2 * 4 * OWN_INNER;
constexpr int WEIGHT_BYTES = SHARED_WEIGHT_BYTES + round_up(4 * OWN, 16);

// Hidden layers of all channels, where they are shared: [TILES * TILE_M, INNER_PITCH].
static_assert(SPLITS == 1 || SHARED, "blocks that split channels share hidden layers");
constexpr int INNER_PITCH = INNER + 8;
constexpr int LAYER = SHARED ? TILES * TILE_M * INNER_PITCH : 0;

// Numbers of x that a block keeps.
constexpr int STATE = round_up(IMAGES * ROWS * WIDTH * OWN, 4);
