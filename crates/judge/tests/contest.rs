//! Contests against a server of the test's own, which judges, refuses, and talks nonsense.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oq_judge::{Answerer, ChatOptions, Contest, Endpoint, EndpointError, JudgeError, Question, Rules, Side, Tally};
use serde_json::{Value, json};

/// Answers a request with the number `n`, from 0: its head, and its body if it is JSON.
type Reply = dyn Fn(usize, &str, &Value) -> (u16, String) + Send + Sync;

/// A server for as long as the test runs.
struct Server {
    base: String,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn new(reply: impl Fn(usize, &str, &Value) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v1/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let (reply, count): (Arc<Reply>, _) = (Arc::new(reply), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &*reply, &count);
            }
        });
        Self { base, asked }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.base, "judge", Some("secret".to_owned())).with_backoff(Duration::from_millis(1))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, reply: &Reply, count: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, text) = reply(count.fetch_add(1, Ordering::SeqCst), &head, &body);
    let length = text.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nconnection: close\r\nretry-after: 0\r\ncontent-length: {length}\r\n\r\n");
    // The client may have had enough.
    let _ = reader.get_mut().write_all((head + &text).as_bytes());
}

fn said(text: &str) -> (u16, String) {
    (200, json!({"choices": [{"message": {"role": "assistant", "content": text}}]}).to_string())
}

/// Answers every question with its own name, and counts.
struct Parrot(&'static str, usize);

impl Answerer for Parrot {
    fn answer(&mut self, question: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
        self.1 += 1;
        Ok(format!("{} on {question}", self.0))
    }
}

fn rules() -> Rules {
    let [a, b, judge] = ["left", "right", "judge"].map(str::to_owned);
    Rules { a, b, judge, max_tokens: 10, temperature: 0.0, seed: 0 }
}

fn questions() -> Vec<Question> {
    let question = |(i, text): (usize, &str)| Question { id: i.to_string(), text: text.to_owned() };
    ["prefers-left", "prefers-right", "equal", "prefers-place", "nonsense"]
        .into_iter()
        .enumerate()
        .map(question)
        .collect()
}

/// Judges by what the question says.
fn judge_by_question(body: &Value) -> (u16, String) {
    let asked = body["messages"][1]["content"].as_str().unwrap();
    let left_first = asked.find("left on").unwrap() < asked.find("right on").unwrap();
    let verdict = match asked.lines().nth(1).unwrap() {
        "prefers-left" => {
            if left_first {
                "1"
            } else {
                "2"
            }
        }
        "prefers-right" => {
            if left_first {
                "2"
            } else {
                "1"
            }
        }
        "equal" => "TIE",
        "prefers-place" => "1",
        _ => return said("I would rather not."),
    };
    said(&format!("Reasons.\n**VERDICT: {verdict}**"))
}

fn expected() -> Tally {
    let mut tally = Tally::default();
    (tally.wins, tally.ties, tally.losses, tally.disagreements, tally.unreadable) = (1, 2, 1, 1, 1);
    tally
}

fn answered(contest: &mut Contest) {
    for (side, name) in [(Side::A, "left"), (Side::B, "right")] {
        contest.answer(side, &mut Parrot(name, 0), &mut |_, _| {}).unwrap();
    }
}

#[test]
fn verdicts_are_counted_in_both_orders() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let server = Server::new(move |_, head, body| {
        seen.lock().unwrap().push((head.to_owned(), body["temperature"].clone()));
        judge_by_question(body)
    });
    let dir = tempfile::tempdir().unwrap();
    let mut contest = Contest::open(dir.path(), &rules(), questions()).unwrap();
    assert!(contest.lacks_answers(Side::A) && contest.lacks_answers(Side::B));
    let unanswered = contest.judge(&mut server.endpoint(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(unanswered, JudgeError::Unanswered { .. }), "{unanswered}");
    answered(&mut contest);
    assert!(!contest.lacks_answers(Side::A) && !contest.lacks_answers(Side::B));
    let mut told = Vec::new();
    contest.judge(&mut server.endpoint(), &mut |done, of| told.push((done, of))).unwrap();
    assert_eq!(contest.tally(), expected());
    assert_eq!(told, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
    // Four readable pairs are asked twice, the other one three times per order.
    assert_eq!(server.asked(), 4 * 2 + 2 * 3);
    for (head, temperature) in heads.lock().unwrap().iter() {
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{head}");
        assert!(head.to_ascii_lowercase().contains("authorization: bearer secret"), "{head}");
        assert_eq!(*temperature, 0.0);
    }
    let record = std::fs::read_to_string(dir.path().join("contest.jsonl")).unwrap();
    assert_eq!(record.lines().count(), 1 + 5 * 2 + 5 * 2);
    assert!(record.contains("I would rather not.") && !record.contains("secret"));

    // All is done: nobody is asked again.
    let mut again = Contest::open(dir.path(), &rules(), questions()).unwrap();
    again.judge(&mut server.endpoint(), &mut |_, _| {}).unwrap();
    assert_eq!((again.tally(), server.asked()), (expected(), 14));
}

#[test]
fn a_contest_goes_on_where_it_was_cut() {
    let server = Server::new(|_, _, body| judge_by_question(body));
    let whole = tempfile::tempdir().unwrap();
    let mut contest = Contest::open(whole.path(), &rules(), questions()).unwrap();
    answered(&mut contest);
    contest.judge(&mut server.endpoint(), &mut |_, _| {}).unwrap();
    let record = std::fs::read(whole.path().join("contest.jsonl")).unwrap();

    // A kill can cut the record anywhere.
    for cut in (0..record.len()).step_by(97).chain([record.len() - 1]) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("contest.jsonl"), &record[..cut]).unwrap();
        let mut contest = Contest::open(dir.path(), &rules(), questions()).unwrap();
        answered(&mut contest);
        contest.judge(&mut server.endpoint(), &mut |_, _| {}).unwrap();
        assert_eq!(contest.tally(), expected(), "cut at {cut}");
        assert_eq!(std::fs::read(dir.path().join("contest.jsonl")).unwrap(), record, "cut at {cut}");
    }
}

