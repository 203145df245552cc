//! A model behind an OpenAI-compatible API.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

/// Enough to find out that a name does not resolve or a port does not open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole answer, which a slow machine generates token by token.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1800);
/// Attempts at a request that failed in a way that may pass.
const ATTEMPTS: u32 = 7;
/// Delay before the second attempt; it is doubled before each further one.
const BACKOFF: Duration = Duration::from_secs(1);
/// Longest delay, also of those that a server asks for.
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Longest reply that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Why an endpoint gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Nobody answers there.
    #[error("{url}: {reason}{}", after(*attempts))]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        reason: String,
        /// How often.
        attempts: u32,
    },
    /// The answer is an error.
    #[error("{url}: status {status}: {reason}{}", after(*attempts))]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// The answer is none.
    #[error("{url}: not an answer in OpenAI's form: {reason}{}", after(*attempts))]
    Form {
        /// What was asked.
        url: String,
        /// What is missing.
        reason: String,
        /// How often it was asked.
        attempts: u32,
    },
    /// There is not exactly one model, and none was named.
    #[error("{url} has {} models ({}): name one", names.len(), names.join(", "))]
    WhichModel {
        /// What was asked.
        url: String,
        /// The models.
        names: Vec<String>,
    },
}

fn after(attempts: u32) -> String {
    if attempts > 1 { format!(" (after {attempts} attempts)") } else { String::new() }
}

/// How an answer is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ChatOptions {
    /// 0 is greedy decoding.
    pub temperature: f64,
    /// Most tokens of an answer; as many as the server gives if there is none.
    pub max_tokens: Option<usize>,
}

impl ChatOptions {
    /// Greedy decoding without a limit.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// The same at another temperature.
    pub fn with_temperature(self, temperature: f64) -> Self {
        Self { temperature, ..self }
    }

    /// The same with so many tokens at most.
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }
}

/// A chat model at a URL such as `https://api.openai.com/v1`.
#[derive(Debug)]
pub struct Endpoint {
    base: String,
    model: String,
    key: Option<String>,
    backoff: Duration,
    agent: Agent,
    /// Whether the model takes a temperature. Some refuse every one but their own.
    takes_temperature: bool,
}

/// Why one request failed.
struct Failure {
    error: EndpointError,
    /// Whether it may pass, and after which time by the server's word.
    passes: Option<Option<Duration>>,
    /// The key of the request that the server refuses.
    param: Option<String>,
}

