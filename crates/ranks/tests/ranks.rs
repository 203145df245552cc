//! Ranks as threads of one process, which meet on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::thread::scope;

use oq_ranks::{Place, Ranks, RanksError};
use tch::{Device, Kind, Tensor};

/// Runs `rank` on each of `size` ranks, and returns what they return, in order.
fn on_ranks<T: Send>(size: usize, rank: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place =
        |rank| Place { rank, size, local: rank, here: size, host: "127.0.0.1".to_owned(), port, interface: None };
    scope(|threads| {
        let run = |at| {
            let rank = &rank;
            threads.spawn(move || rank(Ranks::join(&place(at)).unwrap()))
        };
        let running: Vec<_> = (0..size).map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What a rank adds: numbers of very different sizes, so that the order of a sum shows in its bits.
fn addend(rank: usize, n: i64, kind: Kind) -> Tensor {
    let x = Tensor::arange(n, (Kind::Double, Device::Cpu)) + 1.0;
    let wild = (&x * (rank as f64 + 0.7)).sin() * ((&x * 1.3 + rank as f64 * 2.1).cos() * 12.0).exp();
    wild.to_kind(kind)
}

/// `((r0 + r1) + r2) + ..` of each element.
fn naive(size: usize, n: i64, kind: Kind) -> Vec<f64> {
    let wide = if kind == Kind::BFloat16 { Kind::Float } else { kind };
    let mut ranks = (0..size).map(|rank| addend(rank, n, kind).to_kind(wide));
    let first = ranks.next().unwrap();
    Vec::try_from(ranks.fold(first, |sum, next| sum + next).to_kind(kind).to_kind(Kind::Double)).unwrap()
}

#[test]
fn sums_are_taken_in_the_order_of_ranks() {
    const FORMS: [(i64, Kind); 5] =
        [(1, Kind::Float), (1000, Kind::Float), (7, Kind::BFloat16), (30, Kind::Double), (4001, Kind::Float)];
    for size in 1..=4 {
        let expected = FORMS.map(|(n, kind)| naive(size, n, kind));
        let found = on_ranks(size, |ranks| {
            let sums = ranks.sum(FORMS.iter().map(|&(n, kind)| addend(ranks.rank(), n, kind)).collect()).unwrap();
            sums.iter().map(|sum| Vec::try_from(sum.to_kind(Kind::Double)).unwrap()).collect::<Vec<Vec<f64>>>()
        });
        assert!(found.iter().all(|found| *found == expected), "{size} ranks");
    }
    // Another order has other bits, so the comparison can fail.
    let backwards = (0..3).rev().map(|rank| addend(rank, 1000, Kind::Float)).reduce(|sum, next| sum + next).unwrap();
    assert_ne!(Vec::<f64>::try_from(backwards.to_kind(Kind::Double)).unwrap(), naive(3, 1000, Kind::Float));
}

#[test]
fn all_ranks_agree() {
    let found = on_ranks(3, |ranks| {
        let rank = ranks.rank();
        let largest = ranks.max(vec![Tensor::from_slice(&[rank as f32, -(rank as f32)])]).unwrap().remove(0);
        let whole = Tensor::from_slice(&[rank as f32; 4]).view([2, 2]);
        // Not contiguous, and a part of another one.
        let column = whole.narrow(1, 1, 1);
        ranks.broadcast(2, &[&column]).unwrap();
        ranks.barrier().unwrap();
        let items: Vec<usize> = (0..8).collect();
        (
            Vec::<f32>::try_from(largest).unwrap(),
            Vec::<f32>::try_from(whole.view(-1)).unwrap(),
            (ranks.any(rank == 1).unwrap(), ranks.any(false).unwrap(), ranks.total(rank as f64).unwrap()),
            ranks.part(&items).to_vec(),
            // Two numbers, none, and one.
            ranks.gathered([[0.1, f64::MAX].as_slice(), &[], &[-3.0]][rank]).unwrap(),
        )
    });
    for (rank, (largest, whole, flags, _, gathered)) in found.iter().enumerate() {
        let own = rank as f32;
        assert_eq!((largest, whole, flags), (&vec![2.0, 0.0], &vec![own, 2.0, own, 2.0], &(true, false, 3.0)));
        assert_eq!(*gathered, [0.1, f64::MAX, -3.0]);
    }
    let parts: Vec<_> = found.into_iter().map(|(_, _, _, part, _)| part).collect();
    assert_eq!(parts, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
}

#[test]
fn one_process_is_alone() {
    let ranks = Ranks::alone();
    let x = Tensor::from_slice(&[1.5f32]);
    let same = ranks.sum(vec![x.shallow_clone()]).unwrap().remove(0);
    assert_eq!(same.data_ptr(), x.data_ptr(), "nothing is copied");
    assert!(ranks.is_first() && ranks.any(true).unwrap() && !ranks.any(false).unwrap());
    assert_eq!(ranks.part(&[1, 2, 3]), [1, 2, 3]);
    assert_eq!(ranks.gathered(&[0.5]).unwrap(), [0.5]);
}

#[test]
fn a_rank_that_ends_is_named() {
    let ended = on_ranks(3, |ranks| {
        ranks.barrier().unwrap();
        if ranks.rank() == 1 {
            return None;
        }
        Some(ranks.barrier().unwrap_err())
    });
    for error in ended.into_iter().flatten() {
        assert!(matches!(&error, RanksError::Lost { ranks, .. } if ranks == &[1]), "{error}");
        assert!(error.to_string().starts_with("rank 1 ended"), "{error}");
    }
}

#[test]
fn the_error_of_a_rank_is_passed_on() {
    let ended = on_ranks(3, |ranks| {
        ranks.barrier().unwrap();
        if ranks.rank() == 0 {
            ranks.fail("the disk is full");
            return None;
        }
        Some(ranks.barrier().unwrap_err().to_string())
    });
    assert_eq!(ended[1..], [1, 2].map(|_| Some("rank 0 failed: the disk is full".to_owned())));
}

#[test]
fn no_stub_is_compiled_in() {
    // Symbols of this program: functions of c10d that are called, and no table of virtual functions made from declarations in `stub`. They are
    // spelled backwards, so that this test's own text is not found.
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let has = |drow: &str| {
        let symbol: Vec<u8> = drow.bytes().rev().collect();
        program.windows(symbol.len()).any(|at| at == symbol)
    };
    assert!(has("emantsoHroFeciveDetaerc"));
    // _ZTVN4gloo, and classes of ProcessGroupGloo: 9GlooStoreE, 9AsyncWorkE, 8SendWorkE, 8RecvWorkE.
    for drow in ["oolg4NVTZ_", "EerotSoolG9", "EkroWcnysA9", "EkroWdneS8", "EkroWvceR8"] {
        assert!(!has(drow), "{drow}");
    }
}
