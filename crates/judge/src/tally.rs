//! Wins, ties and losses, and how sure they are.

use serde::Serialize;

use crate::verdict::Verdict;

/// The standard normal distribution's quantile for an interval that is right 95 times out of 100.
const Z: f64 = 1.959_963_984_540_054;

/// The outcome of a contest, from the first model's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tally {
    /// Pairs that the first model won in both orders.
    pub wins: usize,
    /// Pairs that the judge found equal in both orders, or in which the orders disagree.
    pub ties: usize,
    /// Pairs that the first model lost in both orders.
    pub losses: usize,
    /// Those of the ties in which the orders disagree.
    pub disagreements: usize,
    /// Pairs without a verdict that could be read; they are in none of the other numbers.
    pub unreadable: usize,
}

/// A share of all pairs, with its 95% interval by Wilson's method.
///
/// Wilson's, because it stays within 0 and 1 and keeps its promise with few pairs and shares near the ends, as contests have them; and
/// because, unlike a bootstrap, it is the same each time and does not shrink to nothing where there were no wins at all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// The share that was counted.
    pub share: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Tally {
    /// Adds a pair by its two verdicts: with the first model in the first place, and in the second. None is one that could not be read.
    pub fn add(&mut self, verdicts: [Option<Verdict>; 2]) {
        match verdicts {
            [Some(Verdict::First), Some(Verdict::Second)] => self.wins += 1,
            [Some(Verdict::Second), Some(Verdict::First)] => self.losses += 1,
            [Some(Verdict::Tie), Some(Verdict::Tie)] => self.ties += 1,
            [Some(_), Some(_)] => {
                self.ties += 1;
                self.disagreements += 1;
            }
            [None, _] | [_, None] => self.unreadable += 1,
        }
    }

    /// Number of pairs that have a verdict.
    pub fn pairs(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    /// The share of one of the counts; none without pairs.
    pub fn share(&self, count: usize) -> Option<Share> {
        let n = self.pairs();
        (n > 0).then(|| wilson(count, n))
    }
}

/// Wilson's interval (1927) of `count` successes in `n`.
fn wilson(count: usize, n: usize) -> Share {
    let (share, n) = (count as f64 / n as f64, n as f64);
    let scale = 1.0 / (1.0 + Z * Z / n);
    let middle = (share + Z * Z / (2.0 * n)) * scale;
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt() * scale;
    Share { share, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{First, Second, Tie};

    #[test]
    fn a_win_is_one_in_both_orders() {
        let mut tally = Tally::default();
        for verdicts in [
            [Some(First), Some(Second)],
            [Some(Second), Some(First)],
            [Some(Tie), Some(Tie)],
            // The same place twice: no verdict about the answers.
            [Some(First), Some(First)],
            [Some(Tie), Some(Second)],
            [None, Some(First)],
            [Some(Tie), None],
        ] {
            tally.add(verdicts);
        }
        assert_eq!(tally, Tally { wins: 1, ties: 3, losses: 1, disagreements: 2, unreadable: 2 });
        assert_eq!(tally.pairs(), 5);
        assert_eq!(Tally::default().share(0), None);
    }

    #[test]
    fn intervals_are_wilsons() {
        #[track_caller]
        fn check(count: usize, n: usize, [low, high]: [f64; 2]) {
            let got = wilson(count, n);
            assert!((got.low - low).abs() < 1e-4 && (got.high - high).abs() < 1e-4, "{got:?}");
        }
        // By scipy 1.17: binomtest(count, n).proportion_ci(method="wilson").
        check(0, 10, [0.0, 0.2775]);
        check(5, 10, [0.2366, 0.7634]);
        check(10, 10, [0.7225, 1.0]);
        check(30, 80, [0.2769, 0.4845]);
    }
}
