//! `omniquant plan`: what a run would do and take.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use oq_calib::Plan;
use oq_formats::{quantization_of, read_config};
use oq_models::ModelError;
use oq_models::family::decoder_of;
use oq_quant_core::ActSpec;
use oq_recipe::{ModelEntry, Recipe, Shape, Source};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::exit::CliError;
use crate::machine;
use crate::output::{Output, bytes};
use crate::resolve::Named;

pub fn run(args: &PlanArgs, out: &Output) -> Result<()> {
    let named = Named::new(&args.model);
    // A mistake is told before anything is fetched.
    named.recipe(&args.recipe, None)?;
    let config = config(&named, out)?;
    let recipe = named.recipe(&args.recipe, Some(&config))?;
    let decoder = decoder_of(&config)?;
    let machine = machine::machine(args.out.as_deref().unwrap_or(Path::new(".")));
    let plan = Plan::new(&*decoder, &recipe, machine);
    let value = json!({"model": named.name, "recipe": recipe, "plan": plan, "peak_bytes": plan.memory.peak_bytes(),
        "machine": machine, "fits": plan.problems.is_empty()});
    out.result(&value, || text(&named.name, &recipe, &plan))?;
    refuse(&plan)
}

/// An error when the run does not fit.
pub fn refuse(plan: &Plan) -> Result<()> {
    if plan.problems.is_empty() { Ok(()) } else { Err(CliError::DoesNotFit(plan.problems.join("\n  ")).into()) }
}

/// The model's `config.json`: from configs/ where that knows enough, so that nothing is downloaded for a plan.
fn config(named: &Named, out: &Output) -> Result<Value> {
    let known = named.entry.filter(|entry| !matches!(entry.source, Source::Path { .. }));
    let config = match known.and_then(|entry| Some(config_of(entry, entry.shape.as_ref()?))) {
        Some(config) => config,
        None => read_config(&named.directory(out)?)?,
    };
    if let Some(spec) = quantization_of(&config)? {
        return Err(ModelError::AlreadyQuantized { dir: named.name.clone().into(), spec }.into());
    }
    Ok(config)
}

/// A `config.json` of that shape, in the words of every family.
pub fn config_of(entry: &ModelEntry, shape: &Shape) -> Value {
    json!({
        "model_type": entry.family.to_string(),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
        // OPT.
        "ffn_dim": shape.intermediate,
        "word_embed_proj_dim": shape.embedding,
        "do_layer_norm_before": !entry.post_norm,
        // Falcon: one key/value head, or groups of heads with one each.
        "ffn_hidden_size": shape.intermediate,
        "num_kv_heads": shape.kv_heads,
        "multi_query": shape.kv_heads == 1,
        "new_decoder_architecture": shape.kv_heads > 1 && shape.kv_heads < shape.heads,
    })
}

/// The plan for people.
pub fn text(model: &str, recipe: &Recipe, plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("a string takes all");
    line("model", format!("{model}, {} blocks", plan.n_layers));
    line("setting", format!("{} by {}", recipe.scheme, recipe.method));
    if let ActSpec::PerToken(bits) = recipe.scheme.act {
        line("activations", format!("{} bits per token: inputs of linears, queries, keys, values", bits.get()));
    }
    if recipe.method.reads_text() {
        let c = &recipe.calibration;
        line("calibration", format!("{} segments of {} tokens of {}, seed {}", c.samples, c.seqlen, c.data, c.seed));
    }
    if recipe.method.learns() {
        let loss = if recipe.learn.aug_loss { "both targets" } else { "one target" };
        let (epochs, steps, lr) = (recipe.learn.epochs, plan.steps_per_block, recipe.learn.lwc_lr);
        let scales =
            if plan.sites.is_empty() { String::new() } else { format!(", {:e} for scales", recipe.transform.lr) };
        line("learning", format!("{epochs} epochs, {steps} steps per block, AdamW at {lr:e}{scales}, {loss}"));
    }
    for linear in &plan.linears {
        let shape = format!("[{}, {}]", linear.out_features, linear.in_features);
        line("  linear", format!("{:<31} {shape:<16}{} grids", linear.name, linear.n_groups));
    }
    for site in &plan.sites {
        let readers = if site.readers.is_empty() { String::new() } else { format!(" -> {}", site.readers.join(", ")) };
        let shifts = if site.n_shifts > 0 { format!(" and {} shifts", site.n_shifts) } else { String::new() };
        let between = format!("{}{readers}", site.writers.join(" : "));
        line("  site", format!("{:<7}{between}: {} scales{shifts}", site.kind.name(), site.n_scales));
    }
    line("learned", format!("{} numbers per block", plan.learned_per_block));
    let memory = &plan.memory;
    line("memory", format!("{} at most, of which", bytes(memory.peak_bytes())));
    line("  program", bytes(memory.program_bytes));
    line("  block", bytes(memory.block_bytes));
    line("  hidden states", bytes(memory.cache_bytes));
    line("  step", bytes(memory.step_bytes));
    line("output", bytes(plan.output_bytes));
    line("fits", if plan.problems.is_empty() { "yes".to_owned() } else { "no".to_owned() });
    text
}
