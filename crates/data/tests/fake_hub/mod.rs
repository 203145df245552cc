//! A hub of one repository on a local port, answering as the real one does, with faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use oq_data::Hub;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong.
#[derive(Default)]
pub struct Faults {
    /// Every request is answered so: status and `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    /// So many requests are answered 503 first.
    pub unavailable: usize,
    /// Each of the first `.1` bodies of large files ends after `.0` bytes.
    pub cut: (usize, usize),
    /// Ranges are not understood.
    pub ignore_range: bool,
    /// Large files arrive with their first byte changed.
    pub flip: bool,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    requests: Vec<String>,
}

pub struct FakeHub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl FakeHub {
    /// Serves `repo` (`owner/name` or `datasets/owner/name`); `.safetensors` and `.parquet` are large files, which are
    /// redirected to another host.
    pub fn start(repo: &'static str, files: &[(&str, &[u8])], faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, faults, requests: Vec::new() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is its own affair.
                let _ = answer(stream, repo, port, &shared);
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), state }
    }

    pub fn client(&self, cache: &Path, token: Option<&str>) -> Hub {
        let hub = Hub::new(&*self.endpoint, cache);
        match token {
            Some(token) => hub.with_token(token),
            None => hub,
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// `METHOD path [range] [token]` of each request so far; forgets them.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(stream: TcpStream, repo: &str, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let (mut from, mut seen) = (None, format!("{method} {path}"));
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => {
                seen += &format!(" {value}");
                from = value.strip_prefix("bytes=").and_then(|v| v.trim_end_matches('-').parse::<usize>().ok());
            }
            "authorization" => seen += &format!(" {value}"),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.requests.push(seen);
    let mut out = Reply { stream, body: method != "HEAD" };
    if let Some((status, code)) = state.faults.refuse {
        return out.send(status, &[("X-Error-Code", code.to_owned())], b"refused", None);
    }
    if state.faults.unavailable > 0 {
        state.faults.unavailable -= 1;
        return out.send(503, &[], b"later", None);
    }
    let api = match repo.strip_prefix("datasets/") {
        Some(dataset) => format!("/api/datasets/{dataset}/revision/main"),
        None => format!("/api/models/{repo}/revision/main"),
    };
    if path == api {
        let names: Vec<_> = state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let json = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string();
        return out.send(200, &[], json.as_bytes(), None);
    }
    let commit = ("X-Repo-Commit", COMMIT.to_owned());
    let resolve = format!("/{repo}/resolve/{COMMIT}/");
    if let Some(bytes) = path.strip_prefix(&resolve).and_then(|name| state.files.get(name)) {
        let name = &path[resolve.len()..];
        if name.ends_with(".safetensors") || name.ends_with(".parquet") {
            let headers = [
                commit,
                ("X-Linked-Etag", format!("\"{}\"", sha256(bytes))),
                ("X-Linked-Size", bytes.len().to_string()),
                // The same machine under another name: another host to a client.
                ("Location", format!("http://localhost:{port}/store/{name}")),
            ];
            return out.send(302, &headers, b"Found", None);
        }
        return out.send(307, &[commit, ("Location", format!("/resolve-cache/{name}"))], b"Moved", None);
    }
    if let Some(bytes) = path.strip_prefix("/resolve-cache/").and_then(|name| state.files.get(name)) {
        let etag = format!("W/\"git{}\"", &sha256(bytes)[..37]);
        return out.send(200, &[commit, ("ETag", etag)], bytes, None);
    }
    let Some(mut bytes) = path.strip_prefix("/store/").and_then(|name| state.files.get(name)).cloned() else {
        return out.send(404, &[("X-Error-Code", "EntryNotFound".to_owned())], b"no", None);
    };
    if state.faults.flip {
        bytes[0] ^= 1;
    }
    let cut = (state.faults.cut.1 > 0).then_some(state.faults.cut.0);
    state.faults.cut.1 = state.faults.cut.1.saturating_sub(1);
    match from.filter(|_| !state.faults.ignore_range) {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            out.send(206, &[("Content-Range", range)], &bytes[from..], cut)
        }
        None => out.send(200, &[], &bytes, cut),
    }
}

struct Reply {
    stream: TcpStream,
    body: bool,
}

impl Reply {
    /// `cut`: the connection ends after so many bytes of the body.
    fn send(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        body: &[u8],
        cut: Option<usize>,
    ) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.stream.write_all(format!("{head}\r\n").as_bytes())?;
        if self.body {
            self.stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
        }
        self.stream.flush()
    }
}
