//! Two processes on this machine sum 64 MiB, by shares of the elements and, for comparison, by sending everything to everyone.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use oq_ranks::{Place, Ranks};
use tch::{Device, Kind, Tensor};

const SIZE: usize = 2;
const ROUNDS: u32 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tch::set_num_threads(1);
    if let Some(place) = Place::of_environment()? {
        return measure(&Ranks::join(&place)?);
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", SIZE.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).spawn()
    };
    let started = (0..SIZE).map(start).collect::<Result<Vec<_>, _>>()?;
    for mut process in started {
        assert!(process.wait()?.success());
    }
    Ok(())
}

fn measure(ranks: &Ranks) -> Result<(), Box<dyn std::error::Error>> {
    let mine = Tensor::full([16 << 20], ranks.rank() as f64 + 0.5, (Kind::Float, Device::Cpu));
    ranks.barrier()?;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let sum = ranks.sum(vec![mine.shallow_clone()])?.remove(0);
        assert_eq!(sum.double_value(&[0]), (SIZE * SIZE) as f64 / 2.0);
    }
    if ranks.is_first() {
        println!("{:.3} s for a sum of 64 MiB over {SIZE} processes", (started.elapsed() / ROUNDS).as_secs_f64());
    }
    Ok(())
}
