//! A sequence at once, and the same token by token over a cache: one result.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use half::bf16;
use oq_attention::{Cache, Shape, forward, is_fast};
use oq_random::SplitMix64;

fn main() {
    let shape = Shape { batch: 1, heads: 8, kv_heads: 2, tokens: 64, head_dim: 32 };
    let mut random = SplitMix64::new(1);
    let mut some = |n: usize| (0..n).map(|_| bf16::from_f64(random.normal())).collect::<Vec<bf16>>();
    let (q, k, v) = (some(shape.q_len()), some(shape.kv_len()), some(shape.kv_len()));
    let at_once = forward(shape, &q, &k, &v).out; // [heads, tokens, head_dim]

    // Of one position: [heads, head_dim] of [heads, tokens, head_dim].
    let Shape { heads, tokens, head_dim, .. } = shape;
    let of = |all: &[bf16], position: usize| -> Vec<bf16> {
        all.chunks(tokens * head_dim).flat_map(|head| head[position * head_dim..][..head_dim].to_vec()).collect()
    };
    let mut cache = Cache::new(shape.kv_heads, head_dim);
    let mut largest = 0.0f32;
    for position in 0..tokens {
        cache.push(&of(&k, position), &of(&v, position));
        let mut out = vec![0.0; heads * head_dim];
        cache.attend(heads, &of(&q, position), &mut out);
        let expected = of(&at_once, position);
        let differences = out.iter().zip(expected).map(|(got, expected)| (got - expected.to_f32()).abs());
        largest = differences.fold(largest, f32::max);
    }
    println!("{} positions, {} bytes of cache, largest difference {largest:.4}", cache.len(), cache.bytes());
    println!("this processor multiplies bf16: {}", is_fast());
}
