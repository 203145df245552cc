//! `omniquant serve` as its clients see it, and `omniquant judge` as a client of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use oq_data::{AddSpecial, ChatTemplate, Message, Tokenizer};
use oq_models::Model;
use oq_tests::{LIMIT, copied, fixture, omniquant, run, run_json, wait};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

/// tiny-llama with a chat template, and with a context in which an answer takes as long as a test needs.
fn dense(positions: usize) -> TempDir {
    let dir = copied("tiny-llama");
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = positions.into();
    fs::write(path, config.to_string()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    dir
}

/// The same in 4 bits.
fn packed() -> TempDir {
    let (dense, dir) = (dense(512), tempfile::tempdir().unwrap());
    let out = dir.path().join("packed");
    let mut quantize = omniquant();
    quantize
        .arg("quantize")
        .arg(dense.path())
        .args(["--scheme", "w4a16g64", "--method", "rtn", "-q", "--out"])
        .arg(&out);
    run(&mut quantize, 0);
    dir
}

/// A server for as long as the test runs.
struct Server {
    child: Child,
    /// What it still prints.
    _stdout: BufReader<ChildStdout>,
    host: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn new(model: &Path, args: &[&str]) -> Self {
        Self::of(omniquant().arg("serve").arg(model).args(["--port", "0", "--name", "tiny", "--json"]).args(args))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}, {:?}", child.wait()));
        let url = said["url"].as_str().unwrap();
        let host = url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap().to_owned();
        Self { child, _stdout: stdout, host }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// The status and the body of an answer to a POST.
    fn post(&self, path: &str, body: impl AsRef<str>) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.post(self.url(path)).send(body.as_ref()).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// The answer to a request that is answered.
    #[track_caller]
    fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.post(path, body.to_string());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A streamed answer that can be read line by line, and dropped.
    #[track_caller]
    fn stream(&self, path: &str, body: &Value) -> impl BufRead + use<> {
        let response = ureq::post(self.url(path)).send(body.to_string()).unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        BufReader::new(response.into_body().into_reader())
    }

    /// The status, the headers and the body of an answer to what need not be HTTP.
    fn raw(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A server that does not read all of a request may reset the connection after its answer.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, head.to_ascii_lowercase(), body.to_owned())
    }
}

/// The pieces of a stream, up to its end mark, which must be there unless it ends with an error.
fn pieces(stream: impl BufRead) -> Vec<Value> {
    let lines: Vec<String> = stream.lines().map(|line| line.unwrap()).filter(|line| !line.is_empty()).collect();
    let data: Vec<&str> = lines.iter().map(|line| line.strip_prefix("data: ").expect("a piece of data")).collect();
    let (last, pieces) = data.split_last().unwrap();
    let pieces: Vec<Value> = pieces.iter().map(|piece| serde_json::from_str(piece).unwrap()).collect();
    assert_eq!(*last, "[DONE]");
    pieces
}

/// The text in pieces of a completion.
fn text_of(pieces: &[Value]) -> String {
    pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect()
}

/// What `omniquant generate` makes of a prompt.
fn generated(model: &Path, prompt: &str, tokens: usize, args: &[&str]) -> Value {
    let tokens = tokens.to_string();
    let mut command = omniquant();
    command.arg("generate").arg(model).args(["--prompt", prompt, "--max-tokens", &tokens, "--json", "-q"]).args(args);
    run_json(&mut command)
}

