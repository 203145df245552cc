//! How to run a packed model. The table of `oq-export` says which programs of others open it.

use oq_export::{Evidence, Limit, Program, Refusal, Subject, check, find, limits_of_programs, programs};
use oq_quant_core::{ActSpec, QuantSpec, Symmetry, WeightSpec};
use oq_recipe::Recipe;

use super::markdown::{command, quoted};

/// The format that packed models have, unless activations are quantized.
const LAYOUT: &str = "compressed-tensors";

/// The programs of others that open a packed model as it is.
///
/// # Errors
/// Why they refuse it.
pub fn others(subject: &Subject) -> Result<Vec<&'static Program>, Refusal> {
    let layout = find(LAYOUT).expect("it is in the table");
    check(layout, subject)?;
    // Those that are left have another layout there.
    Ok(if subject.act() == ActSpec::Float { programs(layout, subject) } else { Vec::new() })
}

/// The programs of others that open models of this layout, and not this one.
pub fn limits(subject: &Subject) -> Vec<&'static Limit> {
    limits_of_programs(find(LAYOUT).expect("it is in the table"), subject)
}

/// Says before a run that other programs will refuse its result.
pub fn warning(recipe: &Recipe) -> Option<String> {
    let QuantSpec { weight, act, .. } = recipe.scheme;
    let is_online = recipe.rotate.kind == oq_quant_core::RotateKind::Online;
    let outer = [recipe.outer.head_bits, recipe.outer.embed_bits].into_iter().flatten();
    let own: Vec<WeightSpec> = recipe.overrides.iter().filter_map(|own| own.weight().over(weight)).collect();
    let own: Vec<WeightSpec> = own.into_iter().chain(outer.map(|bits| WeightSpec { bits, ..weight })).collect();
    let (subject, symmetric) = match &recipe.bits {
        None if own.is_empty() => (Subject::from(recipe.scheme), None),
        None => (Subject::new(act, own.into_iter().chain([weight])), None),
        Some(bits) => {
            let symmetric = WeightSpec { symmetry: Symmetry::Symmetric, ..weight };
            let weights = bits.choices.iter().map(|&bits| WeightSpec { bits, ..weight });
            (Subject::new(act, weights), Some(QuantSpec { weight: symmetric, ..recipe.scheme }))
        }
    };
    let refusal = others(&subject.rotated_online(is_online)).err()?;
    // A refusal would list all widths.
    let why = match symmetric.filter(|_| act == ActSpec::Float && !is_online) {
        Some(symmetric) => format!("{}; --scheme {symmetric} would do", refusal.why),
        None => refusal.to_string(),
    };
    Some(format!("only this program opens the result as it is: {why}"))
}

/// Cells of a table: the program, how it computes, how that is known.
pub fn cells(program: &Program) -> [String; 3] {
    let known = match program.evidence {
        Evidence::Run => "tested",
        Evidence::Read => "by its source code",
    };
    [program.name, program.path, known].map(str::to_owned)
}

/// Language and text of an example for our own program.
pub fn example(place: &str) -> (&'static str, String) {
    ("sh", command(["omniquant", "generate", place, "--prompt", "Once upon a time"]))
}

/// The same for programs of others: with their names.
pub fn examples(programs: &[&Program], place: &str) -> Vec<(&'static str, &'static str, String)> {
    let transformers = format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer

place = {}
tokenizer = AutoTokenizer.from_pretrained(place)
model = AutoModelForCausalLM.from_pretrained(place)
ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=32)[0]))",
        quoted(place)
    );
    let vllm = command(["vllm", "serve", place, "--dtype", "float16"]);
    let all = [("transformers", "python", transformers), ("vLLM", "sh", vllm)];
    all.into_iter().filter(|(name, ..)| programs.iter().any(|program| program.name.starts_with(name))).collect()
}

#[cfg(test)]
mod tests {
    use oq_recipe::Overrides;

    use super::*;

    fn names(scheme: &str) -> Vec<&'static str> {
        let programs = others(&scheme.parse::<QuantSpec>().unwrap().into()).unwrap_or_default();
        examples(&programs, "a").into_iter().map(|(name, ..)| name).collect()
    }

    #[test]
    fn examples_are_for_the_programs_that_open_it() {
        assert_eq!(names("w4a16g64"), ["transformers", "vLLM"]);
        assert_eq!(names("w7a16g64"), ["transformers"]);
        assert_eq!(names("mxfp4"), ["transformers"]);
        for scheme in ["w8a8", "w4a4sym", "w8a8-int8", "q4_1_pure"] {
            assert!(names(scheme).is_empty(), "{scheme}");
        }
    }

    #[test]
    fn examples_quote_the_place() {
        let programs = others(&"w4a16g64".parse::<QuantSpec>().unwrap().into()).unwrap();
        for (name, language, text) in examples(&programs, "a \"b\"; c") {
            let quoted = if language == "python" { "\"a \\\"b\\\"; c\"" } else { "'a \"b\"; c'" };
            assert!(text.contains(quoted), "{name}: {text}");
        }
    }

    #[track_caller]
    fn check_warning(scheme: &str, overrides: &Overrides, parts: &[&str]) {
        let warning = warning(&Recipe::resolve(scheme.parse().unwrap(), None, None, overrides).unwrap());
        match parts {
            [] => assert_eq!(warning, None, "{scheme}"),
            _ => assert!(
                parts.iter().all(|part| warning.as_ref().is_some_and(|text| text.contains(part))),
                "{warning:?}"
            ),
        }
    }

    #[test]
    fn what_others_refuse_is_said_with_what_would_do() {
        let usual = Overrides::default();
        check_warning("w4a16g64", &usual, &[]);
        check_warning("w8a8-int8", &usual, &[]);
        check_warning("w8a8", &usual, &["only this program opens the result", "w8a8-int8 would do"]);
        check_warning("w4a4", &usual, &["rotated while it runs"]);
        let mixed = Overrides::default().bits(3.25);
        check_warning("w3a16g64", &mixed, &["symmetric; --scheme w3a16g64sym would do"]);
        check_warning("w3a16g64sym", &mixed, &[]);
    }
}
