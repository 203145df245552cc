//! Results as the `lm-evaluation-harness` writes them, for programs that read its files.

use std::time::{SystemTime, UNIX_EPOCH};

use oq_data::Task;
use serde_json::{Map, Value, json};

/// A task's results.
pub struct TaskResult {
    pub task: Task,
    /// Items asked.
    pub items: usize,
    /// Items that the task has.
    pub of: usize,
    /// The harness's name of a metric, its value and its standard error.
    pub metrics: Vec<(&'static str, f64, Option<f64>)>,
}

/// The file's content. `config` says which model was asked, and how.
pub fn file_of(model: &str, config: Value, limit: Option<u32>, results: &[TaskResult], secs: f64) -> Value {
    let keys = ["results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"];
    let mut parts: [Map<String, Value>; 6] = std::array::from_fn(|_| Map::new());
    for result in results {
        let (name, version) = result.task.in_harness();
        let mut figures = json!({"alias": name, "sample_len": result.items});
        for (metric, value, error) in &result.metrics {
            figures[format!("{metric},none")] = (*value).into();
            figures[format!("{metric}_stderr,none")] = error.map_or_else(|| "N/A".into(), Value::from);
        }
        let is_better: Map<String, Value> = result
            .metrics
            .iter()
            .map(|(metric, ..)| ((*metric).to_owned(), (*metric != "perplexity").into()))
            .collect();
        let metrics: Vec<Value> = is_better
            .iter()
            .map(|(metric, is_better)| {
                let aggregation = if metric == "perplexity" { "perplexity" } else { "mean" };
                json!({"metric": metric, "aggregation": aggregation, "higher_is_better": is_better})
            })
            .collect();
        let output_type = if result.task.has_choices() { "multiple_choice" } else { "loglikelihood" };
        let about = json!({"task": name, "output_type": output_type, "num_fewshot": 0, "repeats": 1, "metric_list": metrics,
            "metadata": {"version": version}});
        let samples = json!({"original": result.of, "effective": result.items});
        let values = [figures, about, version.into(), 0.into(), is_better.into(), samples];
        parts.iter_mut().zip(values).for_each(|(part, value)| drop(part.insert(name.to_owned(), value)));
    }
    let mut file = Map::new();
    for (key, part) in keys.iter().zip(parts) {
        file.insert((*key).to_owned(), part.into());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let rest = json!({"group_subtasks": {},
        "config": {"model": "omniquant", "model_args": config, "batch_size": "auto", "limit": limit},
        "date": now, "git_hash": null, "omniquant_version": env!("CARGO_PKG_VERSION"), "model_source": "omniquant", "model_name": model,
        "model_name_sanitized": model.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "__"),
        "total_evaluation_time_seconds": secs.to_string()});
    let Value::Object(rest) = rest else { unreachable!("an object was written") };
    file.extend(rest);
    Value::Object(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_where_the_harness_has_them() {
        let metrics = vec![("acc", 0.5, Some(0.25)), ("perplexity", 8.0, None)];
        let results = [TaskResult { task: Task::Lambada, items: 4, of: 9, metrics }];
        let file = file_of("a/b c", json!({"pretrained": "a/b c"}), Some(4), &results, 1.5);
        let figures = &file["results"]["lambada_openai"];
        assert_eq!((&figures["acc,none"], &figures["acc_stderr,none"]), (&0.5.into(), &0.25.into()));
        assert_eq!((&figures["perplexity,none"], &figures["perplexity_stderr,none"]), (&8.0.into(), &"N/A".into()));
        assert_eq!(file["n-samples"]["lambada_openai"], json!({"original": 9, "effective": 4}));
        assert_eq!(file["higher_is_better"]["lambada_openai"], json!({"acc": true, "perplexity": false}));
        assert_eq!((&file["versions"]["lambada_openai"], &file["n-shot"]["lambada_openai"]), (&1.0.into(), &0.into()));
        assert_eq!(file["model_name_sanitized"], "a__b__c");
    }
}
