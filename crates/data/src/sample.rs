//! Cuts a long sequence of token ids: random segments for calibration, windows for evaluation.

use oq_random::SplitMix64;

use crate::error::DataError;

/// Number of draws of a start, of which the one that shares the fewest tokens with earlier segments is taken.
const TRIES: usize = 64;

/// `samples` contiguous segments of `seqlen` ids. Each start is drawn uniformly from all `len - seqlen + 1`, so segments may overlap or
/// repeat.
///
/// The starts depend on `(ids.len(), samples, seqlen, seed)` alone, and are the same in every version and on every machine: one draw of
/// [`SplitMix64`] each.
///
/// Errors: a text shorter than one segment, a segment of no tokens.
pub fn segments(ids: &[u32], samples: usize, seqlen: usize, seed: u64) -> Result<Vec<Vec<u32>>, DataError> {
    segments_and_new(ids, samples, 0, seqlen, seed)
}

/// The segments of [`segments`], then `new` ones that share no token with any earlier segment, if the text is long enough. Each is the
/// first of 64 draws without overlap, else the one that shares the fewest tokens.
pub fn segments_and_new(
    ids: &[u32],
    samples: usize,
    new: usize,
    seqlen: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>, DataError> {
    if seqlen == 0 {
        return Err(DataError::EmptySegment);
    }
    let Some(last_start) = ids.len().checked_sub(seqlen) else {
        return Err(DataError::TextTooShort { tokens: ids.len(), seqlen });
    };
    let mut random = SplitMix64::new(seed);
    let mut draw = || random.below(last_start as u64 + 1) as usize;
    let mut starts: Vec<usize> = (0..samples).map(|_| draw()).collect();
    for _ in 0..new {
        let shared = |start: usize| starts.iter().map(|&other| seqlen.saturating_sub(start.abs_diff(other))).sum();
        let mut best = (usize::MAX, 0);
        for _ in 0..TRIES {
            let start = draw();
            best = best.min((shared(start), start));
            if best.0 == 0 {
                break;
            }
        }
        starts.push(best.1);
    }
    Ok(starts.into_iter().map(|start| ids[start..start + seqlen].to_vec()).collect())
}

/// Non-overlapping windows of `seqlen` ids, in order. A last partial window is dropped; a `seqlen` of 0 gives none.
pub fn windows(ids: &[u32], seqlen: usize) -> impl ExactSizeIterator<Item = &[u32]> {
    let ids = if seqlen == 0 { &[] } else { ids };
    ids.chunks_exact(seqlen.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn starts_never_change() {
        let ids: Vec<u32> = (0..1000).collect();
        let starts: Vec<u32> = segments(&ids, 6, 100, 2).unwrap().iter().map(|s| s[0]).collect();
        assert_eq!(starts, STARTS_OF_SEED_2);
    }

    /// A change here changes everybody's calibration set.
    const STARTS_OF_SEED_2: [u32; 6] = [373, 785, 434, 569, 836, 446];

    #[test]
    fn new_segments_share_nothing_where_there_is_room() {
        let starts = |len: u32, new| -> Vec<u32> {
            let ids: Vec<u32> = (0..len).collect();
            segments_and_new(&ids, 6, new, 100, 2).unwrap().iter().map(|s| s[0]).collect()
        };
        // Half of the text at most.
        let roomy = starts(2400, 6);
        for (at, start) in roomy.iter().enumerate().skip(6) {
            assert!(roomy[..at].iter().all(|other| other.abs_diff(*start) >= 100), "{roomy:?}");
        }
        // Those before them are what they are without.
        assert_eq!(starts(1000, 3)[..6], STARTS_OF_SEED_2);
        // Two segments long, and six drawn before: they overlap, and are had all the same.
        assert_eq!(starts(200, 4).len(), 10);
    }

    #[test]
    fn starts_are_uniform_and_reach_both_ends() {
        let ids: Vec<u32> = (0..13).collect();
        let mut counts = [0usize; 10];
        for segment in segments(&ids, 20_000, 4, 7).unwrap() {
            counts[segment[0] as usize] += 1;
        }
        // 2000 expected per start, standard deviation 42: 5 of them.
        assert!(counts.iter().all(|&n| n.abs_diff(2000) < 212), "{counts:?}");
    }

    #[test]
    fn too_short_says_both_numbers() {
        let err = segments(&[1, 2, 3], 1, 4, 0).unwrap_err();
        assert!(matches!(err, DataError::TextTooShort { tokens: 3, seqlen: 4 }), "{err}");
        assert!(matches!(segments(&[1], 1, 0, 0), Err(DataError::EmptySegment)));
        assert_eq!(segments(&[1, 2, 3], 2, 3, 0).unwrap(), [[1, 2, 3], [1, 2, 3]]);
    }

    proptest! {
        #[test]
        fn segments_are_contiguous_and_repeatable(
            len in 1usize..500, seqlen in 1usize..500, samples in 0usize..20, seed: u64
        ) {
            let ids: Vec<u32> = (0..len as u32).collect();
            match segments(&ids, samples, seqlen, seed) {
                Err(_) => prop_assert!(seqlen > len),
                Ok(found) => {
                    prop_assert_eq!(found.len(), samples);
                    for s in &found {
                        prop_assert_eq!(s.len(), seqlen);
                        prop_assert!(s.windows(2).all(|w| w[1] == w[0] + 1));
                    }
                    prop_assert_eq!(found, segments(&ids, samples, seqlen, seed).unwrap());
                }
            }
        }

        #[test]
        fn windows_are_the_text_less_its_tail(len in 0usize..500, seqlen in 0usize..60) {
            let ids: Vec<u32> = (0..len as u32).collect();
            let found: Vec<&[u32]> = windows(&ids, seqlen).collect();
            prop_assert_eq!(found.len(), len.checked_div(seqlen).unwrap_or(0));
            prop_assert!(found.iter().all(|w| w.len() == seqlen));
            let joined = found.concat();
            prop_assert_eq!(&joined[..], &ids[..joined.len()]);
        }
    }
}
