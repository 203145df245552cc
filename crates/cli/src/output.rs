//! Output for people and scripts: logs and progress bars on stderr, results on stdout.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::args::{Global, LogFormat};

/// Starts logging to stderr, at the level set by -q and -v or by `RUST_LOG`.
pub fn init_logs(global: &Global) {
    let level = match (global.quiet, global.verbose, global.log_format) {
        (true, ..) => "error",
        (_, 0, LogFormat::Text) => "warn",
        // What the text format prints as plain lines becomes log lines here.
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

/// Without a progress bar, the shortest time between lines of progress.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// The destination of a command's results and progress.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    quiet: bool,
    log_format: LogFormat,
}

impl Output {
    /// The output that the command line asks for.
    pub fn new(global: &Global) -> Self {
        Self { json: global.json, quiet: global.quiet, log_format: global.log_format }
    }

    /// The output of a process that leaves it to another one to speak.
    pub fn silent(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The result of a command: `value` with --json, else `text`.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { text() };
        let mut stdout = std::io::stdout().lock();
        // A reader that closes the pipe, as `head` does, is not an error.
        match writeln!(stdout, "{}", text.trim_end()) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a piece of a result immediately; returns whether it could be written.
    pub fn piece(&self, text: &str) -> bool {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }

    /// Prints a line to stderr.
    pub fn note(&self, text: &str) {
        match self.log_format {
            _ if self.quiet => {}
            LogFormat::Json => tracing::info!("{text}"),
            LogFormat::Text => eprintln!("{text}"),
        }
    }

    /// Prints the error that ends the command.
    pub fn error(&self, error: &anyhow::Error) {
        let text = with_causes(error, "\n  because: ");
        match self.log_format {
            LogFormat::Json => tracing::error!("{text}"),
            LogFormat::Text => eprintln!("error: {text}"),
        }
    }

    /// A progress bar on a terminal, else occasional lines.
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
        Bar {
            bar,
            lines: lines.then_some(self.log_format),
            last_line: Cell::new(Instant::now()),
            first: Cell::new(None),
        }
    }
}

/// Progress of a long task.
pub struct Bar {
    bar: ProgressBar,
    /// Format of lines, if there is no bar.
    lines: Option<LogFormat>,
    /// Time of the last line.
    last_line: Cell<Instant>,
    /// Time and progress at the first call of [`Bar::set`] with this total, and the total.
    first: Cell<Option<(Instant, usize, usize)>>,
}

impl Bar {
    /// Sets the progress; without a bar, prints a line once a minute.
    pub fn set(&self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        let first = self.first.get().filter(|(_, before, of)| *before <= done && *of == total);
        let (since, before, _) = first.unwrap_or((Instant::now(), done, total));
        self.first.set(Some((since, before, total)));
        if self.last_line.get().elapsed() >= BETWEEN_LINES {
            let left = secs_left(since.elapsed().as_secs_f64(), done - before, total.saturating_sub(done));
            self.line(|| {
                let left = left.map_or(String::new(), |secs| format!(", {} left", seconds(secs)));
                let what = [self.bar.prefix(), self.bar.message()].join(" ");
                format!("{}: {}%{left}", what.trim_end(), 100 * done / total.max(1))
            });
        }
    }

    /// Shows the current step beside the bar.
    pub fn message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Prints a line that is no progress: above the bar, if there is one.
    pub fn say(&self, line: &str, out: &Output) {
        if self.bar.is_hidden() { out.note(line) } else { self.bar.println(line) }
    }

    /// Prints a line of its own, if there is no bar.
    pub fn line(&self, line: impl FnOnce() -> String) {
        self.last_line.set(Instant::now());
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

/// An error with its causes. Some libraries repeat them in their messages, so a cause is given only if what is before does not contain it.
pub fn with_causes(error: &anyhow::Error, because: &str) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}{because}{cause}");
        }
    }
    text
}

/// A number of bytes as text.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// A duration as text.
pub fn seconds(secs: f64) -> String {
    let duration = Duration::try_from_secs_f64(secs.max(0.0)).unwrap_or(Duration::MAX);
    indicatif::FormattedDuration(duration).to_string()
}

/// Estimated seconds for `left` at the pace of `done`; unknown while nothing is done.
fn secs_left(elapsed: f64, done: usize, left: usize) -> Option<f64> {
    (done > 0).then(|| elapsed * left as f64 / done as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_known_once_something_is_done() {
        assert_eq!(
            [secs_left(60.0, 0, 8), secs_left(60.0, 2, 8), secs_left(60.0, 8, 0)],
            [None, Some(240.0), Some(0.0)]
        );
        assert_eq!(seconds(240.4), "00:04:00");
        assert!(!seconds(f64::INFINITY).is_empty() && !seconds(f64::NAN).is_empty());
    }
}
