//! Chat templates against transformers: `fixtures/chat_idioms.json` has what it renders, by `make_chat_idioms.py` beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::Path;

use oq_data::{ChatTemplate, Message};
use serde_json::Value;

#[test]
fn idioms_of_templates_render_as_transformers_renders_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_idioms.json");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut wrong = Vec::new();
    let idioms = json["idioms"].as_array().unwrap();
    assert!(idioms.len() > 100);
    for idiom in idioms {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("chat_template.jinja", idiom["template"].as_str().unwrap());
        write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
        for (chat, expected) in idiom["texts"].as_object().unwrap() {
            let messages = json["chats"][chat].as_array().unwrap().iter().map(|message| Message {
                role: message["role"].as_str().unwrap().to_owned(),
                content: message["content"].as_str().unwrap().to_owned(),
            });
            let messages: Vec<Message> = messages.collect();
            let got = ChatTemplate::open(dir.path()).and_then(|template| template.render(&messages, true));
            // Where transformers refuses, a text would be a wrong one.
            if got.as_ref().ok().map(String::as_str) != expected.as_str() {
                wrong.push(format!("{} ({chat}):\n  {got:?}\n  {expected:?}", idiom["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), idioms.len(), wrong.join("\n"));
}