#[test]
fn eight_clients_at_once_get_what_generate_says() {
    const TOKENS: usize = 120;
    let prompts =
        ["The river", "The old man", "In the morning", "A house", "She said", "When the war", "He was born in", "The"];
    let dir = packed();
    let model = dir.path().join("packed");
    let expected = prompts.map(|prompt| generated(&model, prompt, TOKENS, &[]));
    let server = Server::new(&model, &["-q"]);
    let together = Barrier::new(prompts.len());
    let answers: Vec<(String, Value, Instant, Instant)> = thread::scope(|scope| {
        let clients: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let (server, together) = (&server, &together);
                scope.spawn(move || {
                    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "stream": true,
                    "stream_options": {"include_usage": true}});
                    together.wait();
                    let mut stream = server.stream("/v1/completions", &body);
                    let mut first = String::new();
                    stream.read_line(&mut first).unwrap();
                    let begun = Instant::now();
                    let pieces = pieces(first.as_bytes().chain(stream));
                    (text_of(&pieces), pieces.last().unwrap()["usage"].clone(), begun, Instant::now())
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for ((text, usage, ..), expected) in answers.iter().zip(&expected) {
        assert_eq!(text, expected["text"].as_str().unwrap());
        let n = expected["ids"].as_array().unwrap().len() + usize::from(expected["end"] == "end");
        assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&expected["prompt_tokens"], &json!(n)));
    }
    // All of them were being answered at some moment.
    let last_begun = answers.iter().map(|(.., begun, _)| begun).max().unwrap();
    let longest = expected.iter().filter(|expected| expected["ids"].as_array().unwrap().len() == TOKENS).count();
    let still_going = answers.iter().filter(|(.., ended)| ended > last_begun).count();
    assert!(longest > 4 && still_going >= longest, "{still_going} of {longest} went on when the last one began");

    // The same not streamed, and several prompts in one request.
    let whole = server.ask("/v1/completions", &json!({"prompt": prompts, "max_tokens": TOKENS}));
    assert_eq!(whole["choices"].as_array().unwrap().len(), prompts.len());
    for (choice, expected) in whole["choices"].as_array().unwrap().iter().zip(&expected) {
        assert_eq!(choice["text"], expected["text"]);
        assert_eq!(choice["finish_reason"], if expected["end"] == "end" { "stop" } else { "length" });
    }
}

#[test]
fn chats_are_completions_of_the_template_s_text() {
    let dir = dense(512);
    let server = Server::new(dir.path(), &["-q"]);
    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let messages = [message("system", "Be brief."), message("user", "Where is the river?")];
    let text = ChatTemplate::open(dir.path()).unwrap().render(&messages, true).unwrap();
    let ids = Tokenizer::open(dir.path()).unwrap().encode(&text, AddSpecial::No).unwrap();
    let expected = server.ask("/v1/completions", &json!({"prompt": ids, "max_tokens": 20}));
    let expected = expected["choices"][0]["text"].as_str().unwrap();

    // As clients send it: parts, a newer name of the system, empty values, and what is of no matter.
    let body = json!({
        "model": "tiny", "max_completion_tokens": 20, "user": "me", "n": 1, "tools": [], "logit_bias": {}, "stop": null,
        "frequency_penalty": 0.0, "response_format": {"type": "text"}, "temperature": 0,
        "messages": [{"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "the river?"}],
             "tool_calls": null}],
    });
    let answer = server.ask("/v1/chat/completions", &body);
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["role"], &choice["message"]["content"]), (&json!("assistant"), &json!(expected)));
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());

    let mut streamed = body;
    streamed["stream"] = true.into();
    let pieces = pieces(server.stream("/v1/chat/completions", &streamed));
    assert_eq!(pieces[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected);
    let ends: Vec<&str> = pieces.iter().filter_map(|piece| piece["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(ends, ["length"]);
    assert!(pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk" && piece["id"] == pieces[0]["id"]));
}

#[test]
fn settings_of_a_request_are_followed() {
    let dir = dense(512);
    let server = Server::new(dir.path(), &["-q"]);
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "The river", "max_tokens": 24});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.ask("/v1/completions", &body)["choices"][0].clone()
    };
    let greedy = ask(json!({}))["text"].as_str().unwrap().to_owned();
    // The likeliest token alone, in three ways.
    for same in [json!({"temperature": 0}), json!({"temperature": 1, "top_k": 1}), json!({"top_p": 0})] {
        assert_eq!(ask(same.clone())["text"], *greedy, "{same}");
    }
    let drawn = |seed: Value| ask(json!({"temperature": 1.5, "seed": seed}))["text"].clone();
    assert_eq!(drawn(json!(5)), drawn(json!(5)));
    assert_ne!(drawn(json!(5)), drawn(json!(-6)));
    // Without a seed, no two requests are alike.
    assert_ne!(drawn(Value::Null), drawn(Value::Null));
    assert_ne!(ask(json!({"repetition_penalty": 5}))["text"], *greedy);

    let at = greedy.len() / 2;
    let stop: String = greedy.chars().skip(at).take(4).collect();
    let before = greedy.split(&stop).next().unwrap();
    for stops in [json!(stop), json!(["nowhere", stop])] {
        let stopped = ask(json!({"stop": stops}));
        assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(before), &json!("stop")));
    }
    // 16 tokens are the API's default, and the context is the end of all.
    assert_eq!(server.ask("/v1/completions", &json!({"prompt": "The river"}))["usage"]["completion_tokens"], 16);
    let full = server.ask("/v1/completions", &json!({"prompt": vec![7; 510], "max_tokens": 100}));
    assert_eq!(
        (&full["usage"]["completion_tokens"], &full["choices"][0]["finish_reason"]),
        (&json!(3), &json!("length"))
    );
}

