//! The server: its socket, its two threads, and how it ends.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use oq_data::{ChatTemplate, Generation, Tokenizer};
use oq_generate::Loaded;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;

use crate::engine;
use crate::job::Order;
use crate::prepare::Known;
use crate::routes::{self, Shared};

/// Time that clients have at the end to read what was sent to them.
const GRACE: Duration = Duration::from_secs(3);

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened at.
    #[error("{host}:{port}: cannot be listened at: {source}")]
    Bind {
        /// The host that was asked for.
        host: String,
        /// The port that was asked for.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses what a server needs.
    #[error("the server cannot run: {0}")]
    Io(#[from] io::Error),
}

/// How a server behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What clients call the model.
    pub name: String,
    /// What clients have to send as `Authorization: Bearer`; without it, everyone is answered.
    pub token: Option<String>,
    /// Answers that are generated at a time, each with its own keys and values. At least 1.
    pub parallel: usize,
    /// Requests that wait beyond those; more are refused.
    pub queue: usize,
}

impl Options {
    /// A server that answers everyone, eight at a time, while 32 wait.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), token: None, parallel: 8, queue: 32 }
    }

    /// The same, which answers only those who send this token.
    pub fn with_token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    /// The same, with so many answers at a time.
    pub fn with_parallel(self, parallel: usize) -> Self {
        Self { parallel, ..self }
    }

    /// The same, where so many requests can wait.
    pub fn with_queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }
}

/// What the files of a model say besides its weights.
pub struct Served {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template; without one, chats are refused.
    pub template: Option<ChatTemplate>,
    /// The sampling settings that hold where a request has none.
    pub generation: Generation,
}

/// A server that listens, and answers once it [runs](Server::run).
pub struct Server {
    listener: TcpListener,
    options: Options,
    orders: (Sender<Order>, Receiver<Order>),
}

/// Ends a server from another thread.
#[derive(Clone)]
pub struct Stop(Sender<Order>);

impl Stop {
    /// Ends all answers after their next token, tells their clients, and ends the server.
    pub fn stop(&self) {
        // An engine that is gone has stopped.
        let _ = self.0.send(Order::Stop);
    }
}

impl Server {
    /// Listens at a host, such as `127.0.0.1`, and a port; 0 is any free one. Clients can connect from now on, and wait.
    pub fn bind(host: &str, port: u16, options: Options) -> Result<Self, ServeError> {
        let listener = TcpListener::bind((host, port));
        let listener = listener.map_err(|source| ServeError::Bind { host: host.to_owned(), port, source })?;
        Ok(Self { listener, options, orders: channel() })
    }

    /// The address.
    pub fn address(&self) -> Result<SocketAddr, ServeError> {
        Ok(self.listener.local_addr()?)
    }

    /// What ends the server.
    pub fn stopper(&self) -> Stop {
        Stop(self.orders.0.clone())
    }

    /// Answers until it is stopped. The model runs on this thread.
    pub fn run(self, loaded: &Loaded, served: Served) -> Result<(), ServeError> {
        let stop = self.stopper();
        let Self { listener, options, orders: (orders, received) } = self;
        let dims = loaded.model().decoder().dims();
        let tokenizer = served.tokenizer.clone();
        let Served { tokenizer: own, template, generation } = served;
        let known = Known { tokenizer: own, template, generation, limit: dims.max_positions, vocab: dims.vocab };
        let shared = Arc::new(Shared {
            name: options.name,
            token: options.token,
            known,
            created: routes::now(),
            orders,
            places: Arc::new(Semaphore::new(options.parallel + options.queue)),
            n_requests: AtomicU64::new(0),
        });
        std::thread::scope(|scope| {
            // Dropped at the latest when the engine panics.
            let (ended, until) = oneshot::channel::<()>();
            let http = scope.spawn(move || {
                let served = listen(listener, shared, until);
                // Without HTTP, there is nothing left to answer.
                stop.stop();
                served
            });
            engine::work(loaded, &tokenizer, options.parallel.max(1), received);
            drop(ended);
            Ok(http.join().expect("the thread of HTTP ends by itself")?)
        })
    }
}

/// Runs HTTP on this thread until the engine has ended, and then until clients have read their answers.
fn listen(listener: TcpListener, shared: Arc<Shared>, until: oneshot::Receiver<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (told, ending) = oneshot::channel::<()>();
        let signal = async move {
            let _ = until.await;
            let _ = told.send(());
        };
        let too_long = async move {
            let _ = ending.await;
            sleep(GRACE).await;
        };
        let serving = axum::serve(listener, routes::router(shared)).with_graceful_shutdown(signal);
        tokio::select! {
            served = async { serving.await } => served,
            () = too_long => Ok(()),
        }
    });
    runtime.shutdown_background();
    served
}
