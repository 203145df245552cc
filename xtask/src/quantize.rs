//! `cargo xtask quantize`: libtorch, build, checkpoint, then `omniquant plan` and `omniquant quantize --report`.

use std::path::Path;

use anyhow::Result;

use crate::{fetch, program};

const DEFAULT_MODEL: &str = "tiny-llama";

/// Options that `omniquant plan` takes too, so that it plans the run that follows. The first three have defaults here.
const PLANNED: [&str; 16] = [
    "--scheme",
    "--recipe",
    "--out",
    "--method",
    "--calib",
    "--samples",
    "--seqlen",
    "--epochs",
    "--seed",
    "--lwc-lr",
    "--batch",
    "--aug-loss",
    "--let-sites",
    "--let-shift",
    "--let-lr",
    "--let-alpha",
];
/// Those of them that take no value.
const PLANNED_FLAGS: [&str; 2] = ["--let", "--no-let"];

/// The whole run. `args` is `[MODEL] [options for omniquant quantize]`.
pub fn run(args: &[String]) -> Result<()> {
    let request = Request::new(args);
    program::build()?;
    fetch::if_wheel(&request.model)?;
    program::run(&request.plan())?;
    program::run(&request.quantize())
}

/// What is asked for, as words for the binary.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    model: String,
    /// For `plan` and for `quantize`.
    planned: Vec<String>,
    /// For `quantize` alone.
    rest: Vec<String>,
}

impl Request {
    fn new(args: &[String]) -> Self {
        let (model, options) = match args.split_first() {
            Some((first, rest)) if !first.starts_with('-') => (first.as_str(), rest),
            _ => (DEFAULT_MODEL, args),
        };
        let mut rest = options.to_vec();
        let given = PLANNED.map(|name| take_value(&mut rest, name));
        let [mut scheme, recipe, mut out, ..] = given.clone();
        if scheme.is_none() && recipe.is_none() {
            scheme = Some(default_scheme(model));
        }
        let setting = scheme.as_deref().or(recipe.as_deref().map(stem)).unwrap_or_default();
        out = out.or_else(|| Some(format!("out/{}-{setting}", stem(model))));

        let values = [scheme, recipe, out].into_iter().chain(given.into_iter().skip(3));
        let pairs = PLANNED.iter().zip(values).filter_map(|(name, value)| Some([(*name).to_owned(), value?]));
        let flags = PLANNED_FLAGS.iter().filter(|flag| rest.iter().any(|word| word == *flag));
        let planned: Vec<String> = pairs.flatten().chain(flags.map(|flag| (*flag).to_owned())).collect();
        rest.retain(|word| !PLANNED_FLAGS.contains(&word.as_str()));
        for flag in ["--report", "--resume"] {
            if !rest.iter().any(|word| word == flag) {
                rest.insert(0, flag.to_owned());
            }
        }
        Self { model: model.to_owned(), planned, rest }
    }

    fn plan(&self) -> Vec<String> {
        [&["plan".to_owned(), self.model.clone()], self.planned.as_slice()].concat()
    }

    fn quantize(&self) -> Vec<String> {
        [&["quantize".to_owned(), self.model.clone()], self.planned.as_slice(), &self.rest].concat()
    }
}

/// The scheme to run where none is asked for: on the small models one whose result differs clearly from
/// round-to-nearest; else 4 bits in groups of 128, or what `configs/` has where that isn't among it.
fn default_scheme(model: &str) -> String {
    if model == "smollm2-135m" {
        return "w3a16g64".to_owned();
    }
    if model.starts_with("tiny-") {
        return "w2a16g64".to_owned();
    }
    let usual = "w4a16g128".to_owned();
    let known: Vec<String> = oq_recipe::schemes_of(model).map(|scheme| scheme.to_string()).collect();
    if known.contains(&usual) { usual } else { known.into_iter().next().unwrap_or(usual) }
}

/// The last part of a hub id or a path, without `.toml`.
fn stem(name: &str) -> &str {
    let last = Path::new(name).file_name().and_then(|last| last.to_str()).unwrap_or("model");
    last.strip_suffix(".toml").unwrap_or(last)
}

/// Removes `--name VALUE` or `--name=VALUE` and returns the value.
fn take_value(words: &mut Vec<String>, name: &str) -> Option<String> {
    let at = words
        .iter()
        .position(|word| word.strip_prefix(name).is_some_and(|end| end.is_empty() || end.starts_with('=')))?;
    if let Some((_, value)) = words[at].split_once('=') {
        let value = value.to_owned();
        words.remove(at);
        return Some(value);
    }
    // Without a value the word stays, and omniquant says what it lacks.
    (at + 1 < words.len()).then(|| words.drain(at..=at + 1).next_back().expect("two words are drained"))
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
    fn words_become_two_commands() {
        check(
            "",
            "plan tiny-llama --scheme w2a16g64 --out out/tiny-llama-w2a16g64",
            "quantize tiny-llama --scheme w2a16g64 --out out/tiny-llama-w2a16g64 --resume --report",
        );
        check(
            "smollm2-135m --epochs 3 --windows 4",
            "plan smollm2-135m --scheme w3a16g64 --out out/smollm2-135m-w3a16g64 --epochs 3",
            "quantize smollm2-135m --scheme w3a16g64 --out out/smollm2-135m-w3a16g64 --epochs 3 --resume --report --windows 4",
        );
        check(
            "facebook/opt-125m --out=/d/o --scheme=w4a4 --resume",
            "plan facebook/opt-125m --scheme w4a4 --out /d/o",
            "quantize facebook/opt-125m --scheme w4a4 --out /d/o --report --resume",
        );
        check(
            "tiny-opt --no-let --scheme w4a4 --let-lr 1e-3",
            "plan tiny-opt --scheme w4a4 --out out/tiny-opt-w4a4 --let-lr 1e-3 --no-let",
            "quantize tiny-opt --scheme w4a4 --out out/tiny-opt-w4a4 --let-lr 1e-3 --no-let --resume --report",
        );
        check(
            "--seed 3 --scheme w3a16g64",
            "plan tiny-llama --scheme w3a16g64 --out out/tiny-llama-w3a16g64 --seed 3",
            "quantize tiny-llama --scheme w3a16g64 --out out/tiny-llama-w3a16g64 --seed 3 --resume --report",
        );
        check(
            "falcon-7b",
            "plan falcon-7b --scheme w3a16g64 --out out/falcon-7b-w3a16g64",
            "quantize falcon-7b --scheme w3a16g64 --out out/falcon-7b-w3a16g64 --resume --report",
        );
        check(
            "models/a/ --recipe my/w3a16.toml",
            "plan models/a/ --recipe my/w3a16.toml --out out/a-w3a16",
            "quantize models/a/ --recipe my/w3a16.toml --out out/a-w3a16 --resume --report",
        );
    }

    #[test]
    fn an_option_without_its_value_is_left_to_the_binary() {
        check(
            "llama2-7b --scheme",
            "plan llama2-7b --scheme w4a16g128 --out out/llama2-7b-w4a16g128",
            "quantize llama2-7b --scheme w4a16g128 --out out/llama2-7b-w4a16g128 --resume --report --scheme",
        );
    }
}
