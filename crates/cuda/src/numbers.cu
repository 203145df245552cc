// Numbers as all kernels read and write them: f32, and bf16 by its bits, so that no header is needed.

struct bf16 {
    unsigned short bits;
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void put(float *at, float x) { *at = x; }
/// The nearest; of two the even one. NaN stays NaN.
__device__ inline void put(bf16 *at, float x) {
    unsigned bits = __float_as_uint(x);
    unsigned nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    at->bits = (unsigned short)(x != x ? (bits >> 16 | 0x40u) : nearest);
}
