//! Options of `omniquant serve`.

use clap::Args;

use super::shared::{ModelArgs, RunArgs};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  omniquant serve llama2-7b-chat-w4
  omniquant serve llama2-7b-chat-w4 --port 9000 --parallel 4
  OMNIQUANT_TOKEN=secret omniquant serve llama2-7b-chat-w4 --host 0.0.0.0
  curl http://127.0.0.1:8080/v1/chat/completions -d \\
    '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'

Paths: /v1/chat/completions, /v1/completions, /v1/models, /health.
Sampling settings that a request leaves out come from the model's
generation_config.json. What a request asks for and this server lacks is
refused. Ctrl-C ends the server.

Environment: OMNIQUANT_TOKEN (--token).")]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The address to listen at; the default is reachable from this machine alone
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen at; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// What clients call the model [default: the last part of MODEL]
    #[arg(long = "name", value_name = "NAME")]
    pub served_name: Option<String>,
    /// Answer only requests with this token (Authorization: Bearer TOKEN) [default: answer everyone]
    #[arg(long, value_name = "TOKEN", env = "OMNIQUANT_TOKEN", hide_env = true)]
    pub token: Option<String>,
    /// Answers to generate at a time, token by token in turns; each has keys and values of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,
    /// Requests that can wait beyond those; more are refused
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub queue: u16,
    #[command(flatten)]
    pub run: RunArgs,
}
