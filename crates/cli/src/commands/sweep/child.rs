//! A run of `omniquant quantize` as a process of its own.
//!
//! So its peak memory is its own, several can run at a time, and what ends one does not end the others. It stops as on Ctrl-C when its input
//! ends, which happens when the value that [`start`] returns is dropped, or when this process is gone, however it ended.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::settings::Setting;
use crate::args::{Global, SweepArgs};

/// What a run says.
pub enum Said {
    /// A line of its log.
    Line(usize, String),
    /// Its end: none, or why it failed.
    Ended(usize, Option<String>),
}

/// The options of a run. `threads` are its own.
pub fn options(setting: &Setting, args: &SweepArgs, global: &Global, threads: Option<usize>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["quantize".into(), args.model.name.clone().into()];
    words.extend(setting.args.words(str::to_owned).into_iter().map(OsString::from));
    let cache_memory = args.cache_memory.map(|size| format!("{}B", size.0));
    let compute = args.compute.to_possible_value().map(|value| value.get_name().to_owned());
    let valued: [(&str, Option<OsString>); 8] = [
        ("--revision", args.model.revision.clone().map(Into::into)),
        ("--data-dir", args.eval.data_dir.clone().map(Into::into)),
        ("--text-field", args.eval.text_field.clone().map(Into::into)),
        ("--device", Some(args.device.to_string().into())),
        ("--compute", compute.map(Into::into)),
        ("--cache-memory", cache_memory.map(Into::into)),
        ("--threads", threads.map(|n| n.to_string().into())),
        ("--out", Some(setting.dir.clone().into())),
    ];
    words.extend(valued.into_iter().filter_map(|(option, value)| Some([option.into(), value?])).flatten());
    words.extend(["--resume", "--until-input-ends"].map(OsString::from));
    words.extend(args.force.then(|| OsString::from("--force")));
    words.extend(global.quiet.then(|| OsString::from("--quiet")));
    words.extend((0..global.verbose).map(|_| OsString::from("--verbose")));
    words
}

/// Starts the run of setting `which`, which says what happens to `said`.
pub fn start(which: usize, options: &[OsString], said: Sender<Said>) -> Result<ChildStdin> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(options).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Ctrl-C is for this process, which then stops the others.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("a run cannot be started")?;
    let input = child.stdin.take().expect("it is a pipe");
    let log = child.stderr.take().expect("it is a pipe");
    std::thread::spawn(move || {
        // The error comes last, and may have several lines.
        let mut error: Vec<String> = Vec::new();
        for line in BufReader::new(log).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            match line.strip_prefix("error: ") {
                Some(first) => error = vec![first.to_owned()],
                None if !error.is_empty() => error.push(line),
                // If nobody listens, the sweep has ended.
                None => drop(said.send(Said::Line(which, line))),
            }
        }
        let failed = match child.wait() {
            Ok(status) if status.success() => None,
            Ok(_) if !error.is_empty() => Some(error.join("\n")),
            Ok(status) => Some(ending(status)),
            Err(error) => Some(error.to_string()),
        };
        drop(said.send(Said::Ended(which, failed)));
    });
    Ok(input)
}

/// How a process ended that said nothing about it.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let why = if signal == 9 { ", as by a system that runs out of memory" } else { "" };
        return format!("it was ended by signal {signal}{why}");
    }
    status.to_string()
}
