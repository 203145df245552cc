//! A server for one model that speaks a part of OpenAI's HTTP API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`.
//!
//! Two threads share the work. One belongs to the model: the caller's own, which runs the `engine`. The other one runs HTTP and never
//! computes. Requests go to the engine by a channel; each brings a channel for its answer, and a client that goes away drops that one's end.
//!
//! Answers take turns, token by token, each in a session of its own, so nobody waits for another answer's end. A finished session is kept: a
//! conversation that continues it is not processed again.
//!
//! A request is answered as it was meant or refused. Keys that would change the answer, but that this server lacks, are errors.

mod answer;
mod auth;
mod engine;
mod job;
mod keys;
mod prepare;
mod refusal;
mod request;
mod routes;
mod scores;
mod server;

pub use server::{Options, ServeError, Served, Server, Stop};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
