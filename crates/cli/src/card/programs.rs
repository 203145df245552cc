//! The programs that a packed model is for: which models each opens, as it was found by trying, and how.

use oq_formats::Quantization;
use oq_quant_core::{ActSpec, Storage, Symmetry, WeightSpec};

use super::markdown::{command, quoted};

/// What decides which programs open a model.
pub struct Facts<'a> {
    /// How it is quantized.
    pub quantization: &'a Quantization,
    /// Whether its activations are rotated at run time.
    pub is_rotated: bool,
}

/// A program.
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// How it opens such a model, or why not.
    pub opens: fn(&Facts<'_>) -> Result<&'static str, &'static str>,
    /// Language and text of an example, for a model in this place.
    pub example: fn(&str) -> (&'static str, String),
}

/// All of them.
pub const PROGRAMS: [Program; 3] = [
    Program { name: "omniquant", opens: in_omniquant, example: of_omniquant },
    Program { name: "transformers", opens: in_transformers, example: of_transformers },
    Program { name: "vLLM", opens: in_vllm, example: of_vllm },
];

fn in_omniquant(facts: &Facts<'_>) -> Result<&'static str, &'static str> {
    Ok(match facts.quantization.act() {
        ActSpec::Float => "yes; on a CPU it multiplies with the packed weights",
        _ => "yes",
    })
}

fn of_omniquant(place: &str) -> (&'static str, String) {
    ("sh", command(["omniquant", "generate", place, "--prompt", "Once upon a time"]))
}

fn in_transformers(facts: &Facts<'_>) -> Result<&'static str, &'static str> {
    let weights = facts.quantization.weights();
    let is_asymmetric = weights.iter().any(|weight| weight.symmetry == Symmetry::Asymmetric);
    if weights.iter().any(is_block_of_ggml) {
        return Err("no: it does not know these types, so it refuses the model");
    }
    match facts.quantization.act() {
        _ if facts.is_rotated => Err("no: it does not rotate activations, so it refuses the model"),
        ActSpec::Float if weights.len() > 1 && is_asymmetric => {
            Err("no: it opens several widths only if they are symmetric")
        }
        ActSpec::Float => Ok(
            "yes, with `compressed-tensors` 0.18 or newer; it decodes the weights, so it needs the memory of the original",
        ),
        _ => Err("no: it would not quantize all activations, so it refuses the model"),
    }
}

fn of_transformers(place: &str) -> (&'static str, String) {
    let code = format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer

place = {}
tokenizer = AutoTokenizer.from_pretrained(place)
model = AutoModelForCausalLM.from_pretrained(place)
ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=32)[0]))",
        quoted(place)
    );
    ("python", code)
}

/// Whether its layout is our own.
fn is_block_of_ggml(weight: &WeightSpec) -> bool {
    matches!(weight.storage, Storage::HalfMin | Storage::Super)
}

fn in_vllm(facts: &Facts<'_>) -> Result<&'static str, &'static str> {
    let weights = facts.quantization.weights();
    let has_only = |widths: &[u32]| weights.iter().all(|weight| widths.contains(&weight.bits.get()));
    if facts.is_rotated || facts.quantization.act() != ActSpec::Float {
        return Err("no: it has no kernels for activations like these");
    }
    match weights.len() {
        1 if has_only(&[4]) => Ok("yes, on CPUs and on CUDA devices"),
        _ if has_only(&[2, 3, 4, 5, 6, 8]) => {
            Ok("it has kernels for CUDA devices of compute capability 7.5 and newer (not tested), and none for CPUs")
        }
        _ => Err("no: it has no kernel for 7 bits"),
    }
}

fn of_vllm(place: &str) -> (&'static str, String) {
    ("sh", command(["vllm", "serve", place, "--dtype", "float16"]))
}

#[cfg(test)]
mod tests {
    use oq_quant_core::QuantSpec;

    use super::*;

    fn opens(quantization: &Quantization, is_rotated: bool) -> [bool; 3] {
        PROGRAMS.map(|program| (program.opens)(&Facts { quantization, is_rotated }).is_ok())
    }

    #[test]
    fn each_program_opens_what_it_was_found_to_open() {
        #[track_caller]
        fn check(scheme: &str, expected: [bool; 3]) {
            assert_eq!(opens(&scheme.parse::<QuantSpec>().unwrap().into(), false), expected, "{scheme}");
        }
        check("w4a16g64", [true, true, true]);
        check("w2a16sym", [true, true, true]);
        check("w7a16g64", [true, true, false]);
        check("w8a8", [true, false, false]);
        check("w4a4sym", [true, false, false]);
        let spec: QuantSpec = "w4a4".parse().unwrap();
        assert_eq!(opens(&spec.into(), true), [true, false, false]);
        let mixed = |symmetry: &str| {
            let weight = |scheme: String| -> WeightSpec { scheme.parse::<QuantSpec>().unwrap().weight };
            let linears = [2, 4].map(|bits| (bits.to_string(), weight(format!("w{bits}a16g64{symmetry}"))));
            Quantization::of_linears(ActSpec::Float, linears)
        };
        assert_eq!(opens(&mixed(""), false), [true, false, true]);
        assert_eq!(opens(&mixed("sym"), false), [true, true, true]);
    }

    #[test]
    fn examples_quote_the_place() {
        for program in PROGRAMS {
            let (language, text) = (program.example)("a \"b\"; c");
            let quoted = if language == "python" { "\"a \\\"b\\\"; c\"" } else { "'a \"b\"; c'" };
            assert!(text.contains(quoted), "{text}");
        }
    }
}
