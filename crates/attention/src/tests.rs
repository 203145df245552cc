//! Against the definition in f64, for every instruction set that the processor has.

use half::bf16;
use oq_isa::Isa;
use oq_random::SplitMix64;

use super::*;
use crate::backward::backward_with;
use crate::choice;
use crate::forward::forward_with;
use crate::loops::Loops;

/// All loops that this processor runs.
fn all() -> impl Iterator<Item = (&'static str, &'static dyn Loops)> {
    let own = [Isa::Scalar, Isa::Avx512Bf16].into_iter().filter(|isa| isa.is_available());
    own.map(|isa| (isa.name(), choice::of(isa)))
}

/// Numbers between -1 and 1 that look random, times `size`.
fn numbers(len: usize, seed: u64, size: f64) -> Vec<bf16> {
    let mut random = SplitMix64::new(seed);
    (0..len).map(|_| bf16::from_f64((2.0 * random.unit() - 1.0) * size)).collect()
}

/// Output and gradients of one head by the definition, and the same with every term of a sum taken without its sign: what errors are
/// shares of.
struct Exact {
    out: Vec<[f64; 2]>,
    q: Vec<[f64; 2]>,
    k: Vec<[f64; 2]>,
    v: Vec<[f64; 2]>,
}

fn exact_head(t: usize, d: usize, [q, k, v, d_out]: [&[bf16]; 4]) -> Exact {
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    let [q, k, v, d_out] = [q, k, v, d_out].map(wide);
    let dot = |a: &[f64], i: usize, b: &[f64], j: usize| -> f64 { (0..d).map(|c| a[i * d + c] * b[j * d + c]).sum() };
    let scale = (d as f64).powf(-0.5);
    let zeros = || vec![[0.0; 2]; t * d];
    let mut exact = Exact { out: zeros(), q: zeros(), k: zeros(), v: zeros() };
    let add = |to: &mut [f64; 2], term: f64, size: f64| *to = [to[0] + term, to[1] + size.abs()];
    for i in 0..t {
        let scores: Vec<f64> = (0..=i).map(|j| scale * dot(&q, i, &k, j)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let probs: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
        let d_probs: Vec<f64> = (0..=i).map(|j| dot(&d_out, i, &v, j)).collect();
        let mean: f64 = probs.iter().zip(&d_probs).map(|(p, d)| p * d).sum();
        let mean_size: f64 = probs.iter().zip(&d_probs).map(|(p, d)| p * d.abs()).sum();
        for j in 0..=i {
            let d_score = scale * probs[j] * (d_probs[j] - mean);
            let d_score_size = scale * probs[j] * (d_probs[j].abs() + mean_size);
            for c in 0..d {
                let (row, column) = (i * d + c, j * d + c);
                add(&mut exact.out[row], probs[j] * v[column], probs[j] * v[column]);
                add(&mut exact.v[column], probs[j] * d_out[row], probs[j] * d_out[row]);
                add(&mut exact.q[row], d_score * k[column], d_score_size * k[column]);
                add(&mut exact.k[column], d_score * q[row], d_score_size * q[row]);
            }
        }
    }
    exact
}

/// Largest difference, as a share of the largest sum of terms without signs.
fn error(ours: &[bf16], exact: &[[f64; 2]]) -> f64 {
    assert_eq!(ours.len(), exact.len());
    let largest = exact.iter().fold(0.0, |m: f64, [_, size]| m.max(*size));
    let difference = ours.iter().zip(exact).fold(0.0, |m: f64, (a, [b, _])| {
        assert!(a.is_finite());
        m.max((a.to_f64() - b).abs())
    });
    if difference == 0.0 { 0.0 } else { difference / largest }
}

/// bf16 has 8 digits: probabilities, their gradients, the output in `rowsum(O dO)` and the results are each rounded by up to 2^-9 of
/// themselves. Four such errors make 2^-7 if all have one sign.
const TOLERANCE: f64 = 0.0078125;

fn compare(shape: Shape, size: f64) {
    let [q, d_out] = [1, 2].map(|seed| numbers(shape.q_len(), seed, size));
    let [k, v] = [3, 4].map(|seed| numbers(shape.kv_len(), seed, size));
    let (t, d, len) = (shape.tokens, shape.head_dim, shape.head_len());
    for (name, loops) in all() {
        let kept = forward_with(loops, shape, &q, &k, &v);
        let grads = backward_with(loops, shape, [&q, &k, &v], &kept, &d_out);
        let [mut out, mut d_q] = [(); 2].map(|()| Vec::new());
        let [mut d_k, mut d_v] = [(); 2].map(|()| vec![[0.0; 2]; shape.kv_len()]);
        for task in 0..shape.batch * shape.heads {
            let own = task * len..(task + 1) * len;
            let inputs = [&q[own.clone()], shape.kv_of(&k, task), shape.kv_of(&v, task), &d_out[own]];
            let exact = exact_head(t, d, inputs);
            out.extend(exact.out);
            d_q.extend(exact.q);
            let start = task / shape.queries_per_kv() * len;
            for (sum, part) in [(&mut d_k, exact.k), (&mut d_v, exact.v)] {
                sum[start..].iter_mut().zip(part).for_each(|(sum, part)| *sum = [sum[0] + part[0], sum[1] + part[1]]);
            }
        }
        for (what, ours, exact) in
            [("out", &kept.out, out), ("dq", &grads.q, d_q), ("dk", &grads.k, d_k), ("dv", &grads.v, d_v)]
        {
            let error = error(ours, &exact);
            assert!(error <= TOLERANCE, "{name}, {shape:?}, {size}: {what} is {error} off");
        }
    }
}

#[test]
fn equals_its_definition_and_so_do_gradients() {
    for tokens in [2, 3, 31, 63, 64, 65, 130, 330] {
        for head_dim in [2, 5, 16, 64, 80, 128] {
            compare(Shape { batch: 1, heads: 1, kv_heads: 1, tokens, head_dim }, 1.5);
        }
    }
}

#[test]
fn heads_and_sequences_are_apart_and_shared_ones_are_summed() {
    for (heads, kv_heads) in [(4, 4), (4, 2), (6, 1)] {
        compare(Shape { batch: 2, heads, kv_heads, tokens: 37, head_dim: 24 }, 1.0);
    }
}

#[test]
fn sharp_attention_stays_finite() {
    // Scores up to several hundred: nearly all probabilities are 0 or 1.
    compare(Shape { batch: 1, heads: 2, kv_heads: 2, tokens: 96, head_dim: 64 }, 12.0);
}

#[test]
fn one_position_mixes_nothing_and_none_is_nothing() {
    let shape = Shape { batch: 1, heads: 2, kv_heads: 1, tokens: 1, head_dim: 4 };
    let (q, kv) = (numbers(shape.q_len(), 1, 2.0), numbers(shape.kv_len(), 2, 2.0));
    for (_, loops) in all() {
        let kept = forward_with(loops, shape, &q, &kv, &kv);
        assert_eq!(kept.out, [&kv[..], &kv].concat());
        let grads = backward_with(loops, shape, [&q, &kv, &kv], &kept, &q);
        assert!(grads.q.iter().chain(&grads.k).all(|&x| x == bf16::ZERO), "one weight is always 1");
    }
    let none = Shape { tokens: 0, ..shape };
    assert!(forward(none, &[], &[], &[]).out.is_empty());
}

#[test]
fn threads_change_nothing() {
    let shape = Shape { batch: 2, heads: 6, kv_heads: 2, tokens: 37, head_dim: 24 };
    let [q, d_out] = [1, 2].map(|seed| numbers(shape.q_len(), seed, 1.0));
    let [k, v] = [3, 4].map(|seed| numbers(shape.kv_len(), seed, 1.0));
    let on = |threads: usize| {
        let run = || {
            let kept = forward(shape, &q, &k, &v);
            let grads = backward(shape, &q, &k, &v, &kept, &d_out);
            let mut cache = Cache::new(shape.kv_heads, shape.head_dim);
            let of_one = shape.kv_heads * shape.head_len();
            cache.push(&k[..of_one], &v[..of_one]);
            let mut out = vec![0.0; shape.heads * shape.head_dim];
            cache.attend(shape.heads, &q[..out.len()], &mut out);
            (kept.out, [grads.q, grads.k, grads.v], out)
        };
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started").install(run)
    };
    assert_eq!(on(1), on(5));
}

#[test]
#[should_panic(expected = "elements of q")]
fn lengths_are_checked() {
    let shape = Shape { batch: 1, heads: 1, kv_heads: 1, tokens: 2, head_dim: 2 };
    forward(shape, &[bf16::ZERO; 3], &[bf16::ZERO; 4], &[bf16::ZERO; 4]);
}

/// A sequence that comes in pieces, each of which attends to all before it.
#[track_caller]
fn check_cache(heads: usize, kv_heads: usize, head_dim: usize, pieces: &[usize]) {
    let shape = Shape { batch: 1, heads, kv_heads, tokens: pieces.iter().sum(), head_dim };
    let q = numbers(shape.q_len(), 5, 1.5);
    let [k, v] = [6, 7].map(|seed| numbers(shape.kv_len(), seed, 1.5));
    let exact: Vec<Vec<[f64; 2]>> = (0..heads)
        .map(|head| {
            let q = &q[head * shape.head_len()..][..shape.head_len()];
            exact_head(shape.tokens, head_dim, [q, shape.kv_of(&k, head), shape.kv_of(&v, head), q]).out
        })
        .collect();
    for (name, loops) in all() {
        let mut cache = Cache::new(kv_heads, head_dim);
        let mut start = 0;
        for &n in pieces {
            let own = |x: &[bf16]| -> Vec<bf16> {
                let heads = x.chunks_exact(shape.head_len());
                heads.flat_map(|head| &head[start * head_dim..(start + n) * head_dim]).copied().collect()
            };
            cache.push(&own(&k), &own(&v));
            let mut out = vec![f32::NAN; heads * n * head_dim];
            cache.attend_with(loops, heads, &own(&q), &mut out);
            let out: Vec<bf16> = out.into_iter().map(bf16::from_f32).collect();
            let exact: Vec<[f64; 2]> =
                exact.iter().flat_map(|head| &head[start * head_dim..(start + n) * head_dim]).copied().collect();
            let error = error(&out, &exact);
            assert!(error <= TOLERANCE, "{name}, {shape:?}, {n} from {start}: {error} off");
            start += n;
        }
        assert_eq!(cache.len(), shape.tokens);
    }
}

#[test]
fn a_sequence_in_pieces_is_the_whole_one() {
    for (heads, kv_heads) in [(1, 1), (4, 2), (6, 2), (7, 1)] {
        check_cache(heads, kv_heads, 64, &[5, 1, 1, 57, 1, 1, 70, 1, 3]);
    }
    for head_dim in [2, 5, 80, 128] {
        check_cache(2, 2, head_dim, &[1, 1, 1, 64, 1, 66, 1]);
    }
}

#[test]
fn a_cache_takes_f32_and_grows_by_what_it_holds() {
    let mut cache = Cache::new(2, 16);
    assert!(cache.is_empty() && cache.bytes() == 0);
    cache.push(&[1.0f32; 32], &[2.0f32; 32]);
    let mut out = [0.0; 4 * 16];
    cache.attend(4, &[0.5f32; 4 * 16], &mut out);
    assert_eq!(out, [2.0; 4 * 16]);
    // 64 positions, 2 bytes of 2 heads of 16 channels, twice.
    assert_eq!(cache.bytes(), 64 * 2 * 2 * 16 * 2);
}
