// Learnable weight clipping: a warp computes a group. The same operations in the same order as the loops of `oq-lwc`, so that codes are
// the same; only sums over a group have another order.

/// A weight divided into groups that follow one another. `Clip` in clip.rs is the same.
struct Clip {
    const float *weight;  // [groups, len]
    const float *offsets; // the same, in units of the scale; null where there are none
    const float *hi;      // [groups], the fraction of the maximum at which a group is clipped
    const float *lo;      // [groups], of the minimum
    unsigned long long groups;
    unsigned len;
    unsigned zero; // what lies at a grid's zero: 0 a code that depends on the range, 1 the minimum, 2 `centre`, 3 `centre`, full range
    float max_code;
    float steps;
    float centre;
    float scale_min;
    float scale_max;
};

__device__ inline float clamped(float x, float min, float max) {
    float raised = x < min ? min : x;
    return raised > max ? max : raised;
}

/// Rounds to nearest, ties to even; `x` is at most a few hundred.
__device__ inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

__device__ inline float warp_sum(float x) {
    for (int far = 16; far > 0; far /= 2)
        x = x + __shfl_xor_sync(0xffffffffu, x, far);
    return x;
}

/// One group, as a lane of its warp sees it.
struct Group {
    const float *weight;
    const float *offsets;
    unsigned len, lane;
    float max, min, a, b;
    float scale, base, lowest, highest, below, above;
    float hi_slope, lo_slope, base_slope;

    __device__ Group(const Clip &clip, unsigned long long at, unsigned lane) : len(clip.len), lane(lane) {
        weight = clip.weight + at * clip.len;
        offsets = clip.offsets ? clip.offsets + at * clip.len : nullptr;
        a = clip.hi[at];
        b = clip.lo[at];
        max = 0;
        min = 0;
        for (unsigned i = lane; i < len; i += 32) {
            float w = weight[i];
            max = w > max ? w : max;
            min = w < min ? w : min;
        }
        for (int far = 16; far > 0; far /= 2) {
            float larger = __shfl_xor_sync(0xffffffffu, max, far), smaller = __shfl_xor_sync(0xffffffffu, min, far);
            max = larger > max ? larger : max;
            min = smaller < min ? smaller : min;
        }
        float hi = a * max, depth = 0 - b * min;
        // Not of the clipped ends: learning must not turn the codes of a group.
        bool upwards = max >= 0 - min;
        float width, hi_part;
        if (clip.zero <= 1) {
            width = hi + depth;
            hi_part = 1;
        } else if (clip.zero == 3) {
            width = upwards ? hi : depth;
            hi_part = upwards ? 1 : 0;
        } else {
            width = hi >= depth ? hi : depth;
            hi_part = hi > depth ? 1.0f : hi == depth ? 0.5f : 0.0f;
        }
        float free = width / clip.steps, size = clamped(free, clip.scale_min, clip.scale_max);
        float slope = free == size ? 1.0f / clip.steps : 0.0f;
        // Code 0 lies below the zero point, so a scale is negative if the larger end is positive.
        bool turned = clip.zero == 3 && upwards;
        scale = turned ? 0 - size : size;
        float zero_point = clip.zero == 0   ? nearest(clamped(depth / scale, 0, clip.max_code))
                           : clip.zero == 1 ? 0
                                            : clip.centre;
        base = clip.zero == 1 ? 0 - depth : 0;
        lowest = 0 - zero_point;
        highest = clip.max_code - zero_point;
        below = lowest - 1;
        above = highest + 1;
        hi_slope = slope * hi_part * (turned ? -1.0f : 1.0f);
        lo_slope = slope * (clip.zero <= 1 ? 1.0f : 1.0f - hi_part);
        base_slope = clip.zero == 1 ? 1 : 0;
    }

    /// The place of a weight on the grid, and its code minus the zero point; whether that was not clamped.
    __device__ bool encode(float w, float offset, float &place, float &code) const {
        place = (w - base) / scale;
        float rounded = nearest(clamped(place + offset, below, above));
        code = clamped(rounded, lowest, highest);
        return code == rounded;
    }

    __device__ float offset(unsigned i) const { return offsets ? offsets[i] : 0; }
};

