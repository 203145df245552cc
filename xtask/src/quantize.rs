//! `cargo xtask quantize`: sets up libtorch, builds, fetches the checkpoint, then runs `omniquant plan` and `omniquant quantize
//! --report`.

use std::path::Path;

use anyhow::Result;
use oq_recipe::EVENTS;

use crate::{fetch, locate, program};

const DEFAULT_MODEL: &str = "tiny-llama";

/// Options of `omniquant quantize` that `omniquant plan` does not take, whether a value follows, and whether they affect the result.
/// All other options go to both commands, so that the plan is for the run that follows.
const NOT_PLANNED: [(&str, bool, bool); 9] = [
    ("--export", true, false),
    ("--kernels", true, false),
    ("--force", false, false),
    ("--resume", false, false),
    ("--report", false, false),
    ("--data", true, false),
    ("--data-dir", true, false),
    ("--text-field", true, true),
    ("--windows", true, false),
];

/// Options of both commands that do not affect the result, so they are not part of its directory's name. The first three are in that
/// name already.
const NOT_IN_NAME: [&str; 12] = [
    "--scheme",
    "--recipe",
    "--out",
    "--device",
    "--cache-memory",
    "--ranks",
    "--threads",
    "--json",
    "--quiet",
    "--verbose",
    "--log-format",
    "--help",
];

/// The whole workflow. `args` is `[MODEL] [options for omniquant quantize]`.
pub fn run(args: &[String]) -> Result<()> {
    let request = Request::new(args);
    program::build()?;
    fetch::if_wheel(&request.model)?;
    // A resumed run needs less disk space than its plan says. It checks by itself.
    if !request.is_begun() {
        let planned = program::run(&request.plan(), request.has("--json"));
        if !request.has("--force") {
            planned?;
        }
    }
    program::hand_over(&request.quantize())
}

/// The requested run, as arguments for the program.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    model: String,
    /// For `plan` and `quantize`.
    planned: Vec<String>,
    /// For `quantize` only.
    rest: Vec<String>,
}

impl Request {
    fn new(args: &[String]) -> Self {
        let (model, options) = match args.split_first() {
            Some((first, rest)) if !first.starts_with('-') => (first.as_str(), rest),
            _ => (DEFAULT_MODEL, args),
        };
        let (mut planned, mut rest) = split(options);
        let more = name_of(options);
        let scheme = value_of(&planned, "--scheme");
        let recipe = value_of(&planned, "--recipe");
        let out = value_of(&planned, "--out");
        let mut ours = Vec::new();
        let default = default_scheme(model);
        if scheme.is_none() && recipe.is_none() {
            ours.extend(["--scheme".to_owned(), default.clone()]);
        }
        if out.is_none() {
            let settings: Vec<&str> = scheme.into_iter().chain(recipe.map(stem)).collect();
            let setting = if settings.is_empty() { default.clone() } else { settings.join("-") };
            ours.extend(["--out".to_owned(), format!("out/{}-{setting}{more}", stem(model))]);
        }
        planned.splice(0..0, ours);
        for flag in ["--report", "--resume"] {
            if !rest.iter().any(|word| word == flag) {
                rest.insert(0, flag.to_owned());
            }
        }
        Self { model: model.to_owned(), planned, rest }
    }

    fn has(&self, flag: &str) -> bool {
        self.planned.iter().chain(&self.rest).any(|word| word == flag)
    }

    /// Whether there is such a run already, to be resumed.
    fn is_begun(&self) -> bool {
        value_of(&self.planned, "--out").is_some_and(|out| locate::repository().join(out).join(EVENTS).is_file())
    }

    fn plan(&self) -> Vec<String> {
        [&["plan".to_owned(), self.model.clone()], self.planned.as_slice()].concat()
    }

    fn quantize(&self) -> Vec<String> {
        [&["quantize".to_owned(), self.model.clone()], self.planned.as_slice(), &self.rest].concat()
    }
}

/// The options for both commands, and those for `quantize` only.
fn split(options: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut planned, mut rest) = (Vec::new(), Vec::new());
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let (name, value) = halves(word);
        match NOT_PLANNED.iter().find(|(ours, ..)| *ours == name) {
            None => planned.push(word.clone()),
            Some((_, takes_value, _)) => {
                rest.push(word.clone());
                if *takes_value && value.is_none() {
                    rest.extend(words.next().cloned());
                }
            }
        }
    }
    (planned, rest)
}

