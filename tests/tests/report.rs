//! The report of a run, made by the program, and what a browser makes of it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use oq_recipe::{BLOCKS, BlockDetails, MEASURED, Measurement, Metric, REPORT};
use oq_tests::{kill, omniquant, run, run_json};

fn quantize(model: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = omniquant();
    command.args([
        "quantize",
        model,
        "--calib",
        "tests/fixtures/calib.txt",
        "--samples",
        "4",
        "--seqlen",
        "64",
        "--quiet",
    ]);
    command.args(more).arg("--out").arg(out).stdin(Stdio::null());
    command
}

/// A finished run whose result was measured.
fn finished() -> &'static Path {
    static DIR: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, out) = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("w3");
        let more = [
            "--scheme",
            "w3a16g64",
            "--epochs",
            "3",
            "--report",
            "--data",
            "tests/fixtures/eval.txt",
            "--windows",
            "4",
        ];
        run(&mut quantize("tiny-llama", &out, &more), 0);
        (dir, out)
    });
    out
}

fn details(out: &Path) -> Vec<BlockDetails> {
    let text = fs::read_to_string(out.join(BLOCKS)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_records_what_it_did_and_writes_its_page() {
    let out = finished();
    let blocks = details(out);
    assert_eq!(blocks.iter().map(|block| block.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for block in &blocks {
        assert_eq!((block.tokens, block.linears.len(), block.sites.len()), (64, 7, 0));
        assert!(block.error.learned < block.error.nearest, "{block:?}");
        for linear in &block.linears {
            let error = linear.error.unwrap();
            // Three bits of weights that are nearly normal: some percent of an output's energy.
            assert!((1e-3..0.3).contains(&error.nearest) && (1e-3..0.3).contains(&error.learned), "{linear:?}");
            let groups = linear.weights / 64;
            assert_eq!([linear.clip_max, linear.clip_min].map(|bins| bins.iter().sum::<u64>()), [groups; 2]);
            assert!((0.01..0.9).contains(&linear.moved.unwrap()), "{linear:?}");
            assert!(linear.input.unwrap().is_sorted() && linear.input_rescaled.is_none() && linear.bits == 3);
        }
    }
    let measured = fs::read_to_string(out.join(MEASURED)).unwrap();
    let measured: Vec<Measurement> = measured.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let models: Vec<&str> = measured.iter().map(|row| row.model.as_str()).collect();
    assert_eq!(models, ["full precision", "round to nearest", Measurement::THIS]);
    assert!(
        measured.iter().all(|row| row.metric == Metric::Perplexity && row.on == "eval.txt, 4 windows of 512 tokens"),
        "{measured:?}"
    );
    let page = fs::read_to_string(out.join(REPORT)).unwrap();
    assert!(page.contains(&format!("{:.2}", measured[2].value)), "the perplexity");

    // Made again, it is the same page; later measurements come into it.
    fs::remove_file(out.join(REPORT)).unwrap();
    let said = run_json(omniquant().args(["report", "--json"]).arg(out));
    assert_eq!(said["report"], out.join(REPORT).to_str().unwrap());
    assert_eq!((&said["run"]["n_blocks"], &said["run"]["is_finished"]), (&4.into(), &true.into()));
    assert_eq!(fs::read_to_string(out.join(REPORT)).unwrap(), page);
    run(omniquant().args(["report", "--follow", "--quiet"]).arg(out), 0);
}

#[test]
fn transformed_blocks_record_their_scales() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("w4a4");
    run(&mut quantize("tiny-llama", &out, &["--scheme", "w4a4", "--epochs", "2"]), 0);
    let blocks = details(&out);
    // With 4-bit activations and so little text, learned in f32, a single block may end beside rounding to nearest.
    let learns_in_bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
    let sum = |error: &dyn Fn(&BlockDetails) -> f64| blocks.iter().map(error).sum::<f64>();
    let [learned, nearest] = [sum(&|block| block.error.learned), sum(&|block| block.error.nearest)];
    assert!(learned < 0.9 * nearest, "{learned} {nearest}");
    for block in blocks {
        assert!(
            !block.sites.is_empty() && block.sites.iter().all(|site| site.scales[0] > 0.0 && site.scales.is_sorted())
        );
        assert!(!learns_in_bf16 || block.error.learned < block.error.nearest, "{:?}", block.error);
        let query = block.linears.iter().find(|linear| linear.name == "self_attn.q_proj").unwrap();
        assert!(query.input_rescaled.is_some() && query.input_rescaled != query.input);
    }
    assert!(fs::read_to_string(out.join(REPORT)).unwrap().contains("id=\"scales\""));
}

#[test]
fn runs_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (other, page) = (dir.path().join("w4"), dir.path().join("comparison.html"));
    let more =
        ["--scheme", "w4a16g64", "--epochs", "1", "--report", "--data", "tests/fixtures/eval.txt", "--windows", "4"];
    run(&mut quantize("tiny-llama", &other, &more), 0);
    run(omniquant().arg("report").args([finished(), &other]), 2);
    run(omniquant().arg("report").args([finished(), &other]).args(["--follow", "--out"]).arg(&page), 2);
    let said = run_json(omniquant().args(["report", "--json"]).args([finished(), &other]).arg("--out").arg(&page));
    assert_eq!(said["runs"].as_array().unwrap().len(), 2);
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains("2 of 2 runs on the Pareto front") && page.contains("learn.epochs"),
        "four bits are larger and better"
    );
    run(omniquant().arg("report").arg(dir.path()), 3);
}

#[test]
fn a_killed_run_has_a_page_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let more = ["--scheme", "w3a16g64", "--epochs", "40"];
    let two = || fs::read_to_string(out.join(BLOCKS)).is_ok_and(|text| text.lines().count() == 2);
    kill(&mut quantize("tiny-llama", &out, &more), two);
    run(omniquant().args(["report", "--quiet"]).arg(&out), 0);
    let page = fs::read_to_string(out.join(REPORT)).unwrap();
    assert!(page.contains("is being quantized") && page.contains("of 4"), "{page}");
    run(quantize("tiny-llama", &out, &more).arg("--resume"), 0);
    let blocks: Vec<usize> = details(&out).iter().map(|block| block.index).collect();
    assert_eq!(blocks, [0, 1, 2, 3]);
    assert!(fs::read_to_string(out.join(REPORT)).unwrap().contains("Since it was resumed"));
}

