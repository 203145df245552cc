//! Pages of a small run that was recorded on a machine (`tests/runs/tiny-llama`), and of what could have been recorded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oq_recipe::{BLOCKS, EVENTS, MEASURED, Measurement, Metric, RUN};
use oq_report::{ReportError, Run, Size, comparison, page};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs/tiny-llama")
}

fn run() -> Run {
    Run::read(&recorded()).unwrap()
}

/// A copy of the recorded run without some of its files.
fn without(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("omniquant")).unwrap();
    for entry in std::fs::read_dir(recorded().join("omniquant")).unwrap() {
        let name = format!("omniquant/{}", entry.unwrap().file_name().to_string_lossy());
        if !names.contains(&name.as_str()) {
            std::fs::copy(recorded().join(&name), dir.path().join(&name)).unwrap();
        }
    }
    dir
}

/// The attributes of this name, in order.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    html.match_indices(&start).map(|(at, _)| html[at + start.len()..].split_once('"').unwrap().0).collect()
}

/// What holds for every page.
#[track_caller]
fn check_page(html: &str) {
    for tag in ["svg", "table", "section", "figure", "text", "details", "ul", "dl"] {
        let (opened, closed) = (
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count(),
            html.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(opened, closed, "{tag}");
    }
    // Nothing is fetched.
    assert!(
        !html.contains("<script")
            && !html.contains("<link")
            && !html.contains("<img")
            && !html.contains("url(")
            && !html.contains("@import")
    );
    assert!(attributes(html, "src").is_empty());
    assert!(attributes(html, "href").iter().all(|to| to.starts_with('#')));
    let ids = attributes(html, "id");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert!(attributes(html, "href").iter().all(|to| ids.contains(&&to[1..])));
    // Every plot says in words what is seen.
    let plots = html.matches("<svg role=\"img\"").count();
    let words = |tag: &str| -> Vec<&str> {
        html.match_indices(&format!("<{tag} id="))
            .map(|(at, _)| html[at..].split_once('>').unwrap().1.split_once('<').unwrap().0)
            .collect()
    };
    let (titles, about) = (words("title"), words("desc"));
    assert_eq!([titles.len(), about.len(), html.matches("</figure>").count()], [plots; 3]);
    assert!(titles.iter().all(|title| !title.is_empty()));
    assert!(about.iter().all(|about| about.len() > 20 && about.bytes().any(|byte| byte.is_ascii_digit())), "{about:?}");
    // No number of the plotting library is left, and none is broken.
    assert!(!html.contains("=\"#01") && !html.contains("NaN") && !html.contains(">inf"), "a colour or a number");
}

#[test]
fn a_finished_run_has_everything() {
    let html = page(&run(), true);
    check_page(&html);
    assert!(
        html.contains("tiny-llama at w3a16g64")
            && !html.contains("http-equiv=\"refresh\"")
            && !html.contains("<progress")
    );
    for id in ["results", "layers", "learning", "clipping", "rounding", "inputs", "cost", "settings"] {
        assert!(html.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    // Neither was asked for.
    assert!(!html.contains("id=\"scales\"") && !html.contains("id=\"tuning\"") && !html.contains("id=\"widths\""));
    let perplexity = run().of_result().find(|row| row.metric == Metric::Perplexity).unwrap().value;
    assert!(html.contains(&format!("{perplexity:.2}")));
}

#[test]
fn what_was_not_recorded_is_left_out() {
    let dir = without(&[BLOCKS, MEASURED]);
    let html = page(&Run::read(dir.path()).unwrap(), false);
    check_page(&html);
    for id in ["results", "layers", "clipping", "rounding", "inputs"] {
        assert!(!html.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    assert!(html.contains("<section id=\"learning\"") && html.contains("<section id=\"cost\""));
}

#[test]
fn a_run_that_goes_on_is_followed() {
    let dir = without(&[RUN]);
    let events = std::fs::read_to_string(recorded().join(EVENTS)).unwrap();
    let second = events.find("\"event\":\"block_started\",\"block\":1").unwrap();
    let epoch = second + events[second..].find("\"event\":\"epoch\"").unwrap();
    let end = epoch + events[epoch..].find('\n').unwrap() + 1;
    // The next line is being written.
    std::fs::write(dir.path().join(EVENTS), format!("{}{{\"event\":\"epo", &events[..end])).unwrap();
    let run = Run::read(dir.path()).unwrap();
    assert!(!run.is_finished && run.surroundings.is_none() && run.size.is_none());
    assert_eq!(
        (run.blocks.len(), run.details.len(), run.current.as_ref().map(|(block, losses)| (*block, losses.len()))),
        (1, 1, Some((1, 1)))
    );
    let followed = page(&run, true);
    check_page(&followed);
    assert!(
        followed.contains("http-equiv=\"refresh\"")
            && followed.contains("<progress")
            && followed.contains("block 2 of 4, epoch 2 of")
    );
    assert!(!page(&run, false).contains("http-equiv=\"refresh\""));
}

#[test]
fn a_block_that_is_made_again_replaces_the_earlier_one() {
    let dir = without(&[RUN]);
    let events = std::fs::read_to_string(recorded().join(EVENTS)).unwrap();
    let begun = events.lines().next().unwrap();
    let again = format!("{events}{begun}\n{{\"event\":\"block_started\",\"block\":2}}\n");
    std::fs::write(dir.path().join(EVENTS), again).unwrap();
    let run = Run::read(dir.path()).unwrap();
    assert_eq!((run.is_finished, run.blocks.len(), run.current), (false, 2, Some((2, Vec::new()))));
}

#[test]
fn names_are_not_markup() {
    let mut run = run();
    run.model = "<script>alert(1)</script>/&\"<b>".to_owned();
    for row in &mut run.measured {
        row.on = "<img src=x>".to_owned();
    }
    for html in [page(&run, false), comparison(&[run.clone(), run.clone()])] {
        assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("<b>"), "not escaped");
    }
}

#[test]
fn a_directory_without_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for dir in
        [dir.path(), &dir.path().join("none"), Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").as_path()]
    {
        let error = Run::read(dir).unwrap_err();
        assert!(
            matches!(error, ReportError::NoRun { .. }) && error.to_string().contains("omniquant quantize"),
            "{error}"
        );
    }
}

#[test]
fn the_pareto_front_is_marked() {
    let with = |bytes: u64, value: f64| {
        let mut run = run();
        run.size = Some(Size { bytes, bits_per_weight: Some(3.3) });
        run.measured = vec![Measurement {
            model: Measurement::THIS.to_owned(),
            metric: Metric::Perplexity,
            with: None,
            on: "a".to_owned(),
            value,
            error: None,
        }];
        run
    };
    // The third is beaten by the second in both; the last two are equal, and neither beats the other.
    let runs = [with(100, 30.0), with(200, 20.0), with(250, 25.0), with(300, 19.0), with(300, 19.0)];
    let html = comparison(&runs);
    check_page(&html);
    let marks: Vec<bool> = html
        .lines()
        .filter(|line| line.contains("<th scope=\"row\">") && line.contains("tiny-llama"))
        .map(|line| line.contains('◆'))
        .collect();
    assert_eq!(marks, [true, true, false, true, true]);
    assert!(html.contains("4 of 5 runs on the Pareto front") && html.contains("beaten by another"));
    // Equal settings have no table, and runs that were not measured alike have no plot.
    assert!(!html.contains("id=\"settings\""));
    let mut other = with(400, 18.0);
    other.measured[0].on = "b".to_owned();
    other.recipe.learn.epochs = 77;
    let html = comparison(&[with(100, 30.0), other]);
    check_page(&html);
    assert!(!html.contains("<svg role") && html.contains("learn.epochs") && html.contains(">77<"));
}