/// The default scheme. For the small models it is one whose result differs clearly from round-to-nearest; for others it is 4 bits in
/// groups of 128, or a scheme from `configs/` if that one is not listed there.
fn default_scheme(model: &str) -> String {
    if model == "smollm2-135m" {
        return "w3a16g64".to_owned();
    }
    if model.starts_with("tiny-") {
        return "w2a16g64".to_owned();
    }
    let usual = "w4a16g128".to_owned();
    let schemes = oq_recipe::find(model).map_or(&[][..], |entry| &entry.schemes);
    let known: Vec<String> = schemes.iter().map(ToString::to_string).collect();
    if known.contains(&usual) { usual } else { known.into_iter().next().unwrap_or(usual) }
}

/// The last component of a hub id or a path, without `.toml`.
fn stem(name: &str) -> &str {
    let last = Path::new(name).file_name().and_then(|last| last.to_str()).unwrap_or("model");
    last.strip_suffix(".toml").unwrap_or(last)
}

/// Splits `--name=VALUE`; other words have no value.
fn halves(word: &str) -> (&str, Option<&str>) {
    match word.split_once('=') {
        Some((name, value)) if name.starts_with("--") => (name, Some(value)),
        _ => (word, None),
    }
}

/// The options among `words`, with their values. If an option lacks its value, the program reports it.
fn options(words: &[String]) -> impl Iterator<Item = (&str, Option<&str>)> {
    words.iter().enumerate().filter(|(_, word)| word.starts_with("--")).map(|(at, word)| {
        let (name, value) = halves(word);
        let next = words.get(at + 1).filter(|next| !next.starts_with('-'));
        (name, value.or(next.map(String::as_str)))
    })
}

fn value_of<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    options(words).find(|(other, _)| *other == name)?.1
}

