//! Serves a model, asks it over HTTP, and stops: `cargo run --release --example serve_and_ask -- MODEL "Once upon a time"`.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use std::path::Path;
use std::thread;

use oq_data::{ChatTemplate, Generation, Tokenizer};
use oq_generate::Loaded;
use oq_models::Model;
use oq_serve::{Options, Served, Server};
use serde_json::{Value, json};
use tch::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, prompt] = &words[..] else { return Err("name a model's directory and a text".into()) };
    let dir = Path::new(dir);
    let server = Server::bind("127.0.0.1", 0, Options::new("it"))?;
    let (url, stop) = (format!("http://{}/v1/completions", server.address()?), server.stopper());
    let body = json!({"prompt": prompt, "max_tokens": 20}).to_string();
    let client = thread::spawn(move || {
        let answer = ureq::post(&url).send(body).and_then(|mut response| response.body_mut().read_to_string());
        stop.stop();
        answer
    });

    let tokenizer = Tokenizer::open(dir)?;
    let served = Served { tokenizer, template: ChatTemplate::open(dir).ok(), generation: Generation::open(dir)? };
    let loaded = Loaded::new(Model::open(dir)?, Device::Cpu, &mut |_, _| {})?;
    server.run(&loaded, served)?;

    let answer: Value = serde_json::from_str(&client.join().expect("the client does not panic")?)?;
    println!("{prompt}{}", answer["choices"][0]["text"].as_str().unwrap_or_default());
    println!("{} tokens", answer["usage"]["completion_tokens"]);
    Ok(())
}