impl Endpoint {
    /// A model of an API; `key` is sent as `Authorization: Bearer`.
    pub fn new(base: &str, model: impl Into<String>, key: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_recv_body(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("omniquant/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let base = base.trim_end_matches('/').to_owned();
        Self { base, model: model.into(), key, backoff: BACKOFF, agent, takes_temperature: true }
    }

    /// The only model of an API.
    ///
    /// # Errors
    /// When the API does not list its models, or has several.
    pub fn of_only_model(base: &str, key: Option<String>) -> Result<Self, EndpointError> {
        let mut endpoint = Self::new(base, "", key);
        let url = format!("{}/models", endpoint.base);
        let listed = endpoint.retried(|endpoint| endpoint.send(&url, None))?;
        let entries = listed["data"].as_array().map_or(&[][..], Vec::as_slice);
        let mut names: Vec<String> =
            entries.iter().filter_map(|entry| Some(entry["id"].as_str()?.to_owned())).collect();
        if names.len() != 1 {
            return Err(EndpointError::WhichModel { url, names });
        }
        endpoint.model = names.remove(0);
        Ok(endpoint)
    }

    /// The same with another delay before a second attempt.
    pub fn with_backoff(self, backoff: Duration) -> Self {
        Self { backoff, ..self }
    }

    /// What the model is called there.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The answer to a conversation: messages as role and text. Failures that may pass (no connection, status 429 and from 500) are tried
    /// again, after the time that the server asks for, or else after longer and longer ones.
    pub fn chat(&mut self, messages: &[(&str, &str)], options: ChatOptions) -> Result<String, EndpointError> {
        let url = format!("{}/chat/completions", self.base);
        let messages: Vec<Value> =
            messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        self.retried(|endpoint| {
            let mut body = json!({"model": endpoint.model, "messages": messages});
            if endpoint.takes_temperature {
                body["temperature"] = options.temperature.into();
            }
            if let Some(max_tokens) = options.max_tokens {
                body["max_tokens"] = max_tokens.into();
            }
            let reply = match endpoint.send(&url, Some(&body)) {
                Err(failure) if endpoint.takes_temperature && failure.param.as_deref() == Some("temperature") => {
                    tracing::warn!("{}: takes no temperature but its own", endpoint.model);
                    endpoint.takes_temperature = false;
                    body.as_object_mut().expect("it was made so").remove("temperature");
                    endpoint.send(&url, Some(&body))?
                }
                other => other?,
            };
            let text = reply["choices"][0]["message"]["content"].as_str();
            text.map(str::to_owned).ok_or_else(|| form(&url, "no choices[0].message.content".to_owned()))
        })
    }

    /// One request: a POST if it has a body.
    fn send(&self, url: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let network = |e: ureq::Error| Failure {
            error: EndpointError::Unreachable { url: url.to_owned(), reason: e.to_string(), attempts: 1 },
            passes: Some(None),
            param: None,
        };
        let bearer = self.key.as_ref().map(|key| format!("Bearer {key}"));
        let mut response = match body {
            Some(body) => {
                let request = self.agent.post(url).header("content-type", "application/json");
                let request = bearer.iter().fold(request, |request, bearer| request.header("authorization", bearer));
                request.send(body.to_string())
            }
            None => {
                let request = self.agent.get(url);
                bearer.iter().fold(request, |request, bearer| request.header("authorization", bearer)).call()
            }
        }
        .map_err(network)?;
        let status = response.status().as_u16();
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let text = response.body_mut().with_config().limit(MAX_BYTES).read_to_string().map_err(network)?;
        let json: Result<Value, _> = serde_json::from_str(&text);
        if status == 200 {
            return json.map_err(|e| form(url, format!("not JSON: {e}")));
        }
        let error = json.map(|json| json["error"].clone()).unwrap_or_default();
        let reason = error["message"].as_str().unwrap_or(&text).chars().take(300).collect();
        Err(Failure {
            error: EndpointError::Status { url: url.to_owned(), status, reason, attempts: 1 },
            passes: matches!(status, 429 | 500..).then(|| wait.map(Duration::from_secs)),
            param: error["param"].as_str().map(str::to_owned),
        })
    }

    fn retried<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, Failure>) -> Result<T, EndpointError> {
        let mut tried = 1;
        loop {
            let failure = match attempt(self) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let Some(wait) = failure.passes.filter(|_| tried < ATTEMPTS) else {
                return Err(failure.error.with_attempts(tried));
            };
            let wait = wait.unwrap_or(self.backoff * 2u32.pow(tried - 1)).min(MAX_DELAY);
            tracing::warn!("{}; trying again in {:.1} s", failure.error, wait.as_secs_f64());
            sleep(wait);
            tried += 1;
        }
    }
}

/// The failure of an answer that has not the form of one, which may pass: a proxy's page, a broken line.
fn form(url: &str, reason: String) -> Failure {
    let error = EndpointError::Form { url: url.to_owned(), reason, attempts: 1 };
    Failure { error, passes: Some(None), param: None }
}

impl EndpointError {
    fn with_attempts(mut self, tried: u32) -> Self {
        match &mut self {
            Self::Unreachable { attempts, .. } | Self::Status { attempts, .. } | Self::Form { attempts, .. } => {
                *attempts = tried;
            }
            Self::WhichModel { .. } => {}
        }
        self
    }
}
