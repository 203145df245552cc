//! `cargo xtask setup`: provides libtorch, and links it as `.libtorch`, where `.cargo/config.toml` expects it.
//!
//! The per-user cache is filled by renaming a finished folder into place, so several clones may set up at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::locate::{self, Provided};
use crate::pins::{self, Part, TORCH};
use crate::wheel::Take;
use crate::{process, wheel};

#[derive(clap::Args)]
pub struct SetupArgs {
    /// Use the CUDA 13 build with its NVIDIA libraries instead of the CPU build.
    #[arg(long)]
    pub cuda: bool,
    /// Download again even if the cache has libtorch already.
    #[arg(long)]
    pub force: bool,
}

/// Written last into a finished libtorch. torch-sys reads it to check the version.
const VERSION_FILE: &str = "build-version";

/// The licences of what is in a libtorch, a folder for each wheel.
pub const LICENSES: &str = "licenses";

/// Prefix of staging folders, which hold unfinished downloads.
pub const STAGING: &str = ".partial-";

/// Staging folders older than this were left by killed runs.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The two builds of libtorch that setup can provide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Cpu,
    Cuda,
}

impl Build {
    fn tag(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda13",
        }
    }

    /// The version, as libtorch's own archives write it.
    fn version(self) -> String {
        match self {
            Self::Cpu => format!("{TORCH}+cpu"),
            Self::Cuda => format!("{TORCH}+cu130"),
        }
    }

    fn parts(self) -> &'static [Part] {
        match self {
            Self::Cpu => pins::CPU,
            Self::Cuda => pins::CUDA,
        }
    }

    /// Free disk space that setup needs: the result, plus twice the torch wheel, because pip holds two copies for a moment.
    fn space_bytes(self) -> u64 {
        match self {
            Self::Cpu => 2_000_000_000,
            Self::Cuda => 5_000_000_000,
        }
    }
}

/// Provides the requested libtorch.
pub fn setup(args: &SetupArgs) -> Result<()> {
    if check_provided()? {
        if args.cuda || args.force {
            eprintln!("libtorch: --cuda and --force have no effect, because you provide libtorch yourself");
        }
        return Ok(());
    }
    provide(if args.cuda { Build::Cuda } else { Build::Cpu }, args.force)
}

/// Makes sure that there is a libtorch: the user's own, or the linked one (CPU or CUDA), or else the CPU build.
pub fn ensure_ready() -> Result<()> {
    if check_provided()? || is_complete(&locate::libtorch_link()) {
        return Ok(());
    }
    provide(Build::Cpu, false)
}

/// Whether the user provides libtorch. It is an error if the place that they name has none.
fn check_provided() -> Result<bool> {
    match locate::provided(&locate::libtorch_link(), locate::process_env) {
        None => return Ok(false),
        Some(Provided::Folder(folder)) => {
            check_folder(&folder, "LIBTORCH")?;
            eprintln!("libtorch: using LIBTORCH={}", folder.display());
        }
        Some(Provided::Python) => {
            let (version, folder) = python_torch()?;
            ensure!(
                version.split('+').next() == Some(TORCH),
                "LIBTORCH_USE_PYTORCH is set, but Python's torch is {version} and {TORCH} is needed; install that one \
                 (`pip install torch=={TORCH}`) or unset LIBTORCH_USE_PYTORCH"
            );
            check_folder(&folder, "LIBTORCH_USE_PYTORCH")?;
            eprintln!("libtorch: using Python's torch {version} in {}", folder.display());
        }
    }
    Ok(true)
}

fn check_folder(folder: &Path, variable: &str) -> Result<()> {
    let names = ["lib/libtorch.so", "lib/libtorch.dylib", "lib/torch.lib"];
    ensure!(
        names.iter().any(|name| folder.join(name).exists()),
        "{variable} names {}, which has no lib/libtorch.so; name the folder of libtorch {TORCH} that has include/ \
         and lib/ in it, or unset {variable} to have one downloaded",
        folder.display()
    );
    Ok(())
}

