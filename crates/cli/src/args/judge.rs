//! Options of `omniquant judge`.

use std::path::PathBuf;

use clap::Args;

use super::shared::RunArgs;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant judge llama2-7b-chat-w4 llama2-7b-chat-w3 --questions q.jsonl
  omniquant judge ./mine http://127.0.0.1:8080/v1 --questions q.txt \\
    --judge http://127.0.0.1:9000/v1 --judge-model big --json

Both models answer each question by their own chat template. The judge sees
each pair of answers in both orders. A pair is won only if both orders agree;
if they disagree, it is a tie. Shares have a 95% interval (Wilson's).

Answers, verdicts and the judge's reasons are kept in contest.jsonl of --out.
A contest that was stopped goes on when its command is repeated.

Environment: OPENAI_API_KEY (for --judge), OMNIQUANT_TOKEN (for A and B if they
are URLs).")]
pub struct JudgeArgs {
    /// The first model, which wins or loses: a model as for `omniquant chat`, or the URL of an OpenAI-compatible API that serves it
    #[arg(value_name = "A")]
    pub a: String,
    /// The second model
    #[arg(value_name = "B")]
    pub b: String,
    /// The questions, one per line: text, or JSON with the text in question, prompt, text, or the first of turns
    #[arg(long, value_name = "FILE")]
    pub questions: PathBuf,
    /// The OpenAI-compatible API of the judge
    #[arg(long, value_name = "URL", default_value = "https://api.openai.com/v1")]
    pub judge: String,
    /// The judge's name there
    #[arg(long, value_name = "NAME", default_value = "gpt-4")]
    pub judge_model: String,
    /// The folder of the contest's record [default: A-against-B]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Sampling temperature of the answers; 0 is greedy decoding
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Seed of the answers, where they are sampled; an API draws as it does
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub run: RunArgs,
}
