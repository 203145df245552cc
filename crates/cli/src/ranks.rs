//! The processes that share a run: as torchrun, srun or mpirun started them, or as `--ranks` starts them here.

use std::ffi::OsString;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use oq_calib::{CalibError, Machine};
use oq_ranks::{Place, Ranks};
use oq_recipe::Profile;

use crate::args::DeviceArg;
use crate::exit::CliError;
use crate::machine;
use crate::output::Output;

/// How long processes that were started here have to end by themselves, once this one has nothing left to do.
const TO_END: Duration = Duration::from_secs(20);

/// Threads of a process, of those that `ranks` processes on this machine share; none if nothing limits them.
pub fn threads(all: Option<u16>, ranks: Option<u16>) -> Option<u16> {
    match ranks {
        Some(ranks) if ranks > 1 => {
            let all = all.map_or_else(machine::cores, usize::from);
            Some(u16::try_from(all / usize::from(ranks)).unwrap_or(u16::MAX).max(1))
        }
        _ => all,
    }
}

/// Runs a command on the ranks that `--ranks` asks for, or that others have started. All but the first are silent, and one that fails tells
/// the others.
pub fn shared(asked: Option<u16>, out: &Output, run: impl FnOnce(&Team, &Output) -> Result<()>) -> Result<()> {
    let team = Team::gather(asked)?;
    let ranks = &team.ranks;
    let out = if ranks.is_first() { *out } else { out.silent() };
    run(&team, &out).map_err(|error| {
        // A run of learning has told the others.
        if error.downcast_ref::<CalibError>().is_none() {
            ranks.fail(&format!("{error:#}"));
        }
        if ranks.is_first() { error } else { error.context(format!("rank {}", ranks.rank())) }
    })
}

/// This process among those that share a command.
pub struct Team {
    pub ranks: Ranks,
    /// Rank among those of this machine.
    local: usize,
    /// Number of these.
    here: usize,
    /// The other processes, if they were started here.
    started: Vec<Child>,
}

impl Team {
    /// Meets the other processes, and starts them before if `--ranks` asks for it and nobody else has.
    pub fn gather(asked: Option<u16>) -> Result<Self> {
        let there = Place::of_environment()?;
        let (place, started) = match (there, asked) {
            (None, None | Some(0 | 1)) => {
                return Ok(Self { ranks: Ranks::alone(), local: 0, here: 1, started: Vec::new() });
            }
            (Some(place), None) => (place, Vec::new()),
            (Some(place), Some(asked)) if place.size == usize::from(asked) => (place, Vec::new()),
            (Some(place), Some(asked)) => {
                let message = format!(
                    "--ranks {asked}: the environment says that this is rank {} of {}; leave --ranks to whoever started it",
                    place.rank, place.size
                );
                return Err(CliError::Usage(message).into());
            }
            (None, Some(asked)) => start(usize::from(asked))?,
        };
        // In this order: what was started is ended if the others cannot be met.
        let mut team = Self { ranks: Ranks::alone(), local: place.local, here: place.here, started };
        team.ranks = Ranks::join(&place)?;
        Ok(team)
    }

    /// The device of this process: on a machine with CUDA, its local rank after the card that was given, or after the first one.
    pub fn device(&self, wanted: DeviceArg) -> DeviceArg {
        match wanted {
            DeviceArg::Auto if self.ranks.size() > 1 && tch::Cuda::is_available() => DeviceArg::Cuda(self.local),
            DeviceArg::Cuda(first) => DeviceArg::Cuda(first + self.local),
            other => other,
        }
    }

    /// What each process has of this machine, if all of them take as much.
    pub fn part_of(&self, machine: Machine) -> Machine {
        Machine { memory_bytes: machine.memory_bytes.map(|bytes| bytes / self.here as u64), ..machine }
    }

    /// The speed that each process has of a processor's, if all of them take as much.
    pub fn speed_of(&self, processor: Profile) -> Profile {
        let part = |rate: f64| rate / self.here as f64;
        Profile {
            f32_gflops: part(processor.f32_gflops),
            bf16_gflops: part(processor.bf16_gflops),
            memory_gb_per_s: part(processor.memory_gb_per_s),
            ..processor
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let ending = Instant::now();
        for child in &mut self.started {
            while ending.elapsed() < TO_END && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Of one that has ended, nothing is left to end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts all processes but the first, which is this one, with its own command line.
fn start(size: usize) -> Result<(Place, Vec<Child>)> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).context("no port is free")?.port();
    let host = "127.0.0.1".to_owned();
    let program = std::env::current_exe().context("this program has no path")?;
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut team = Team { ranks: Ranks::alone(), local: 0, here: size, started: Vec::new() };
    for rank in 1..size {
        let mut command = Command::new(&program);
        command.args(&words).stdin(Stdio::null()).stdout(Stdio::null());
        let (rank, size, port) = (rank.to_string(), size.to_string(), port.to_string());
        command.envs([("RANK", &rank), ("LOCAL_RANK", &rank), ("WORLD_SIZE", &size), ("LOCAL_WORLD_SIZE", &size)]);
        command.envs([("MASTER_ADDR", &host), ("MASTER_PORT", &port)]);
        team.started.push(command.spawn().context("a process for --ranks cannot be started")?);
    }
    let place = Place { rank: 0, size, local: 0, here: size, host, port, interface: None };
    Ok((place, std::mem::take(&mut team.started)))
}
