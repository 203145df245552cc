//! How sure an outcome is: `cargo run --release --example count -- 30 20 30` for wins, ties and losses.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_judge::{Tally, Verdict};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let counts = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [wins, ties, losses] = counts[..] else { return Err("give three numbers: wins, ties, losses".into()) };
    let mut tally = Tally::default();
    let verdicts = [
        (wins, [Verdict::First, Verdict::Second]),
        (ties, [Verdict::Tie, Verdict::Tie]),
        (losses, [Verdict::Second, Verdict::First]),
    ];
    for (count, in_both_orders) in verdicts {
        (0..count).for_each(|_| tally.add(in_both_orders.map(Some)));
    }
    for (name, count) in [("wins", tally.wins), ("ties", tally.ties), ("losses", tally.losses)] {
        let share = tally.share(count).ok_or("no pairs")?;
        println!(
            "{name:<7}{count:>4}  {:.1}%  (95%: {:.1} to {:.1}%)",
            share.share * 100.0,
            share.low * 100.0,
            share.high * 100.0
        );
    }
    Ok(())
}