/// Version and folder of the torch that torch-sys will find through Python.
fn python_torch() -> Result<(String, PathBuf)> {
    let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let mut command = Command::new(python);
    command.args(["-c", "import torch; print(torch.__version__); print(torch.__path__[0])"]);
    let output =
        command.output().with_context(|| format!("LIBTORCH_USE_PYTORCH is set, but {python} cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().collect::<Vec<_>>()[..] {
        [version, folder] if output.status.success() => Ok((version.to_owned(), folder.into())),
        _ => bail!(
            "LIBTORCH_USE_PYTORCH is set, but {python} cannot import torch; activate the environment that has torch \
             {TORCH}, or unset LIBTORCH_USE_PYTORCH"
        ),
    }
}

/// Fills the cache if needed, and links it.
fn provide(build: Build, force: bool) -> Result<()> {
    check_platform(std::env::consts::OS, std::env::consts::ARCH)?;
    let start = Instant::now();
    let cache = locate::cache_dir()?;
    let ready = cache.join(format!("libtorch-{TORCH}-{}", build.tag()));
    if force || !is_complete(&ready) {
        download(build, &cache, &ready, force).inspect_err(|_| {
            eprintln!(
                "libtorch: not ready. Fix the error below, or set LIBTORCH to the folder of a libtorch {TORCH} of your \
                 own (the one that has include/ and lib/ in it)"
            );
        })?;
    }
    link(&locate::libtorch_link(), &ready)?;
    eprintln!("libtorch: {} ready at {} ({})", build.version(), ready.display(), process::took(start.elapsed()));
    Ok(())
}

/// The wheels are for x86-64 Linux. On other platforms, the user has to provide libtorch.
fn check_platform(os: &str, arch: &str) -> Result<()> {
    let by_hand = "export LIBTORCH=$(python3 -c 'import torch; print(torch.__path__[0])')";
    match (os, arch) {
        ("linux", "x86_64") => Ok(()),
        ("windows", _) => bail!(
            "setup downloads libtorch for x86-64 Linux only. On Windows unpack libtorch {TORCH} (Release build) from \
             PyTorch's site, set LIBTORCH to its folder, add its lib folder to PATH and run again"
        ),
        ("macos", _) => bail!(
            "setup downloads libtorch for x86-64 Linux only. On macOS: `python3 -m pip install torch=={TORCH}`, \
             `{by_hand}`, `export DYLD_LIBRARY_PATH=$LIBTORCH/lib`, then run again"
        ),
        _ => bail!(
            "setup downloads libtorch for x86-64 Linux only, but this is {arch} {os}. If there is a torch for it, install \
             that (`python3 -m pip install torch=={TORCH}`), `{by_hand}`, then run again"
        ),
    }
}

fn is_complete(libtorch: &Path) -> bool {
    let version = fs::read_to_string(libtorch.join(VERSION_FILE)).unwrap_or_default();
    version.trim().split('+').next() == Some(TORCH) && libtorch.join("lib/libtorch.so").exists()
}

fn download(build: Build, cache: &Path, ready: &Path, force: bool) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create the cache {}", cache.display()))?;
    sweep(cache);
    check_space(free_bytes(cache), build.space_bytes(), cache)?;
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(cache)?;
    let fresh = staging.path().join("libtorch");
    let parts = build.parts();
    for (at, part) in parts.iter().enumerate() {
        fetch(part, &format!("libtorch: [{}/{}]", at + 1, parts.len()), staging.path(), &fresh)?;
    }
    if build == Build::Cpu {
        // The wheel's own libtorch.so would pull in libtorch_cuda. The linker reads this text as a library made of the two named here.
        fs::write(fresh.join("lib/libtorch.so"), "INPUT ( -ltorch_cpu -lc10 )\n")?;
    }
    fs::write(fresh.join(VERSION_FILE), format!("{}\n", build.version()))?;
    settle(&fresh, ready, force)
}

/// Downloads a wheel into `staging`, and takes its files and licences out of it into `fresh`. Lines of progress begin with `what`.
pub fn fetch(part: &Part, what: &str, staging: &Path, fresh: &Path) -> Result<()> {
    let name = format!("{} {}", part.wheel.package, part.wheel.version);
    let megabytes = part.wheel.bytes.unwrap_or(0) / 1_000_000;
    eprintln!("{what} downloading {name} ({megabytes} MB)");
    let folder = staging.join("wheel");
    let file = wheel::download(part.wheel, &folder)?;
    wheel::verify(&file, part.sha256)?;
    eprintln!("{what} extracting {name}");
    let licenses = part.wheel.licenses();
    let kept = Take { from: &licenses, to: &format!("{LICENSES}/{}/", part.wheel.package) };
    let kept = if wheel::holds(&file, kept)? { &[kept][..] } else { &[] };
    wheel::extract(&file, &[part.take, kept].concat(), fresh)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Renames the finished folder `fresh` to `ready`. If another run finished first, its folder is kept, unless `force`.
fn settle(fresh: &Path, ready: &Path, force: bool) -> Result<()> {
    if !force && is_complete(ready) {
        return Ok(());
    }
    if ready.exists() {
        // Into the staging folder, beside `fresh`, so that it is deleted with it.
        fs::rename(ready, fresh.with_extension("old"))?;
    }
    match fs::rename(fresh, ready) {
        Err(_) if is_complete(ready) => Ok(()),
        outcome => outcome.with_context(|| format!("cannot move the finished libtorch to {}", ready.display())),
    }
}

/// Deletes what killed runs left behind. Nothing depends on it, so failures are ignored.
fn sweep(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|about| about.modified()).map(|at| SystemTime::now().duration_since(at));
        let abandoned = matches!(age, Ok(Ok(age)) if age > ABANDONED);
        if abandoned && entry.file_name().to_string_lossy().starts_with(STAGING) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn check_space(free: Option<u64>, needed: u64, cache: &Path) -> Result<()> {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match free {
        Some(free) if free < needed => bail!(
            "{} has {:.1} GB free, but {:.1} GB are needed; free some, or set XDG_CACHE_HOME to a folder on a larger disk",
            cache.display(),
            gigabytes(free),
            gigabytes(needed)
        ),
        _ => Ok(()),
    }
}

/// Free bytes on the disk of `folder`, according to `df`; none if unknown.
fn free_bytes(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).env("LC_ALL", "C").output().ok()?;
    df_available(&String::from_utf8_lossy(&output.stdout))
}