/// Suffix of the result's directory after model and scheme: every option that affects the result, because two runs cannot share a
/// directory.
fn name_of(words: &[String]) -> String {
    let is_in_name = |name: &str| match NOT_PLANNED.iter().find(|(ours, ..)| *ours == name) {
        Some((_, _, decides)) => *decides,
        None => !NOT_IN_NAME.contains(&name),
    };
    let named = options(words).filter(|(name, _)| is_in_name(name));
    let part = |(name, value): (&str, Option<&str>)| match (name.trim_start_matches("--"), value.map(stem)) {
        ("preset" | "method", Some(value)) => format!("-{value}"),
        ("bits", Some(value)) => format!("-{value}bits"),
        (name, Some(value)) => format!("-{name}-{value}"),
        (name, None) => format!("-{name}"),
    };
    named.map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, plan: &str, quantize: &str) {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        let request = Request::new(&args);
        assert_eq!(request.plan().join(" "), plan);
        assert_eq!(request.quantize().join(" "), quantize);
    }

    #[test]
    fn arguments_become_two_commands() {
        check(
            "",
            "plan tiny-llama --scheme w2a16g64 --out out/tiny-llama-w2a16g64",
            "quantize tiny-llama --scheme w2a16g64 --out out/tiny-llama-w2a16g64 --resume --report",
        );
        check(
            "smollm2-135m --epochs 3 --windows 4",
            "plan smollm2-135m --scheme w3a16g64 --out out/smollm2-135m-w3a16g64-epochs-3 --epochs 3",
            "quantize smollm2-135m --scheme w3a16g64 --out out/smollm2-135m-w3a16g64-epochs-3 --epochs 3 --resume --report \
             --windows 4",
        );
        check(
            "facebook/opt-125m --out=/d/o --scheme=w4a4 --resume --data=x --data-dir y",
            "plan facebook/opt-125m --out=/d/o --scheme=w4a4",
            "quantize facebook/opt-125m --out=/d/o --scheme=w4a4 --report --resume --data=x --data-dir y",
        );
        let request = |words: &[&str]| Request::new(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(!request(&["tiny-llama"]).has("--force") && request(&["tiny-llama", "--force"]).has("--force"));
        let out = tempfile::tempdir().unwrap();
        let request = request(&["--out", out.path().to_str().unwrap()]);
        assert!(!request.is_begun());
        let events = out.path().join(EVENTS);
        std::fs::create_dir_all(events.parent().unwrap()).unwrap();
        std::fs::write(events, "").unwrap();
        assert!(request.is_begun());
        check(
            "tiny-opt --no-let --scheme w4a4 --let-lr 1e-3",
            "plan tiny-opt --out out/tiny-opt-w4a4-no-let-let-lr-1e-3 --no-let --scheme w4a4 --let-lr 1e-3",
            "quantize tiny-opt --out out/tiny-opt-w4a4-no-let-let-lr-1e-3 --no-let --scheme w4a4 --let-lr 1e-3 --resume --report",
        );
        check(
            "-q --threads 2 --scheme w3a16g64",
            "plan tiny-llama --out out/tiny-llama-w3a16g64 -q --threads 2 --scheme w3a16g64",
            "quantize tiny-llama --out out/tiny-llama-w3a16g64 -q --threads 2 --scheme w3a16g64 --resume --report",
        );
        check(
            "falcon-7b",
            "plan falcon-7b --scheme w3a16g64 --out out/falcon-7b-w3a16g64",
            "quantize falcon-7b --scheme w3a16g64 --out out/falcon-7b-w3a16g64 --resume --report",
        );
        check(
            "models/a/ --recipe my/w3a16.toml",
            "plan models/a/ --out out/a-w3a16 --recipe my/w3a16.toml",
            "quantize models/a/ --out out/a-w3a16 --recipe my/w3a16.toml --resume --report",
        );
    }

    #[test]
    fn different_runs_have_different_directories() {
        let check = |line: &str, out: &str| {
            let args: Vec<String> = line.split_whitespace().map(String::from).collect();
            assert_eq!(value_of(&Request::new(&args).planned, "--out"), Some(out), "{line}");
        };
        check("smollm2-135m --preset fast", "out/smollm2-135m-w3a16g64-fast");
        check("smollm2-135m --report --preset=best --windows 8 --device cpu", "out/smollm2-135m-w3a16g64-best");
        check("--recipe my/a.toml --scheme w4a4", "out/tiny-llama-w4a4-a");
        check("--bits 3.25 --method rtn", "out/tiny-llama-w2a16g64-3.25bits-rtn");
        check("llama2-7b --calib /d/my.txt --seed 3", "out/llama2-7b-w4a16g128-calib-my.txt-seed-3");
        check(
            "llama2-7b --calib c.jsonl --text-field body --data d",
            "out/llama2-7b-w4a16g128-calib-c.jsonl-text-field-body",
        );
        check("llama2-7b --let --cache-memory 8GiB --json", "out/llama2-7b-w4a16g128-let");
    }

    #[test]
    fn an_option_without_its_value_is_passed_on() {
        check(
            "llama2-7b --scheme",
            "plan llama2-7b --scheme w4a16g128 --out out/llama2-7b-w4a16g128 --scheme",
            "quantize llama2-7b --scheme w4a16g128 --out out/llama2-7b-w4a16g128 --scheme --resume --report",
        );
    }

    /// Options in the program's help (kept true by its own tests), and whether each takes a value.
    fn in_help(help: &str) -> Vec<(&str, bool)> {
        // Two spaces come before a short name, six before a long one, and many before a description.
        let starts = help.lines().filter_map(|line| {
            let own = line.strip_prefix("      ").or(line.strip_prefix("  "))?;
            own.starts_with('-').then(|| own.find("--").map(|at| &own[at..])).flatten()
        });
        starts.map(|line| (line.split([' ', '.']).next().expect("a part"), line.contains(" <"))).collect()
    }

    #[test]
    fn plan_takes_every_option_it_is_given() {
        let planned = in_help(include_str!("../../tests/tests/snapshots/cli__help-plan.snap"));
        let all = in_help(include_str!("../../tests/tests/snapshots/cli__help-quantize.snap"));
        let mut others: Vec<(&str, bool)> = all.into_iter().filter(|option| !planned.contains(option)).collect();
        let mut expected = NOT_PLANNED.map(|(name, takes_value, _)| (name, takes_value)).to_vec();
        others.sort_unstable();
        expected.sort_unstable();
        assert_eq!(others, expected);
    }
}
