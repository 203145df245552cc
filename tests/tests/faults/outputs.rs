//! Outputs that cannot be written, and runs without enough memory or disk space.

use std::fs;
use std::path::Path;
use std::process::Command;

use oq_calib::JOURNAL;
use oq_formats::Dtype;
use oq_recipe::{EVENTS, REPORT, RUN};
use oq_tests::{copied, files, omniquant, run};
use serde_json::Value;
use tempfile::TempDir;

use super::inputs::with_tensor;
use super::{CALIB, DOES_NOT_FIT, INPUT, TINY, USAGE, check, names, quantize};

#[test]
fn what_would_fail_after_the_run_is_told_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    fs::write(&short, "Far too short.").unwrap();
    let out = dir.path().join("out");
    let usual = ["--scheme", "w4a16g64", "--calib", CALIB];
    let mut run = quantize(TINY, &out);
    run.args(usual).arg("--report").arg("--data").arg(&short);
    check(&mut run, USAGE, &["short.txt has", "less than a window of 512: give a longer text with --data"]);
    let mut run = quantize(TINY, &out);
    run.args(usual).arg("--report").arg("--data").arg(dir.path().join("none.txt"));
    check(&mut run, INPUT, &["none.txt"]);
    check(quantize(TINY, &out).args(usual).args(["--data", CALIB]), USAGE, &["add --report", "--calib"]);
    assert!(!out.exists());
    let bench = ["bench", TINY, "--prompt-tokens", "500", "--tokens", "13"];
    check(omniquant().args(bench), USAGE, &["--prompt-tokens 500 and --tokens 13", "512 positions"]);
}

#[test]
fn output_directories_that_do_not_do() {
    let args = ["--scheme", "w4a16g64", "--calib", CALIB];
    let model = copied("tiny-llama");
    let before = names(model.path());
    check(quantize(model.path(), model.path()).args(args), USAGE, &["is not empty", "choose another --out"]);
    check(quantize(model.path(), model.path()).args(args).arg("--resume"), USAGE, &["choose another --out"]);
    assert_eq!(names(model.path()), before);

    let file = model.path().join("config.json");
    for out in [file.clone(), file.join("below")] {
        let parts = [&*out.to_string_lossy(), "cannot be written", "choose another --out"];
        check(quantize(TINY, &out).args(args), USAGE, &parts);
    }
}

#[cfg(unix)]
#[test]
fn an_output_directory_that_is_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        println!("skipped: this user may write anywhere");
        return;
    }
    for out in [dir.path().to_owned(), dir.path().join("below")] {
        let mut command = quantize(TINY, &out);
        command.args(["--scheme", "w4a16g64", "--calib", CALIB]);
        check(&mut command, USAGE, &["cannot be written", "Permission denied", "choose another --out"]);
    }
}

#[test]
fn a_run_larger_than_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = omniquant();
    command.args(["quantize", TINY, "--scheme", "w4a16g64", "--calib", CALIB, "--samples", "1000000000"]);
    command.arg("--out").arg(dir.path().join("out"));
    check(&mut command, DOES_NOT_FIT, &["this run does not fit", "of memory", "--samples ", " GiB, which fits"]);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn activations_that_float16_does_not_hold() {
    let down = "model.layers.1.mlp.down_proj.weight";
    let scaled = with_tensor(down, Dtype::F32, |bytes| {
        let value = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        bytes.chunks(2).flat_map(|bytes| (value(bytes) * 1e6).to_le_bytes()).collect()
    });
    let beyond = |model: &Path, args: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let mut command = quantize(model, out.path());
        command.args(["--scheme", "w4a16g64", "--calib", CALIB]).args(args).env("RUST_LOG", "warn");
        let stderr = String::from_utf8(run(&mut command, 0).stderr).unwrap();
        let record: Value = serde_json::from_slice(&fs::read(out.path().join(RUN)).unwrap()).unwrap();
        let blocks = record["blocks"].as_array().unwrap();
        (stderr, blocks.iter().map(|block| block["beyond_f16"].as_f64()).collect::<Vec<_>>())
    };
    for method in ["omniquant", "smoothquant"] {
        let (stderr, blocks) = beyond(scaled.path(), &["--method", method]);
        assert_eq!(stderr.matches("float16").count(), 2, "{method}, once: {stderr}");
        for part in [" of 4: activations on the calibration text reach ", "65504", "bfloat16 or float32"] {
            assert!(stderr.contains(part), "{method}: no {part:?} in {stderr}");
        }
        // The residual stream keeps its large values in all later blocks.
        assert!(blocks[0].is_none() && blocks[1..].iter().all(|block| block.is_some_and(|value| value > 65504.0)));
        let (stderr, blocks) = beyond(Path::new(TINY), &["--method", method]);
        assert!(!stderr.contains("float16") && blocks == [None; 4], "{method}: {stderr}, {blocks:?}");
    }
    // Without text, this cannot be known.
    let (stderr, blocks) = beyond(scaled.path(), &["--method", "rtn"]);
    assert!(!stderr.contains("float16") && blocks == [None; 4], "{stderr}, {blocks:?}");
}

