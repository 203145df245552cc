//! What people and scripts see: logs and bars on stderr, results on stdout.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::args::{Global, LogFormat};

/// Log lines on stderr, at the level that -q and -v ask for, or as `RUST_LOG` says.
pub fn init_logs(global: &Global) {
    let level = match (global.quiet, global.verbose, global.log_format) {
        (true, ..) => "error",
        (_, 0, LogFormat::Text) => "warn",
        // What the text form tells in lines of its own are log lines here.
        (_, 0 | 1, _) => "info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            logs.with_ansi(colours).with_target(false).init();
        }
    }
}

/// Where there is no bar, a line comes so often at most.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// Where a command's results and progress go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    log_format: LogFormat,
}

impl Output {
    /// As the command line asks.
    pub fn new(global: &Global) -> Self {
        Self { json: global.json, quiet: global.quiet, log_format: global.log_format }
    }

    /// The result of a command: `value` with --json, else `text`.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { text() };
        let mut stdout = std::io::stdout().lock();
        // A reader that went away, as `head` does, is no error of ours.
        match writeln!(stdout, "{}", text.trim_end()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A piece of text that is a result, at once; whether anybody reads it.
    pub fn piece(&self, text: &str) -> bool {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }

    /// Something worth a line on stderr.
    pub fn note(&self, text: &str) {
        match self.log_format {
            _ if self.quiet => {}
            LogFormat::Json => tracing::info!("{text}"),
            LogFormat::Text => eprintln!("{text}"),
        }
    }

    /// The error that ends the command.
    pub fn error(&self, error: &anyhow::Error) {
        // Libraries' messages hold their causes already; a cause is told only if the line above does not say it.
        let mut text = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !text.contains(&cause) {
                text = format!("{text}\n  because: {cause}");
            }
        }
        match self.log_format {
            LogFormat::Json => tracing::error!("{text}"),
            LogFormat::Text => eprintln!("error: {text}"),
        }
    }

    /// A bar on a terminal; elsewhere a line now and then.
    pub fn bar(&self, what: &str) -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let on_terminal = std::io::stderr().is_terminal() && matches!(self.log_format, LogFormat::Text);
        if self.quiet || !on_terminal {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}%  {msg}  {elapsed} < {eta}");
        bar.set_style(style.expect("the template is correct").progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        let lines = !self.quiet && !on_terminal;
        Bar { bar, lines: lines.then_some(self.log_format), told: Cell::new(Instant::now()), first: Cell::new(None) }
    }
}

/// Progress of something long.
pub struct Bar {
    bar: ProgressBar,
    /// Where there are lines instead of a bar.
    lines: Option<LogFormat>,
    /// When the last line was.
    told: Cell<Instant>,
    /// When [`Bar::set`] was first called with this total, how far it was, and the total.
    first: Cell<Option<(Instant, usize, usize)>>,
}

impl Bar {
    /// How far it is; where there is no bar, in a line once a minute.
    pub fn set(&self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        let first = self.first.get().filter(|(_, before, of)| *before <= done && *of == total);
        let (since, before, _) = first.unwrap_or((Instant::now(), done, total));
        self.first.set(Some((since, before, total)));
        if self.told.get().elapsed() >= BETWEEN_LINES {
            let left = secs_left(since.elapsed().as_secs_f64(), done - before, total.saturating_sub(done));
            self.line(|| {
                let left = left.map_or(String::new(), |secs| format!(", {} left", seconds(secs)));
                let what = [self.bar.prefix(), self.bar.message()].join(" ");
                format!("{}: {}%{left}", what.trim_end(), 100 * done / total.max(1))
            });
        }
    }

    /// What it is at: beside the bar.
    pub fn message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Something worth a line of its own where there is no bar.
    pub fn line(&self, line: impl FnOnce() -> String) {
        self.told.set(Instant::now());
        match self.lines {
            None => {}
            Some(LogFormat::Json) => tracing::info!("{}", line()),
            Some(LogFormat::Text) => eprintln!("{}", line()),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// A duration for people.
pub fn seconds(secs: f64) -> String {
    let duration = Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(Duration::MAX);
    indicatif::FormattedDuration(duration).to_string()
}

/// How long `left` takes at the pace of `done`; unknown while nothing is done.
fn secs_left(elapsed: f64, done: usize, left: usize) -> Option<f64> {
    (done > 0).then(|| elapsed * left as f64 / done as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_told_once_something_is_done() {
        assert_eq!(
            [secs_left(60.0, 0, 8), secs_left(60.0, 2, 8), secs_left(60.0, 8, 0)],
            [None, Some(240.0), Some(0.0)]
        );
        assert_eq!(seconds(240.4), "00:04:00");
        assert!(!seconds(f64::INFINITY).is_empty() && !seconds(f64::NAN).is_empty());
    }
}
