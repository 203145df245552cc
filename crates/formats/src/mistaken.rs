//! Recognizes common inputs that are not models, and says what to do.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// What a folder without `config.json`, or without weights under the usual names, contains instead, and what to do; none if it is not
/// recognized.
pub(crate) fn what_lies_in(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).exists();
    if has("adapter_config.json") || has("adapter_model.safetensors") || has("adapter_model.bin") {
        let config = fs::read(dir.join("adapter_config.json")).ok();
        let config: Value = config.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let of = config["base_model_name_or_path"].as_str().map_or(String::new(), |base| format!(" for {base}"));
        return Some(format!(
            "an adapter (LoRA){of}, not a model: merge it into its base model (`merge_and_unload()` in peft), and give the folder that \
             this is saved to"
        ));
    }
    if has("omniquant/journal.jsonl") {
        return Some(
            "the output of a run that is not finished: give the same `omniquant quantize` again, with --resume"
                .to_owned(),
        );
    }
    if has("journal.jsonl") {
        let what = "an unfinished run of an earlier version of this program, which alone can resume it: quantize again, into another --out";
        return Some(what.to_owned());
    }
    let mut names: Vec<String> =
        fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let models: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| dir.join(name).join("config.json").is_file()).collect();
    if let Some(last) = models.last() {
        return Some(format!(
            "a folder of models, not a model: give one of the folders in it ({}), such as {}",
            models.join(", "),
            dir.join(last).display()
        ));
    }
    let first = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(name) = first(&[".gguf"]) {
        let path = dir.join(name);
        return Some(format!(
            "{name} is a GGUF file: run `omniquant convert {} --out DIR`, and give DIR",
            path.display()
        ));
    }
    if names.iter().any(|name| name == "params.json") && first(&[".pth", "consolidated.safetensors"]).is_some() {
        return Some("Meta's or Mistral's own layout (params.json): give the same model in Hugging Face's".to_owned());
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("consolidated.")) {
        return Some(format!("{name} has other tensor names: give the same model in Hugging Face's layout"));
    }
    if let Some(name) = first(&[".h5", ".msgpack", ".onnx", ".tflite"]) {
        return Some(format!("{name} belongs to another framework: save the model as safetensors from transformers"));
    }
    if names.iter().any(|name| ["trainer_state.json", "optimizer.pt", "training_args.bin"].contains(&name.as_str())) {
        return Some(
            "a trainer's checkpoint: give a folder that the model was saved to (`save_pretrained`)".to_owned(),
        );
    }
    first(&[".safetensors", ".bin", ".pth", ".pt"]).map(|name| {
        format!("{name} is there: if these are the weights, rename it to model.safetensors or pytorch_model.bin")
    })
}