/// In a separate mount namespace: a run on a small disk, then the disk grows and the run resumes. `$1` is the mount point, `$2` the
/// size, `$3` the directory for results; the rest is the command.
const SMALL_DISK: &str = r#"
disk=$1 answers=$3
mount -t tmpfs -o "size=$2" tmpfs "$disk" || exit 77
shift 3
"$@" --out "$disk/out" 2>"$answers/full"
echo $? >"$answers/full-code"
ls -AR "$disk/out" >"$answers/left"
mount -o remount,size=64m "$disk" || exit 77
"$@" --out "$disk/out" --resume 2>"$answers/resumed"
echo $? >"$answers/resumed-code"
cp -r "$disk/out" "$answers/out"
"#;

/// The shell's exit code if it may not mount.
const MAY_NOT_MOUNT: i32 = 77;

#[track_caller]
fn check_small_disk(size: &str, more: &[&str], says: &str, expected: &TempDir) {
    let (disk, answers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = quantize(TINY, Path::new("unused"));
    let args: Vec<_> = run.get_args().take_while(|arg| *arg != "--out").collect();
    let mut shell = Command::new("unshare");
    shell
        .args(["--map-root-user", "--mount", "sh", "-c", SMALL_DISK, "sh"])
        .arg(disk.path())
        .arg(size)
        .arg(answers.path());
    shell.arg(run.get_program()).args(args).args(["--scheme", "w4a16g64", "--calib", CALIB, "--force"]).args(more);
    shell.current_dir(run.get_current_dir().unwrap());
    let mounted = shell.output().map(|output| output.status.code());
    let answer = |name: &str| fs::read_to_string(answers.path().join(name)).unwrap_or_default();
    if !matches!(mounted, Ok(Some(0))) && answer("full-code").is_empty() {
        let why = if matches!(mounted, Ok(Some(MAY_NOT_MOUNT))) { "mount" } else { "unshare" };
        println!("skipped: this user may not {why}");
        return;
    }
    let (full, left) = (answer("full"), answer("left"));
    assert_eq!(answer("full-code").trim(), DOES_NOT_FIT.to_string(), "{size}: {full}");
    assert!(full.to_lowercase().contains("no space left") && !full.contains("panicked"), "{size}: {full}");
    assert!(full.contains(says), "{size}: {full}");
    assert!(!left.contains("config.json") && !left.contains(".omniquant"), "{size}: {left}");
    let resumed = answer("resumed");
    assert_eq!(answer("resumed-code").trim(), "0", "{size}: {resumed}");
    let out = answers.path().join("out");
    let (got, expected) = (files(&out), files(expected.path()));
    assert!(got.keys().eq(expected.keys()), "{size}: {:?}", got.keys());
    for (name, bytes) in got {
        match name.as_str() {
            RUN | JOURNAL | REPORT => {}
            EVENTS => {
                let events = String::from_utf8(bytes).unwrap();
                events.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).expect("a line of JSON")));
            }
            _ => assert!(bytes == expected[&name], "{size}: {name} differs"),
        }
    }
}

#[test]
fn a_full_disk() {
    let expected = tempfile::tempdir().unwrap();
    run(quantize(TINY, expected.path()).args(["--scheme", "w4a16g64", "--calib", CALIB]), 0);
    // Space for the journal only, for a block or two, and for all blocks but not the head.
    for size in ["4k", "300k", "700k"] {
        check_small_disk(size, &[], "", &expected);
    }
    // Space for the journal and one of two stores of hidden states of 32 KiB each.
    check_small_disk("48k", &["--cache-memory", "0"], "hidden states that exceed --cache-memory", &expected);
}
