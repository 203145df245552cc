//! Child processes: how they are started and shown, and how their failure becomes ours.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

/// A child process failed. xtask names it and exits with the same code.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` failed: {status}")]
pub struct ChildFailed {
    command: String,
    status: ExitStatus,
}

impl ChildFailed {
    /// The child's exit code or, if a signal killed it, 128 + the signal, as in shells.
    pub fn exit_code(&self) -> ExitCode {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&self.status) {
            return ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)));
        }
        let code = self.status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
        ExitCode::from(code.unwrap_or(1))
    }
}

/// Shows the command, runs it on our terminal, and waits for it.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    eprintln!("+ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    ended(shown, status)
}

/// Shows the command, and replaces this process by it where the system can. Then Ctrl-C and the exit code are the command's own.
pub fn hand_over(command: &mut Command) -> Result<()> {
    #[cfg(unix)]
    {
        let shown = shown(command);
        eprintln!("+ {shown}");
        let error = std::os::unix::process::CommandExt::exec(command);
        Err(error).with_context(|| format!("cannot start `{shown}`"))
    }
    #[cfg(not(unix))]
    run(command)
}

/// Turns the status of a finished child into a result. `command` is its name in messages.
pub fn ended(command: String, status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { Err(ChildFailed { command, status }.into()) }
}

/// The command as typed, with the program's name instead of its path.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c));
    if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A readable duration: `8.4 s`, `3 min 07 s`.
pub fn took(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    format!("{} min {:02} s", whole / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_childs_code_is_kept_and_the_command_named() {
        let error = run(Command::new("sh").args(["-c", "exit 4"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'exit 4'` failed: exit status: 4");
        let code = error.downcast_ref::<ChildFailed>().expect("a child failed").exit_code();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(4)));
    }

    #[cfg(unix)]
    #[test]
    fn a_killed_child_has_the_exit_code_of_shells() {
        // Not SIGINT: the caller may ignore it, as shells do for background processes.
        let error = run(Command::new("sh").args(["-c", "kill -KILL $$"])).unwrap_err();
        let code = error.downcast_ref::<ChildFailed>().expect("a child failed").exit_code();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(137)));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program-here`");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(took(Duration::from_millis(8_449)), "8.4 s");
        assert_eq!(took(Duration::from_millis(59_960)), "1 min 00 s");
        assert_eq!(took(Duration::from_secs(187)), "3 min 07 s");
    }
}
