//! `omniquant chat`: a conversation, line by line.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use oq_data::{AddSpecial, ChatTemplate, Message, Tokenizer};
use oq_generate::{End, Loaded, Session, generate};

use crate::args::ChatArgs;
use crate::commands::generate::{record, told};
use crate::commands::running::{Interrupt, load, settings, tell};
use crate::output::Output;

pub fn run(args: &ChatArgs, out: &Output) -> Result<()> {
    // A mistake is told before anything is loaded.
    settings(&args.sampling, &[])?;
    let loaded = load(&args.model, &args.run, out)?;
    let dir = loaded.model().dir();
    let template = ChatTemplate::open(dir)?;
    let tokenizer = Tokenizer::open(dir)?;
    let (settings, mut sampler) = settings(&args.sampling, tokenizer.eos())?;
    let interrupt = Interrupt::install(None)?;

    let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let mut messages: Vec<Message> = args.system.iter().map(|system| message("system", system)).collect();
    let mut session = loaded.session();
    loop {
        let Some(line) = ask()? else { return Ok(()) };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(message("user", line.trim()));
        let limit = session.limit();
        // Room for an answer, if that leaves most of the conversation.
        let most = limit - settings.max_tokens.min(limit / 4);
        let encode = |messages: &[Message]| -> Result<Vec<u32>> {
            Ok(tokenizer.encode(&template.render(messages, true)?, AddSpecial::No)?)
        };
        let mut ids = encode(&messages)?;
        if ids.len() > most {
            // Down to half of it, as what follows has to be read anew.
            let mut forgotten = 0;
            while ids.len() > limit / 2 && forget(&mut messages) {
                forgotten += 1;
                ids = encode(&messages)?;
            }
            if forgotten > 0 {
                out.note(&format!(
                    "note: the conversation is longer than the model's context: its oldest answers, {forgotten}, are left out"
                ));
            }
        }
        let (continued, new) = follow(&loaded, session, &ids);
        session = continued;
        let answer = interrupt.during(|| {
            generate(&mut session, new, (&settings, &mut sampler, &tokenizer), &mut tell(out, &interrupt))
        })?;
        if out.is_json() {
            out.result(&record(&loaded, &session, new.len(), &answer), String::new)?;
        } else if !out.piece("\n") {
            return Ok(());
        } else if !matches!(answer.end, End::Token(_)) {
            out.note(&told(new.len(), &answer));
        }
        messages.push(message("assistant", &answer.text));
    }
}

/// The next line of the user; none at the end of the conversation.
fn ask() -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr();
        write!(stderr, "> ").and_then(|()| stderr.flush())?;
    }
    let mut line = String::new();
    Ok((std::io::stdin().read_line(&mut line)? > 0).then_some(line))
}

/// Leaves out the oldest question and its answer, if there is one besides the last question.
fn forget(messages: &mut Vec<Message>) -> bool {
    let first = messages.iter().position(|message| message.role == "user");
    let range = first.map(|first| first..first + 2).filter(|range| range.end < messages.len());
    range.map(|range| messages.drain(range)).is_some()
}

/// The session with what it has read so far, if the conversation goes on from there, else a new one; and the tokens it is to read.
fn follow<'a, 'b>(loaded: &'a Loaded, session: Session<'a>, ids: &'b [u32]) -> (Session<'a>, &'b [u32]) {
    match ids.strip_prefix(session.ids()) {
        Some(new) if !new.is_empty() => (session, new),
        _ => (loaded.session(), ids),
    }
}
