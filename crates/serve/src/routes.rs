//! The paths of the API.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request as HttpRequest, State};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response, Sse};
use axum::routing::{get, post};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::spawn_blocking;

use crate::answer::{Answers, Heading};
use crate::auth;
use crate::job::{Event, Job, Order};
use crate::prepare::Known;
use crate::refusal::{Refusal, json_body};
use crate::request::{Kind, Request};

/// Largest request: a long text as a list of token ids.
const MAX_BYTES: usize = 8 << 20;

/// What all requests share.
pub(crate) struct Shared {
    pub name: String,
    pub token: Option<String>,
    pub known: Known,
    /// Seconds since 1970.
    pub created: u64,
    pub orders: Sender<Order>,
    /// A place for each request that is answered or waits.
    pub places: Arc<Semaphore>,
    pub n_requests: AtomicU64,
}

type App = State<Arc<Shared>>;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(shared.clone(), guard));
    let health = Router::new().route("/health", get(health)).method_not_allowed_fallback(wrong_method);
    guarded.merge(health).layer(DefaultBodyLimit::max(MAX_BYTES)).with_state(shared)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Refuses what need not be read.
async fn guard(State(shared): App, request: HttpRequest, next: Next) -> Result<Response, Refusal> {
    let headers = request.headers();
    auth::check(shared.token.as_deref(), headers)?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    match length {
        Some(length) if length > MAX_BYTES => Err(Refusal::too_large(MAX_BYTES)),
        _ => Ok(next.run(request).await),
    }
}

async fn unknown_path(uri: Uri) -> Refusal {
    Refusal::unknown_path(uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::wrong_method(method.as_str(), uri.path())
}

async fn health() -> Response {
    json_body(&json!({"status": "ok"}))
}

fn described(shared: &Shared) -> Value {
    json!({"id": shared.name, "object": "model", "created": shared.created, "owned_by": "omniquant",
        "max_model_len": shared.known.limit})
}

async fn models(State(shared): App) -> Response {
    json_body(&json!({"object": "list", "data": [described(&shared)]}))
}

async fn model(State(shared): App, Path(name): Path<String>) -> Result<Response, Refusal> {
    check_model(&shared, Some(&name))?;
    Ok(json_body(&described(&shared)))
}

fn check_model(shared: &Shared, asked: Option<&str>) -> Result<(), Refusal> {
    match asked {
        Some(asked) if asked != shared.name => Err(Refusal::unknown_model(asked, &shared.name)),
        _ => Ok(()),
    }
}

async fn chat(state: App, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    complete(Kind::Chat, state, body).await
}

async fn completion(state: App, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    complete(Kind::Completion, state, body).await
}

/// Answers a request. When the client goes away, this is dropped, and with it the channel that the engine answers to.
async fn complete(kind: Kind, State(shared): App, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let body = body.map_err(|rejection| match rejection.into_response().status() {
        status if status == Refusal::too_large(MAX_BYTES).status => Refusal::too_large(MAX_BYTES),
        _ => Refusal::unreadable("the request's body did not arrive"),
    })?;
    let request = Request::read(kind, &body)?;
    check_model(&shared, request.model.as_deref())?;
    let place = Arc::new(shared.places.clone().try_acquire_owned().map_err(|_| Refusal::busy())?);
    // Tokenizing a long text takes a while.
    let (preparing, known) = (request.clone(), shared.clone());
    let tasks = spawn_blocking(move || known.known.tasks(&preparing)).await;
    let tasks = tasks.map_err(|e| Refusal::failed(format!("the request could not be prepared: {e}")))??;

    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let number = shared.n_requests.fetch_add(1, Ordering::Relaxed);
    let id = format!("{prefix}-{:x}-{number:x}", shared.created);
    let heading = Heading { kind, id, created: now(), model: shared.name.clone() };
    let (told, events) = unbounded_channel();
    let mut echoes = Vec::new();
    for (index, task) in tasks.into_iter().enumerate() {
        echoes.push(task.echo);
        let (settings, sampler, scoring) = (task.settings, task.sampler, task.scoring);
        let (told, place) = (told.clone(), place.clone());
        let job = Job { index, prompt: task.prompt, settings, sampler, scoring, told, _place: place };
        shared.orders.send(Order::Answer(Box::new(job))).map_err(|_| Refusal::stopping())?;
    }
    // Only the engine may hold the channel open: when it drops a request, the wait for an answer ends.
    drop(told);
    let answers = Answers::new(heading, echoes, request.logprobs.is_some(), request.include_usage);
    if request.stream { streamed(answers, events).await } else { whole(answers, events).await }
}

async fn whole(mut answers: Answers, mut events: UnboundedReceiver<(usize, Event)>) -> Result<Response, Refusal> {
    while !answers.are_complete() {
        // The engine drops what it does not answer only when it stops.
        let (index, event) = events.recv().await.ok_or_else(Refusal::stopping)?;
        answers.add(index, event)?;
    }
    Ok(json_body(&answers.whole()))
}

/// An answer that is sent in pieces.
struct Stream {
    answers: Answers,
    events: UnboundedReceiver<(usize, Event)>,
    ready: VecDeque<String>,
    has_ended: bool,
}

impl Stream {
    /// Waits for the next part of the answer.
    async fn advance(&mut self) -> Result<(), Refusal> {
        let (index, event) = self.events.recv().await.ok_or_else(Refusal::stopping)?;
        self.answers.add(index, event)?;
        self.ready.extend(self.answers.pieces(index).iter().map(Value::to_string));
        if self.answers.are_complete() {
            self.ready.extend(self.answers.usage_piece().map(|piece| piece.to_string()));
            self.ready.push_back("[DONE]".to_owned());
            self.has_ended = true;
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.has_ended {
            if let Err(refusal) = self.advance().await {
                // The status is sent already, so the error is a piece, as OpenAI's clients expect it.
                self.ready.push_back(refusal.json().to_string());
                self.has_ended = true;
            }
        }
        self.ready.pop_front()
    }
}

async fn streamed(answers: Answers, events: UnboundedReceiver<(usize, Event)>) -> Result<Response, Refusal> {
    let mut stream = Stream { answers, events, ready: VecDeque::new(), has_ended: false };
    // A failure before the first token still has a status of its own.
    stream.advance().await?;
    let pieces = stream::unfold(stream, |mut stream| async {
        let piece = stream.next().await?;
        Some((Ok::<_, Infallible>(Sent::default().data(piece)), stream))
    });
    Ok(Sse::new(pieces).into_response())
}