#[test]
fn log_probabilities_are_those_of_the_whole_text() {
    /// Logits of single positions differ from those of a whole text by this, relative to the largest.
    const TOLERANCE: f64 = 1e-3;
    let dir = dense(512);
    let server = Server::new(dir.path(), &["-q", "--compute", "f32"]);
    let ids = Tokenizer::open(dir.path()).unwrap().encode("The old man and the river", AddSpecial::Yes).unwrap();
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    // As evaluation harnesses ask for the likelihood of a text.
    let body = json!({"prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": true});
    let answer = server.ask("/v1/completions", &body);
    let logprobs = &answer["choices"][0]["logprobs"];
    let model = Model::open(dir.path()).unwrap();
    let all = oq_eval::logits(&model, &Tensor::from_slice(&ids).unsqueeze(0), Device::Cpu).unwrap();
    let all = all.squeeze_dim(0).log_softmax(-1, Kind::Double);
    let close = |got: &Value, expected: f64| (got.as_f64().unwrap() - expected).abs() < TOLERANCE;
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), ids.len() + 1);
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    for (i, id) in ids.iter().enumerate().skip(1) {
        let row = all.get(i as i64 - 1);
        assert!(close(&logprobs["token_logprobs"][i], row.double_value(&[*id])), "{logprobs}");
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        let largest = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!((largest - row.max().double_value(&[])).abs() < TOLERANCE, "{top:?}");
        assert!((2..=3).contains(&top.len()), "{top:?}");
    }
    // The new token is the likeliest one.
    let last = all.get(ids.len() as i64 - 1).max().double_value(&[]);
    assert!(close(&logprobs["token_logprobs"][ids.len()], last), "{logprobs}");
    let tokens = logprobs["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(answer["choices"][0]["text"], joined, "its tokenizer adds no special token");

    let body =
        json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "logprobs": true, "top_logprobs": 2});
    let answer = server.ask("/v1/chat/completions", &body);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    for token in content {
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "greedy takes the likeliest: {token}");
        assert!(token["top_logprobs"][1]["logprob"].as_f64() <= token["logprob"].as_f64(), "{token}");
    }
}

#[test]
fn a_conversation_that_goes_on_is_not_processed_again() {
    let dir = dense(512);
    let server = Server::new(dir.path(), &["-q", "--parallel", "2", "--compute", "f32"]);
    let said = generated(dir.path(), "The river", 10, &["--compute", "f32"]);
    let prompt = Tokenizer::open(dir.path()).unwrap().encode("The river", AddSpecial::Yes).unwrap();
    let mut ids: Vec<Value> = prompt.iter().map(|&id| id.into()).collect();
    let usage =
        |ids: &[Value]| server.ask("/v1/completions", &json!({"prompt": ids, "max_tokens": 10}))["usage"].clone();
    assert_eq!(usage(&ids)["prompt_tokens_details"]["cached_tokens"], 0);
    ids.extend(said["ids"].as_array().unwrap().iter().cloned());
    // Of the answer, all tokens but the last were processed.
    let known = ids.len() - 1;
    ids.extend([5.into(), 6.into()]);
    let again = usage(&ids);
    assert_eq!(
        (&again["prompt_tokens"], &again["prompt_tokens_details"]["cached_tokens"]),
        (&json!(ids.len()), &json!(known))
    );
    // Neither session begins like this.
    ids[0] = 9.into();
    assert_eq!(usage(&ids)["prompt_tokens_details"]["cached_tokens"], 0);
}