/// A browser that needs no screen, if the machine has one.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

/// The page as the browser understood it, and what its console said. The network leads nowhere.
fn rendered(browser: &Path, page: &Path, home: &Path) -> (String, String) {
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]);
    command.args(["--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--v=0", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", home.display())).arg(format!("file://{}", page.display()));
    let output = run(command.stdin(Stdio::null()), 0);
    let [dom, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (dom, said)
}

#[test]
fn a_browser_has_nothing_to_complain_about() {
    let Some(browser) = browser() else {
        println!("skipped: no chromium");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let page = finished().join(REPORT);
    let text = fs::read_to_string(&page).unwrap();
    for part in ["src=", "href=\"http", "url(", "@import", "<script"] {
        assert!(!text.contains(part), "{part}");
    }
    let (dom, said) = rendered(&browser, &page, dir.path());
    assert!(!said.contains("CONSOLE") && !said.contains("net_error"), "{said}");
    // Nothing is lost: the parser moved or dropped no part.
    for part in ["<svg role=\"img\"", "<desc ", "<table>", "<section ", "<figure>", "</tr>", "<text "] {
        assert_eq!(dom.matches(part).count(), text.matches(part).count(), "{part}");
    }
    // A page with a mistake is noticed.
    let wrong = dir.path().join("wrong.html");
    fs::write(&wrong, text.replace("</main>", "<img src=\"http://127.0.0.1:9/x.png\"></main>")).unwrap();
    assert!(rendered(&browser, &wrong, dir.path()).1.contains("CONSOLE"), "the console is not seen");
}
