//! Products with packed weights compared with libtorch: one row through all linears of a decoder layer (decode), and 512 rows through
//! single linears (prefill), with 8-bit activations too where the kernel has them. The rivals are libtorch's int4 product and its `linear` in bf16 and f32. The machine's limits, memory
//! bandwidth and the fastest bf16 product, are measured in the same rounds, and everything takes turns.
//!
//!     cargo xtask bench --bench kernels
//!     cargo xtask bench --bench kernels -- decode llama2-7b
//!
//! Words after `--` select `decode`, `prefill` and models. Shares and ratios are computed within each round, because the limits of a
//! shared machine vary; their medians are shown.

#![allow(missing_docs, clippy::print_stdout, reason = "a bench is a program that prints")]

mod limits;
mod sets;
#[path = "../timing.rs"]
mod timing;

use oq_kernels::Kernel;
use tch::Kind;

use crate::limits::{Reads, square_gflops};
use crate::sets::{Int4, MODELS, Model, Ours, Torch};
use crate::timing::{median, secs_of};

/// Bits of the packed weights.
const BITS: [u32; 3] = [4, 3, 2];

/// The libtorch products that compute the same.
const RIVALS: [&str; 3] = ["int4", "bf16", "f32"];

const DECODE_ROUNDS: usize = 15;
const PREFILL_ROUNDS: usize = 5;
const PREFILL_ROWS: usize = 512;

fn main() {
    oq_runtime::settle().expect("the bench starts itself again, with the settings of the program");
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let names = |what: &[&str]| !words.iter().any(|word| what.contains(&word.as_str()));
    let chosen = |word: &str, all: &[&str]| names(all) || words.iter().any(|chosen| chosen == word);
    let models: Vec<&str> = MODELS.iter().map(|model| model.name).collect();
    for word in &words {
        assert!(models.contains(&word.as_str()) || ["decode", "prefill"].contains(&word.as_str()), "what is {word}?");
    }
    let models = MODELS.iter().filter(|model| chosen(model.name, &models));

    let threads = rayon::current_num_threads();
    tch::set_num_threads(threads as i32);
    tch::manual_seed(0);
    println!("{threads} threads, kernel {:?}", Kernel::chosen().expect("a kernel"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        for model in models {
            if chosen("decode", &["decode", "prefill"]) {
                decode(model);
            }
            if chosen("prefill", &["decode", "prefill"]) {
                prefill(model);
            }
        }
    });
}

/// One row through all linears of a layer.
fn decode(model: &Model) {
    let mut reads = Reads::new();
    let contest = Contest::run(model.linears, model.group, 1, DECODE_ROUNDS, &mut || reads.measure());
    println!("\n{}, one row through a layer of {:.0} million weights", model.name, contest.weights / 1e6);
    println!("reading memory: {}", reads.describe());
    println!("| weights | MB | ms | GB/s | of reading | x int4 | x bf16 | x f32 |\n|---|---|---|---|---|---|---|---|");
    for entrant in &contest.entrants {
        let speed: Vec<f64> = entrant.secs.iter().map(|secs| entrant.bytes / secs / 1e9).collect();
        println!(
            "| {} | {:.1} | {:.2} | {:.1} | {:.1} % | {} |",
            entrant.name,
            entrant.bytes / 1e6,
            1e3 * median(entrant.secs.clone()),
            median(speed.clone()),
            100.0 * median(ratios(&speed, reads.best())),
            contest.times(entrant),
        );
    }
}

/// Many rows through a single linear each.
fn prefill(model: &Model) {
    println!("\n{}, {PREFILL_ROWS} rows", model.name);
    println!("| linear | weights | ms | GFLOP/s | bf16 peak | of it | x int4 | x bf16 | x f32 |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for &shape in model.many {
        let mut peaks = Vec::new();
        let mut limit = || peaks.push(square_gflops(Kind::BFloat16));
        let contest = Contest::run(&[shape], model.group, PREFILL_ROWS, PREFILL_ROUNDS, &mut limit);
        let gflop = 2.0 * PREFILL_ROWS as f64 * contest.weights / 1e9;
        for entrant in &contest.entrants {
            let speed: Vec<f64> = entrant.secs.iter().map(|secs| gflop / secs).collect();
            println!(
                "| {} x {} | {} | {:.1} | {:.0} | {:.0} | {:.1} % | {} |",
                shape[0],
                shape[1],
                entrant.name,
                1e3 * median(entrant.secs.clone()),
                median(speed.clone()),
                median(peaks.clone()),
                100.0 * median(ratios(&speed, &peaks)),
                contest.times(entrant),
            );
        }
    }
}

/// The times of all entrants through the same linears.
struct Contest {
    /// Number of weights of all linears together.
    weights: f64,
    /// Our product, then [`RIVALS`].
    entrants: Vec<Entrant>,
}

struct Entrant {
    name: String,
    /// Bytes of the weights.
    bytes: f64,
    /// Seconds of each round.
    secs: Vec<f64>,
}

impl Contest {
    /// `limit` is measured in each round, too.
    fn run(shapes: &[[usize; 2]], group: usize, rows: usize, rounds: usize, limit: &mut dyn FnMut()) -> Self {
        let weights = shapes.iter().map(|[outs, ins]| outs * ins).sum::<usize>() as f64;
        let kernel = Kernel::chosen().expect("a kernel");
        let rounded = if rows > kernel.few_rows && kernel.has_int8() { &BITS[..] } else { &[] };
        let packed = |bits: &u32| (format!("W{bits}g{group}"), Ours::new(shapes, *bits, group, rows));
        let in_8_bits = |bits: &u32| (format!("W{bits}g{group} int8"), packed(bits).1.with_int8());
        let (names, mut ours): (Vec<_>, Vec<Ours>) =
            BITS.iter().map(packed).chain(rounded.iter().map(in_8_bits)).unzip();
        let int4 = Int4::new(&ours[0], rows);
        int4.check(&mut ours[0]);
        let dense = [Kind::BFloat16, Kind::Float].map(|kind| Torch::new(shapes, kind, rows));

        let entrant = |name: String, bytes: usize| Entrant { name, bytes: bytes as f64, secs: Vec::new() };
        let packed = names.into_iter().zip(&ours).map(|(name, ours)| entrant(name, ours.bytes()));
        let bytes = [int4.bytes(), 2 * weights as usize, 4 * weights as usize];
        let rivals = RIVALS.iter().zip(bytes).map(|(name, bytes)| entrant(format!("libtorch {name}"), bytes));
        let mut entrants: Vec<Entrant> = packed.chain(rivals).collect();

        let mut runs: Vec<Box<dyn FnMut() + '_>> = Vec::new();
        runs.extend(ours.iter_mut().map(|ours| Box::new(|| ours.run()) as Box<dyn FnMut()>));
        runs.push(Box::new(|| drop(int4.run())));
        runs.extend(dense.iter().map(|dense| Box::new(|| dense.run()) as Box<dyn FnMut()>));
        runs.iter_mut().for_each(|run| run());
        for _ in 0..rounds {
            limit();
            for (entrant, run) in entrants.iter_mut().zip(&mut runs) {
                entrant.secs.push(secs_of(run));
            }
        }
        Self { weights, entrants }
    }

    /// The speed relative to each rival.
    fn times(&self, entrant: &Entrant) -> String {
        let rivals = &self.entrants[self.entrants.len() - RIVALS.len()..];
        let times = rivals.iter().map(|rival| format!("{:.2}", median(ratios(&rival.secs, &entrant.secs))));
        times.collect::<Vec<_>>().join(" | ")
    }
}

fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}