#[test]
fn answers_are_not_asked_for_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut left = Parrot("left", 0);
    for _ in 0..2 {
        let mut contest = Contest::open(dir.path(), &rules(), questions()).unwrap();
        contest.answer(Side::A, &mut left, &mut |_, _| {}).unwrap();
    }
    assert_eq!(left.1, 5);
}

#[test]
fn another_contest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    answered(&mut Contest::open(dir.path(), &rules(), questions()).unwrap());
    let others = [
        Rules { a: "other".to_owned(), ..rules() },
        Rules { judge: "other".to_owned(), ..rules() },
        Rules { temperature: 0.5, ..rules() },
        Rules { max_tokens: 11, ..rules() },
    ];
    for other in others {
        let error = Contest::open(dir.path(), &other, questions()).unwrap_err();
        assert!(matches!(error, JudgeError::OtherContest { .. }), "{error}");
    }
    let mut changed = questions();
    changed[2].text = "another".to_owned();
    let error = Contest::open(dir.path(), &rules(), changed).unwrap_err();
    assert!(matches!(error, JudgeError::OtherContest { key: "questions", .. }), "{error}");
    // More questions are no other contest.
    let mut more = questions();
    more.push(Question { id: "more".to_owned(), text: "prefers-left".to_owned() });
    assert!(Contest::open(dir.path(), &rules(), more).unwrap().lacks_answers(Side::A));

    let file = dir.path().join("contest.jsonl");
    std::fs::write(&file, "{\"no\": 1}\n").unwrap();
    assert!(matches!(Contest::open(dir.path(), &rules(), questions()), Err(JudgeError::Record { line: 1, .. })));
}

#[test]
fn what_may_pass_is_tried_again() {
    // Refused, broken, a proxy's page, and then an answer.
    let server = Server::new(|n, _, _| match n {
        0 => (429, json!({"error": {"message": "slow down"}}).to_string()),
        1 => (500, "oops".to_owned()),
        2 => (200, "<html>".to_owned()),
        3 => (200, "{\"choices\": []}".to_owned()),
        4 => (503, String::new()),
        _ => said("At last."),
    });
    assert_eq!(server.endpoint().chat(&[("user", "?")], ChatOptions::greedy()).unwrap(), "At last.");
    assert_eq!(server.asked(), 6);

    let always = Server::new(|_, _, _| (429, json!({"error": {"message": "slow down"}}).to_string()));
    let error = always.endpoint().chat(&[("user", "?")], ChatOptions::greedy()).unwrap_err();
    assert!(matches!(error, EndpointError::Status { status: 429, attempts: 7, .. }), "{error}");
    assert!(error.to_string().contains("slow down"), "{error}");
    assert_eq!(always.asked(), 7);
}

#[test]
fn what_will_not_pass_is_told_at_once() {
    let server = Server::new(|_, _, _| (401, json!({"error": {"message": "no such key"}}).to_string()));
    let error = server.endpoint().chat(&[("user", "?")], ChatOptions::greedy()).unwrap_err();
    assert!(matches!(error, EndpointError::Status { status: 401, attempts: 1, .. }), "{error}");
    assert!(error.to_string().contains("no such key") && !error.to_string().contains("secret"), "{error}");
    assert_eq!(server.asked(), 1);
}

#[test]
fn a_judge_without_temperatures_is_asked_without() {
    let server = Server::new(|_, _, body| match body.get("temperature") {
        Some(_) => (400, json!({"error": {"message": "only 1", "param": "temperature"}}).to_string()),
        None => said("Fine."),
    });
    let mut endpoint = server.endpoint();
    for _ in 0..2 {
        assert_eq!(endpoint.chat(&[("user", "?")], ChatOptions::greedy()).unwrap(), "Fine.");
    }
    assert_eq!(server.asked(), 3);
}

#[test]
fn the_only_model_needs_no_name() {
    let models = |names: &[&str]| {
        let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
        json!({"data": data}).to_string()
    };
    let one = models(&["it"]);
    let server = Server::new(move |_, head, body| match head.starts_with("GET /v1/models ") {
        true => (200, one.clone()),
        false => said(body["model"].as_str().unwrap()),
    });
    let endpoint = Endpoint::of_only_model(&server.base, None).unwrap();
    assert_eq!(endpoint.model(), "it");
    let options = ChatOptions::greedy().with_max_tokens(5).with_temperature(0.5);
    assert_eq!((endpoint, options).answer("?").unwrap(), "it");

    let two = models(&["it", "other"]);
    let server = Server::new(move |_, _, _| (200, two.clone()));
    let error = Endpoint::of_only_model(&server.base, None).unwrap_err();
    assert!(matches!(&error, EndpointError::WhichModel { names, .. } if names.len() == 2), "{error}");
}