/// The `Available` column of `df -Pk`: the fourth one, in KiB.
fn df_available(text: &str) -> Option<u64> {
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Points the link at `ready` by renaming. torch-sys does not notice that the link's target changed, so it is cleaned.
fn link(link: &Path, ready: &Path) -> Result<()> {
    let before = fs::read_link(link).ok();
    if before.as_deref() == Some(ready) {
        return Ok(());
    }
    ensure!(
        before.is_some() || !link.exists(),
        "{} is not a link; move it away, or set LIBTORCH to it to use it",
        link.display()
    );
    let fresh = link.with_extension(format!("{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    symlink(ready, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("cannot link {} to {}", link.display(), ready.display()))?;
    if before.is_some() {
        for profile in ["dev", "release"] {
            let mut clean = locate::cargo();
            clean.args(["clean", "--quiet", "--profile", profile, "--package", "torch-sys"]);
            process::run(clean.current_dir(locate::repository()))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn symlink(to: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(not(unix))]
fn symlink(_to: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_libtorch(folder: &Path, version: &str) {
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join("lib/libtorch.so"), version).unwrap();
        fs::write(folder.join(VERSION_FILE), version).unwrap();
    }

    #[test]
    fn a_complete_libtorch_has_its_version_and_library() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_complete(folder.path()));
        made_libtorch(folder.path(), "2.13.0+cpu\n");
        assert!(is_complete(folder.path()));
        fs::write(folder.path().join(VERSION_FILE), "2.12.0+cpu").unwrap();
        assert!(!is_complete(folder.path()));
    }

    #[test]
    fn a_named_folder_without_libtorch_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_folder(folder.path(), "LIBTORCH").unwrap_err().to_string();
        assert!(error.contains("no lib/libtorch.so") && error.contains("unset LIBTORCH"), "{error}");
        made_libtorch(folder.path(), "2.13.0");
        check_folder(folder.path(), "LIBTORCH").unwrap();
    }

    #[test]
    fn the_first_of_two_finished_runs_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        let (staging, ready) = (cache.path().join("staging"), cache.path().join("ready"));
        let fresh = staging.join("libtorch");
        let content = || fs::read_to_string(ready.join("lib/libtorch.so")).unwrap();
        made_libtorch(&fresh, "2.13.0+first");
        settle(&fresh, &ready, false).unwrap();
        made_libtorch(&fresh, "2.13.0+second");
        settle(&fresh, &ready, false).unwrap();
        assert_eq!(content(), "2.13.0+first");
        settle(&fresh, &ready, true).unwrap();
        assert_eq!(content(), "2.13.0+second");
    }

    #[test]
    fn a_broken_libtorch_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let (fresh, ready) = (cache.path().join("staging/libtorch"), cache.path().join("ready"));
        fs::create_dir_all(ready.join("lib")).unwrap();
        made_libtorch(&fresh, "2.13.0+cpu");
        settle(&fresh, &ready, false).unwrap();
        assert!(is_complete(&ready));
    }

    #[cfg(unix)]
    #[test]
    fn the_link_is_created_once_and_never_replaces_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (at, to) = (folder.path().join(".libtorch"), folder.path().join("ready"));
        link(&at, &to).unwrap();
        link(&at, &to).unwrap();
        assert_eq!(fs::read_link(&at).unwrap(), to);
        fs::remove_file(&at).unwrap();
        fs::create_dir(&at).unwrap();
        let error = link(&at, &to).unwrap_err().to_string();
        assert!(error.contains("is not a link"), "{error}");
    }

    #[test]
    fn other_platforms_are_told_what_to_set() {
        check_platform("linux", "x86_64").unwrap();
        for (os, arch) in [("linux", "aarch64"), ("macos", "aarch64"), ("windows", "x86_64"), ("freebsd", "x86_64")] {
            let error = check_platform(os, arch).unwrap_err().to_string();
            assert!(error.contains("LIBTORCH") && error.contains(TORCH), "{os} {arch}: {error}");
        }
    }

    #[test]
    fn too_little_space_is_reported_in_numbers() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100 50 1000000 50% /\n";
        let free = df_available(df);
        assert_eq!(free, Some(1_024_000_000));
        let error = check_space(free, 2_000_000_000, Path::new("/c")).unwrap_err().to_string();
        assert!(error.starts_with("/c has 1.0 GB free, but 2.0 GB are needed"), "{error}");
        check_space(Some(2_000_000_000), 2_000_000_000, Path::new("/c")).unwrap();
        check_space(df_available("df: no such thing"), 1, Path::new("/c")).unwrap();
    }
}