/// A POST of `body`, as it goes over the wire.
fn posted(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[test]
fn what_is_wrong_is_refused_and_the_server_lives() {
    let dir = dense(64);
    let server = Server::new(dir.path(), &["-q"]);
    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        posted("/v1/chat/completions", &body.to_string())
    };
    let completion = |body: Value| posted("/v1/completions", &body.to_string());
    let message = |message: Value| chat(json!({"messages": [message]}));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let long = "word ".repeat(100);
    let cases: Vec<(String, u16, &str, &str)> = vec![
        (posted("/v1/chat/completions", "{\"messages\": ["), 400, "invalid_request", ""),
        (posted("/v1/chat/completions", ""), 400, "invalid_request", ""),
        (posted("/v1/completions", "[1, 2]"), 400, "invalid_request", ""),
        (posted("/v1/completions", "{\"prompt\": \"\u{1}\"}"), 400, "invalid_request", ""),
        (posted("/v1/completions", &("[".repeat(100_000))), 400, "invalid_request", ""),
        (chat(json!({"messages": []})), 400, "invalid_value", "messages"),
        (chat(json!({"messages": "Hello"})), 400, "invalid_value", "messages"),
        (chat(json!({"messages": [{"role": "user", "content": long}]})), 400, "context_length_exceeded", "messages"),
        (completion(json!({"prompt": long})), 400, "context_length_exceeded", "prompt"),
        (completion(json!({"prompt": vec![1; 65]})), 400, "context_length_exceeded", "prompt"),
        (completion(json!({"prompt": []})), 400, "invalid_value", "prompt"),
        (completion(json!({"prompt": [1, 1024]})), 400, "invalid_value", "prompt"),
        (completion(json!({"prompt": [1, -1]})), 400, "invalid_value", "prompt"),
        (completion(json!({"prompt": [{"a": 1}]})), 400, "invalid_value", "prompt"),
        (completion(json!({})), 400, "invalid_value", "prompt"),
        (message(json!("Hello")), 400, "invalid_value", "messages[0]"),
        (message(json!({"role": "tool", "content": "x"})), 400, "invalid_value", "messages[0].role"),
        (message(json!({"role": "user"})), 400, "invalid_value", "messages[0].content"),
        (message(json!({"role": "user", "content": 5})), 400, "invalid_value", "messages[0].content"),
        (
            message(json!({"role": "user", "content": "x", "name": "Ann"})),
            400,
            "unsupported_parameter",
            "messages[0].name",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
            400,
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (chat(json!({"max_tokens": 0})), 400, "invalid_value", "max_tokens"),
        (chat(json!({"max_tokens": 1.5})), 400, "invalid_value", "max_tokens"),
        (chat(json!({"temperature": -0.1})), 400, "invalid_value", "temperature"),
        (chat(json!({"temperature": "hot"})), 400, "invalid_value", "temperature"),
        (chat(json!({"top_p": 1.01})), 400, "invalid_value", "top_p"),
        (chat(json!({"top_k": -2})), 400, "invalid_value", "top_k"),
        (chat(json!({"repetition_penalty": 0})), 400, "invalid_value", "repetition_penalty"),
        (chat(json!({"stop": ["a", ""]})), 400, "invalid_value", "stop"),
        (chat(json!({"stream": "yes"})), 400, "invalid_value", "stream"),
        (chat(json!({"stream_options": {"include_usage": true}})), 400, "invalid_value", "stream_options"),
        (chat(json!({"top_logprobs": 2})), 400, "invalid_value", "top_logprobs"),
        (chat(json!({"n": 2})), 400, "unsupported_parameter", "n"),
        (chat(json!({"frequency_penalty": 0.5})), 400, "unsupported_parameter", "frequency_penalty"),
        (chat(json!({"presence_penalty": 1})), 400, "unsupported_parameter", "presence_penalty"),
        (chat(json!({"logit_bias": {"5": 10}})), 400, "unsupported_parameter", "logit_bias"),
        (chat(json!({"tools": [{"type": "function"}]})), 400, "unsupported_parameter", "tools"),
        (chat(json!({"response_format": {"type": "json_object"}})), 400, "unsupported_parameter", "response_format"),
        (chat(json!({"temprature": 0.5})), 400, "unsupported_parameter", "temprature"),
        (chat(json!({"model": "gpt-4"})), 404, "model_not_found", "model"),
        (get("/v1/models/gpt-4"), 404, "model_not_found", "model"),
        (get("/v1/embeddings"), 404, "unknown_url", ""),
        (get("/"), 404, "unknown_url", ""),
        (get("/v1/completions"), 405, "method_not_allowed", ""),
        (posted("/v1/models", "{}"), 405, "method_not_allowed", ""),
        (posted("/health", "{}"), 405, "method_not_allowed", ""),
    ];
    for (request, status, code, param) in cases {
        let shown: String = request.chars().take(300).collect();
        let (got, head, body) = server.raw(&request);
        assert_eq!(got, status, "{shown}\n{body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let error = &serde_json::from_str::<Value>(&body).unwrap()["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!(code), &json!("invalid_request_error")), "{shown}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{shown}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    // Too large, said beforehand or not; nothing that is HTTP; and a client that breaks off.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let (status, _, body) = server.raw(&format!("{head}content-length: 99999999\r\n\r\n{{"));
    assert!(status == 413 && body.contains("request_too_large"), "{status} {body}");
    let (status, ..) = server.raw("What is this?\r\n\r\n");
    assert_eq!(status, 400);
    TcpStream::connect(&server.host)
        .unwrap()
        .write_all(format!("{head}content-length: 50\r\n\r\n{{").as_bytes())
        .unwrap();

    let answer = server.ask("/v1/completions", &json!({"prompt": "The river", "max_tokens": 4}));
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let (status, _, body) = server.raw(&get("/health"));
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, json!({"status": "ok"})));
    for path in ["/v1/models", "/v1/models/tiny"] {
        assert!(server.raw(&get(path)).2.contains("\"id\":\"tiny\""));
    }
}

#[test]
fn models_without_a_template_complete_texts() {
    let server = Server::new(&fixture("tiny-llama"), &["-q"]);
    let (status, body) =
        server.post("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]}).to_string());
    assert!(status == 400 && body.contains("no chat template"), "{status} {body}");
    server.ask("/v1/completions", &json!({"prompt": "The river"}));
}

#[test]
fn a_token_opens_the_server() {
    let dir = dense(64);
    let mut command = omniquant();
    command.arg("serve").arg(dir.path()).args(["--port", "0", "--json", "-q"]).env("OMNIQUANT_TOKEN", "open sesame");
    let server = Server::of(&mut command);
    let get = |path: &str, token: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}\r\n");
    for wrong in ["", "authorization: Bearer open\r\n", "authorization: Bearer open sesame!\r\n"] {
        for path in ["/v1/models", "/v1/nothing"] {
            let (status, head, body) = server.raw(&get(path, wrong));
            assert!(status == 401 && body.contains("invalid_api_key"), "{status} {body}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
        }
    }
    assert_eq!(server.raw(&get("/v1/models", "authorization: Bearer open sesame\r\n")).0, 200);
    assert_eq!(server.raw(&get("/health", "")).0, 200);

    let empty = run(omniquant().arg("serve").arg(dir.path()).args(["--token", ""]), 2);
    assert!(String::from_utf8_lossy(&empty.stderr).contains("--token"));
    let port = server.host.rsplit(':').next().unwrap();
    let taken = run(omniquant().arg("serve").arg(dir.path()).args(["--port", port]), 2);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("cannot be listened at"));
}

/// A request whose answer takes longer than any test.
fn endless(stream: bool) -> Value {
    json!({"prompt": "The river", "max_tokens": 90_000, "stream": stream})
}

#[test]
fn clients_that_go_away_make_room() {
    let dir = dense(100_000);
    let server = Server::new(dir.path(), &["-q", "--parallel", "1", "--queue", "0"]);
    let short = json!({"prompt": "The river", "max_tokens": 2});
    // Both kinds of answers, each with the only place there is.
    for stream in [true, false] {
        let (first, head, body) = until(|| {
            // Either of the two can be the one that comes too late.
            let mut first = TcpStream::connect(&server.host).unwrap();
            first.write_all(posted("/v1/completions", &endless(stream).to_string()).as_bytes()).unwrap();
            let (status, head, body) = server.raw(&posted("/v1/completions", &short.to_string()));
            (status == 503).then_some((first, head, body))
        });
        assert!(head.contains("retry-after: 5") && body.contains("queue_full"), "{head}\n{body}");
        drop(first);
        until(|| (server.post("/v1/completions", short.to_string()).0 == 200).then_some(()));
    }
}

/// Tries until something is there.
#[track_caller]
fn until<T>(mut tried: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = tried() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "it does not get there");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_ends_answers_and_the_server() {
    let dir = dense(100_000);
    let mut server = Server::new(dir.path(), &["-q", "--parallel", "1"]);
    let mut stream = server.stream("/v1/completions", &endless(true));
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("data: {"), "{line}");
    // One that waits, too.
    let mut waiting = TcpStream::connect(&server.host).unwrap();
    waiting.write_all(posted("/v1/completions", &endless(false).to_string()).as_bytes()).unwrap();
    // Until it is read, even on a busy machine.
    thread::sleep(Duration::from_secs(2));
    run(Command::new("kill").args(["-s", "INT", &server.child.id().to_string()]), 0);
    let rest: Vec<String> = stream.lines().map(|line| line.unwrap()).filter(|line| !line.is_empty()).collect();
    let last: Value = serde_json::from_str(rest.last().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "server_stopping", "{last}");
    let mut refused = String::new();
    waiting.read_to_string(&mut refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("server_stopping"), "{refused}");
    let ended = wait(&mut server.child, || false).unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// The URL of a judge that says the same of every pair, for as long as the test runs.
fn judge_who_says(reply: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let body = json!({"choices": [{"message": {"role": "assistant", "content": reply}}]}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok();
            let mut request = vec![0; head.lines().find_map(length).unwrap()];
            reader.read_exact(&mut request).unwrap();
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn models_here_and_elsewhere_are_judged() {
    let dir = dense(512);
    let server = Server::new(dir.path(), &["-q"]);
    let work = tempfile::tempdir().unwrap();
    let (questions, out) = (work.path().join("questions.txt"), work.path().join("contest"));
    fs::write(&questions, "Where is the river?\n{\"turns\": [\"Who is the old man?\"]}\n").unwrap();
    // It prefers a place, so it says nothing about the answers.
    let url = judge_who_says("Because.\nVERDICT: 1");
    let judge = |questions: &Path, args: &[&str]| {
        let mut command = omniquant();
        command.arg("judge").arg(dir.path()).arg(server.url("/v1")).arg("--questions").arg(questions);
        command.args(["--judge", &url, "--judge-model", "strict", "--max-tokens", "8", "-q"]).args(args);
        command.arg("--out").arg(&out).env("OPENAI_API_KEY", "a secret");
        command
    };
    let said = run_json(&mut judge(&questions, &["--json"]));
    let keys: Vec<&str> = said.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.join(" "), "a b judge questions wins ties losses disagreements unreadable record");
    assert_eq!((&said["questions"], &said["ties"]["count"], &said["disagreements"]), (&json!(2), &json!(2), &json!(2)));
    assert_eq!(
        (&said["wins"]["share"], &said["ties"]["share"], &said["unreadable"]),
        (&json!(0.0), &json!(1.0), &json!(0))
    );
    let record = fs::read_to_string(out.join("contest.jsonl")).unwrap();
    assert!(!record.contains("a secret"));
    let lines = record.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["answer"].clone());
    let answers: Vec<Value> = lines.filter(Value::is_object).collect();
    assert_eq!(answers.len(), 4);
    // The same model answers alike, here and over HTTP.
    let (here, elsewhere) = answers.split_at(2);
    for (a, b) in here.iter().zip(elsewhere) {
        assert_eq!((&a["side"], &b["side"]), (&json!("a"), &json!("b")));
        assert_eq!((&a["question"], &a["text"]), (&b["question"], &b["text"]));
        assert!(!a["text"].as_str().unwrap().is_empty());
    }
    // What is done is not done again.
    let shown = run(&mut judge(&questions, &[]), 0).stdout;
    assert!(String::from_utf8(shown).unwrap().contains("ties           2  100.0%  (95%: 34.2 to 100.0%)"));
    assert_eq!(fs::read_to_string(out.join("contest.jsonl")).unwrap(), record);

    fs::write(&questions, "Another question\n").unwrap();
    let other = run(&mut judge(&questions, &[]), 2);
    assert!(String::from_utf8_lossy(&other.stderr).contains("choose another folder"));
    run(&mut judge(&work.path().join("nowhere"), &[]), 3);
}
