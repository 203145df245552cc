//! Errors as clients of OpenAI's API read them.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Seconds after which a refused client may ask again.
const RETRY_SECS: u64 = 5;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    /// What programs compare.
    pub code: &'static str,
    /// The key of the request that is at fault.
    pub param: Option<String>,
    pub message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into() }
    }

    /// The request as a whole cannot be read.
    pub(crate) fn unreadable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// A key has a value that it cannot have.
    pub(crate) fn value(param: &str, message: impl Into<String>) -> Self {
        let message = format!("{param}: {}", message.into());
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A key would change the answer, and this server does not know how.
    pub(crate) fn unsupported(param: &str) -> Self {
        let message = format!("{param}: this server does not support it, or not this value");
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message) }
    }

    /// The prompt leaves no room in the model's context.
    pub(crate) fn too_long(param: &str, tokens: usize, limit: usize) -> Self {
        let message = format!("the prompt has {tokens} tokens, but the model's context is {limit}: shorten it");
        let code = "context_length_exceeded";
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    pub(crate) fn unauthorised() -> Self {
        let message = "this server needs its token: Authorization: Bearer TOKEN";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    pub(crate) fn unknown_model(asked: &str, there: &str) -> Self {
        let message = format!("{asked}: no such model here; this server has {there}");
        let code = "model_not_found";
        Self { param: Some("model".to_owned()), ..Self::new(StatusCode::NOT_FOUND, code, message) }
    }

    pub(crate) fn unknown_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_url", format!("{path}: no such path here"))
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{path} does not take {method}"))
    }

    pub(crate) fn too_large(bytes: usize) -> Self {
        let message = format!("the request is larger than {bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", "too many requests are waiting: ask again later")
    }

    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", "the server is being stopped")
    }

    /// The model failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "generation_failed", message)
    }

    /// The error in OpenAI's form.
    pub(crate) fn json(&self) -> Value {
        let kind = if self.status.is_client_error() { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        match self.status {
            StatusCode::UNAUTHORIZED => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECS))),
            _ => {}
        }
        (self.status, headers, json_body(&self.json())).into_response()
    }
}

/// A response's body.
pub(crate) fn json_body(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
