//! `cargo xtask wheel`: a Python wheel with the program alone, which runs on the libraries of the torch that pip installs beside it.
//!
//! Written here, and not by maturin: its wheels of programs put them into the environment's folder of programs, from where torch's
//! libraries are in no fixed place. Here the program lies in a package, and what pip puts into that folder is a line of Python that looks
//! for torch and becomes the program.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::pins::TORCH;
use crate::{bundle, locate, process};

/// From the folder of the program to torch's libraries, where both lie in one environment. The launcher finds torch elsewhere too.
const RUN_PATH: &str = "$ORIGIN/../../torch/lib";

/// Not one of manylinux: those promise an older C++ library than that of the machine that builds.
const TAG: &str = "py3-none-linux_x86_64";

const LAUNCHER: [(&str, &str); 2] = [
    ("omniquant/__init__.py", include_str!("../python/omniquant/__init__.py")),
    ("omniquant/__main__.py", include_str!("../python/omniquant/__main__.py")),
];

/// Makes the wheel and says where it is.
pub fn wheel() -> Result<()> {
    let libtorch = bundle::libtorch()?;
    ensure!(
        !libtorch.join("lib/libtorch_cuda.so").exists(),
        "the wheel is made with the CPU's libtorch and runs on CUDA's as well: `cargo xtask setup` without --cuda comes first"
    );
    let staging = tempfile::tempdir()?;
    let (program, licenses) = (staging.path().join("omniquant"), staging.path().join("licenses"));
    let stub = stub(staging.path())?;
    bundle::build(RUN_PATH, &[format!("-Wl,--no-as-needed,{},--as-needed", stub.display())], &program)?;
    bundle::write_licenses(&licenses, None)?;

    let info = format!("omniquant-{}.dist-info", bundle::VERSION);
    let mut files = LAUNCHER.map(|(name, text)| Entry::new(name, text)).to_vec();
    files.push(Entry { name: "omniquant/bin/omniquant".to_owned(), bytes: fs::read(&program)?, mode: 0o755 });
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "crates.txt"] {
        files.push(Entry::new(format!("{info}/licenses/{name}"), fs::read(licenses.join(name))?));
    }
    let about = fs::read_to_string(locate::repository().join("crates/cli/README.md"))?;
    files.push(Entry::new(format!("{info}/METADATA"), metadata(&about)));
    files.push(Entry::new(
        format!("{info}/WHEEL"),
        format!("Wheel-Version: 1.0\nGenerator: omniquant xtask\nRoot-Is-Purelib: false\nTag: {TAG}\n"),
    ));
    files.push(Entry::new(format!("{info}/entry_points.txt"), "[console_scripts]\nomniquant = omniquant:main\n"));
    let record = format!("{info}/RECORD");
    files.push(Entry::new(&*record, record_of(&files, &record)));

    let folder = locate::repository().join("out/wheel");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("omniquant-{}-{TAG}.whl", bundle::VERSION));
    write(&path, &files)?;
    eprintln!("wheel: {}, for torch=={TORCH}", path.display());
    Ok(())
}

/// A library without anything in it, by the name of torch's libtorch.so. Linked to it the program asks for that one, which in turn loads
/// CUDA's libraries where torch has them: nothing else names these.
fn stub(folder: &Path) -> Result<PathBuf> {
    let (source, library) = (folder.join("stub.c"), folder.join("libtorch.so"));
    File::create(&source)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-nostdlib", "-Wl,-soname,libtorch.so", "-o"]).arg(&library).arg(&source);
    process::run(&mut cc)?;
    Ok(library)
}

/// A file of the wheel.
#[derive(Clone)]
struct Entry {
    name: String,
    bytes: Vec<u8>,
    mode: u32,
}

impl Entry {
    fn new(name: impl Into<String>, text: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: text.into(), mode: 0o644 }
    }
}

/// Name, version and what is needed (<https://packaging.python.org/en/latest/specifications/core-metadata/>).
fn metadata(about: &str) -> String {
    let version = bundle::VERSION;
    format!(
        "Metadata-Version: 2.4\nName: omniquant\nVersion: {version}\n\
         Summary: Quantizes large language models to 2-8 bits by OmniQuant, and runs them\n\
         License-Expression: MIT OR Apache-2.0\nLicense-File: LICENSE-APACHE\nLicense-File: LICENSE-MIT\n\
         License-File: crates.txt\nRequires-Python: >=3.9\nRequires-Dist: torch=={TORCH}\n\
         Description-Content-Type: text/markdown\n\n{about}"
    )
}

/// Digest and size of each file, and an empty line's worth for the record itself
/// (<https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file>).
fn record_of(files: &[Entry], itself: &str) -> String {
    let line = |Entry { name, bytes, .. }: &Entry| {
        format!("{name},sha256={},{}\n", URL_SAFE_NO_PAD.encode(Sha256::digest(bytes)), bytes.len())
    };
    files.iter().map(line).chain([format!("{itself},,\n")]).collect()
}

/// Writes the archive; times are those of the format's beginning, so that the same files give the same bytes.
fn write(path: &Path, files: &[Entry]) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut archive = ZipWriter::new(File::create(path).with_context(context)?);
    for Entry { name, bytes, mode } in files {
        archive.start_file(&**name, SimpleFileOptions::default().unix_permissions(*mode)).with_context(context)?;
        archive.write_all(bytes).with_context(context)?;
    }
    archive.finish().with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_record_has_every_file() {
        // FIPS 180-2, appendix B.1, in base64 of URLs.
        let record = record_of(&[Entry::new("a/b.py", "abc")], "i/RECORD");
        assert_eq!(record, "a/b.py,sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3\ni/RECORD,,\n");
    }

    #[test]
    fn torch_is_required_in_its_version() {
        let metadata = metadata("# About\n");
        assert!(
            metadata.contains("\nRequires-Dist: torch==2.13.0\n") && metadata.ends_with("\n\n# About\n"),
            "{metadata}"
        );
    }

    #[test]
    fn the_program_can_be_run_and_bytes_stay_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            [Entry { name: "p/bin/p".to_owned(), bytes: b"ELF".to_vec(), mode: 0o755 }, Entry::new("p/a.py", "")];
        let paths = ["a.whl", "b.whl"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| write(path, &files).unwrap());
        assert_eq!(fs::read(&paths[0]).unwrap(), fs::read(&paths[1]).unwrap());
        let mut archive = zip::ZipArchive::new(File::open(&paths[0]).unwrap()).unwrap();
        let mut program = archive.by_name("p/bin/p").unwrap();
        assert_eq!(program.unix_mode().map(|mode| mode & 0o777), Some(0o755));
        let mut bytes = Vec::new();
        program.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"ELF");
    }
}
