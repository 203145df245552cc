//! Perplexity on a text, and divergence from another model on it.

use std::time::Instant;

use anyhow::Result;
use oq_eval::{Divergence, Perplexity};
use oq_ranks::Ranks;
use serde_json::{Value, json};

use super::opened::Opened;
use super::outcome::Outcome;
use super::subject::Subject;
use crate::args::EvalArgs;
use crate::card;
use crate::commands::report;
use crate::output::{Output, seconds};

/// Shares of the positions whose divergence is shown, with their names in records.
const QUANTILES: [(&str, f64); 5] = [("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999), ("max", 1.0)];

/// Measures a model on the text of the command line.
pub fn measure(args: &EvalArgs, opened: &Opened, ranks: &Ranks, out: &Output) -> Result<Outcome> {
    let Opened { named, model, device, .. } = opened;
    let full = opened.full(args, out)?;
    let subject = Subject::new(named.entry, model, &args.data, args.seqlen, out)?.shared(ranks)?;
    let started = Instant::now();
    let (result, compared) = match &full {
        None => (subject.measure(model, *device, "measuring", out)?, None),
        Some((name, full)) => {
            let compared = subject.compare(full, model, &args.data, *device, out)?;
            (compared.quantized.clone(), Some((name, compared)))
        }
    };
    let secs = started.elapsed().as_secs_f64();
    let windows = result.window_nll.len();
    let mut results = json!({"data": subject.data, "seqlen": result.seqlen, "windows": windows, "tokens": subject.tokens(),
        "perplexity": result.value(), "perplexity_error": result.error(),
        "running_perplexity": (1..=windows).map(|n| result.after(n)).collect::<Vec<_>>()});
    if let Some((name, compared)) = &compared {
        results["against"] = record_of(name, compared);
    }
    let record = opened.record(args, results, secs);
    if args.card && ranks.is_first() {
        let mut measured = vec![subject.measured(card::THIS, &result)];
        if let Some((name, compared)) = &compared {
            measured.extend(card::divergence(name, &subject.data, compared));
        }
        report::measured(model.dir(), &measured)?;
    }
    let what = subject.describe(&result);
    let mut figures = vec![(format!("perplexity ({what})"), format!("{:.4}{}", result.value(), shown_error(&result)))];
    let line =
        format!("perplexity {}  ({what}; {} tokens in total; {})", figures[0].1, subject.tokens(), seconds(secs));
    let mut lines = vec![line];
    if let Some((name, compared)) = &compared {
        let error = |error: Option<f64>, scale: f64, digits: usize| {
            error.map_or(String::new(), |error| format!(" +- {:.digits$}", scale * error))
        };
        let divergence = format!("{:.5}{}", compared.mean(), error(compared.mean_error(), 1.0, 5));
        let agreement = format!("{:.2}{}", 100.0 * compared.agreement(), error(compared.agreement_error(), 100.0, 2));
        let increase = 100.0 * compared.nll_increase().exp_m1();
        let increase_error = compared.nll_increase_error().map(|error| error * compared.nll_increase().exp());
        let full = format!("{:.4}{}", compared.full.value(), shown_error(&compared.full));
        lines.push(format!("against {name}, perplexity {full}: {increase:+.2} %{}", error(increase_error, 100.0, 2)));
        let quantiles = QUANTILES.map(|(name, q)| format!("{name} {:.5}", compared.quantile(q))).join(", ");
        lines.push(format!("divergence {divergence}  ({quantiles}; {} positions)", compared.positions()));
        lines.push(format!("same likeliest token {agreement} %"));
        figures.push(("divergence".to_owned(), divergence));
        figures.push(("same likeliest token, %".to_owned(), agreement));
    }
    Ok(Outcome { model: named.name.clone(), record, text: lines.join("\n"), figures })
}

/// ` +- 0.31`, if it is known.
fn shown_error(result: &Perplexity) -> String {
    result.error().map_or(String::new(), |error| format!(" +- {error:.2}"))
}

/// For scripts.
fn record_of(name: &str, compared: &Divergence) -> Value {
    let mut divergence = json!({"mean": compared.mean(), "mean_error": compared.mean_error()});
    for (quantile, q) in QUANTILES {
        divergence[quantile] = compared.quantile(q).into();
    }
    json!({"model": name, "perplexity": compared.full.value(), "perplexity_error": compared.full.error(),
        "nll_increase": compared.nll_increase(), "nll_increase_error": compared.nll_increase_error(),
        "positions": compared.positions(), "divergence": divergence,
        "agreement": compared.agreement(), "agreement_error": compared.agreement_error()})
}
