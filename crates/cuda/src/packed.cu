// Packed weights: their values, and products of a few rows of activations with them.

/// Codes as a stream of bits in each row, least significant first. `Matrix` in packed.rs is the same.
struct Packed {
    const unsigned *words; // [rows, words_of_row]
    const float *grids;    // [rows, groups, 3]: scale, value of the zero point, zero point
    const float *table;    // the numbers of 16 float codes; null for integers
    unsigned rows, cols, words_of_row, groups, len, bits;
};

template <class S> __device__ void decode(const Packed &packed, S *out) {
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned long long row = at / packed.cols;
    if (row >= packed.rows)
        return;
    unsigned col = (unsigned)(at - row * packed.cols), bit = col * packed.bits, shift = bit % 32;
    const unsigned *word = packed.words + row * packed.words_of_row + bit / 32;
    unsigned code = word[0] >> shift;
    if (shift + packed.bits > 32)
        code |= word[1] << (32 - shift);
    code &= (1u << packed.bits) - 1;
    const float *grid = packed.grids + (row * packed.groups + col / packed.len) * 3;
    float number = packed.table ? packed.table[code] : (float)code - grid[2];
    put(out + at, number * grid[0] + grid[1]);
}

/// Columns that a warp multiplies at once: 32 codes a lane, which take a whole number of words.
#define TILE 1024
/// Of a lane's 32 activations the next lane's are one further, so that lanes read from different banks.
#define PADDED (TILE + TILE / 32)

/// `x [n, cols]` times packed weights -> `y [n, rows]`; `n` is at most `ROWS`, `bias` is null where there is none. A warp computes an
/// output channel: weights are read once, and exact.
template <unsigned BITS, unsigned ROWS>
__device__ void multiply(const Packed &packed, const float *x, unsigned n, const float *bias, float *y) {
    __shared__ float tile[ROWS * PADDED];
    unsigned lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    float sums[ROWS];
#pragma unroll
    for (unsigned m = 0; m < ROWS; m++)
        sums[m] = 0;
    for (unsigned start = 0; start < packed.cols; start += TILE) {
        __syncthreads();
        for (unsigned i = threadIdx.x; i < ROWS * TILE; i += blockDim.x) {
            unsigned m = i / TILE, k = i % TILE;
            bool there = m < n && start + k < packed.cols;
            tile[m * PADDED + k + k / 32] = there ? x[(unsigned long long)m * packed.cols + start + k] : 0;
        }
        __syncthreads();
        unsigned first = start + lane * 32;
        if (row >= packed.rows || first >= packed.cols)
            continue;
        unsigned word = first / 32 * BITS;
        const unsigned *words = packed.words + (unsigned long long)row * packed.words_of_row + word;
        unsigned held[BITS + 1];
#pragma unroll
        for (unsigned i = 0; i < BITS; i++)
            held[i] = word + i < packed.words_of_row ? words[i] : 0;
        held[BITS] = 0;
        const float *grids = packed.grids + (unsigned long long)row * packed.groups * 3, *grid = grids;
        const float *of_lane = tile + lane * 33;
        // A group of a multiple of 32 holds all codes of a lane, or none.
        bool one_group = packed.len % 32 == 0;
        if (one_group)
            grid = grids + first / packed.len * 3;
#pragma unroll
        for (unsigned j = 0; j < 32; j++) {
            unsigned shift = j * BITS % 32, code = held[j * BITS / 32] >> shift;
            if (shift + BITS > 32)
                code |= held[j * BITS / 32 + 1] << (32 - shift);
            code &= (1u << BITS) - 1;
            if (!one_group) {
                unsigned group = (first + j) / packed.len;
                // Beyond the last column activations are 0.
                grid = grids + (group < packed.groups ? group : packed.groups - 1) * 3;
            }
            float value = ((float)code - grid[2]) * grid[0] + grid[1];
#pragma unroll
            for (unsigned m = 0; m < ROWS; m++)
                sums[m] = fmaf(value, of_lane[m * PADDED + j], sums[m]);
        }
    }
    if (row >= packed.rows)
        return;
#pragma unroll
    for (unsigned m = 0; m < ROWS; m++) {
        float sum = sums[m];
        for (int far = 16; far > 0; far /= 2)
            sum = sum + __shfl_xor_sync(0xffffffffu, sum, far);
        if (lane == 0 && m < n)
            y[(unsigned long long)m * packed.rows + row] = sum + (bias ? bias[row] : 0);
    }
}

#define MULTIPLY(BITS, ROWS)                                                                                           \
    __global__ void multiply_w##BITS##_##ROWS(Packed p, const float *x, unsigned n, const float *bias, float *y) {     \
        multiply<BITS, ROWS>(p, x, n, bias, y);                                                                        \
    }
#define MULTIPLY_WIDTH(BITS) MULTIPLY(BITS, 1) MULTIPLY(BITS, 2) MULTIPLY(BITS, 4) MULTIPLY(BITS, 8)

extern "C" {
__global__ void decode_f32(Packed p, float *out) { decode(p, out); }
__global__ void decode_bf16(Packed p, bf16 *out) { decode(p, out); }
MULTIPLY_WIDTH(2)
MULTIPLY_WIDTH(3)
MULTIPLY_WIDTH(4)
}