/// The group of this warp.
__device__ inline unsigned long long group_of_warp() {
    return (unsigned long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
}

template <class S> __device__ void clip(const Clip &clip, S *out) {
    unsigned long long at = group_of_warp();
    if (at >= clip.groups)
        return;
    Group group(clip, at, threadIdx.x % 32);
    for (unsigned i = group.lane; i < group.len; i += 32) {
        float place, code;
        group.encode(group.weight[i], group.offset(i), place, code);
        put(out + at * group.len + i, code * group.scale + group.base);
    }
}

template <class S>
__device__ void gradients(const Clip &clip, const S *grad, float *gamma, float *beta, float *d_weight) {
    unsigned long long at = group_of_warp();
    if (at >= clip.groups)
        return;
    Group group(clip, at, threadIdx.x % 32);
    grad += at * group.len;
    float sum = 0, clamped_sum = 0, at_max = 0, at_min = 0;
    for (unsigned i = group.lane; i < group.len; i += 32) {
        float place, code, w = group.weight[i], g = wide(grad[i]);
        bool inside = group.encode(w, group.offset(i), place, code);
        sum = sum + g * (code - (inside ? place : 0));
        clamped_sum = clamped_sum + (inside ? 0 : g);
        at_max = at_max + (w == group.max ? 1 : 0);
        at_min = at_min + (w == group.min ? 1 : 0);
    }
    sum = warp_sum(sum);
    clamped_sum = warp_sum(clamped_sum);
    float d_hi = sum * group.hi_slope;
    // A clamped weight moves with the minimum: dw'/dbase = 1 - k.
    float d_depth = sum * group.lo_slope - clamped_sum * group.base_slope;
    if (group.lane == 0) {
        gamma[at] = d_hi * group.max * group.a * (1 - group.a);
        beta[at] = 0 - d_depth * group.min * group.b * (1 - group.b);
    }
    if (!d_weight)
        return;
    // Weights that are tied for an extreme share its gradient.
    at_max = warp_sum(at_max);
    at_min = warp_sum(at_min);
    float pull_max = d_hi * group.a / (at_max < 1 ? 1 : at_max);
    float pull_min = d_depth * group.b / (at_min < 1 ? 1 : at_min);
    for (unsigned i = group.lane; i < group.len; i += 32) {
        float place, code, w = group.weight[i];
        bool inside = group.encode(w, group.offset(i), place, code);
        float straight = inside ? wide(grad[i]) : 0;
        d_weight[at * group.len + i] = straight + (w == group.max ? pull_max : 0) - (w == group.min ? pull_min : 0);
    }
}

/// Moves `offsets` by `rate` times the gradient and the factors of its row and column, at most `largest`.
template <class S>
__device__ void move_offsets(const Clip &clip, const S *grad, const float *rows, const float *columns,
                             unsigned groups_of_row, float rate, float largest, float *offsets) {
    unsigned long long at = group_of_warp();
    if (at >= clip.groups)
        return;
    Group group(clip, at, threadIdx.x % 32);
    grad += at * group.len;
    offsets += at * group.len;
    columns += at % groups_of_row * group.len;
    // An offset moves a value by its product with the scale, which may be negative.
    float signed_rate = group.scale < 0 ? 0 - rate : rate, row = rows[at / groups_of_row];
    for (unsigned i = group.lane; i < group.len; i += 32) {
        float place, code, v = offsets[i];
        bool inside = group.encode(group.weight[i], v, place, code);
        float step = clamped(wide(grad[i]) * row * columns[i], 0 - largest, largest);
        offsets[i] = v - (inside ? step * signed_rate : 0);
    }
}

extern "C" {
__global__ void clip_f32(Clip c, float *out) { clip(c, out); }
__global__ void clip_bf16(Clip c, bf16 *out) { clip(c, out); }
__global__ void gradients_f32(Clip c, const float *grad, float *gamma, float *beta, float *d_weight) {
    gradients(c, grad, gamma, beta, d_weight);
}
__global__ void gradients_bf16(Clip c, const bf16 *grad, float *gamma, float *beta, float *d_weight) {
    gradients(c, grad, gamma, beta, d_weight);
}
__global__ void move_offsets_f32(Clip c, const float *grad, const float *rows, const float *columns,
                                 unsigned groups_of_row, float rate, float largest, float *offsets) {
    move_offsets(c, grad, rows, columns, groups_of_row, rate, largest, offsets);
}
__global__ void move_offsets_bf16(Clip c, const bf16 *grad, const float *rows, const float *columns,
                                  unsigned groups_of_row, float rate, float largest, float *offsets) {
    move_offsets(c, grad, rows, columns, groups_of_row, rate, largest, offsets);
}
}
