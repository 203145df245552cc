//! `omniquant chat`: a conversation, line by line.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Result, anyhow};
use oq_data::{AddSpecial, ChatTemplate, Generation, Message, Tokenizer};
use oq_generate::{End, Loaded, Sampler, Session, generate};

use crate::args::ChatArgs;
use crate::commands::generate::{record, summary};
use crate::commands::running::{Interrupt, check, emit, load, open, record_of, settings};
use crate::exit::CliError;
use crate::output::Output;

pub fn run(args: &ChatArgs, out: &Output) -> Result<()> {
    // Mistakes are reported before anything is loaded.
    check(&args.sampling)?;
    let opened = open(&args.model, &args.run, out)?;
    let dir = opened.dir();
    let template = ChatTemplate::open(dir)?;
    let (tokenizer, generation) = (Tokenizer::open(dir)?, Generation::open(dir)?);
    let (settings, sampling) = settings(&args.sampling, &generation, tokenizer.eos(), out)?;
    let loaded = load(opened, out)?;
    let mut sampler = Sampler::new(sampling)?;
    let interrupt = Interrupt::install(None)?;

    let mut talk = Talk { template: &template, tokenizer: &tokenizer, messages: Vec::new(), answered: false };
    talk.messages.extend(args.system.iter().map(|system| message("system", system)));
    let mut session = loaded.session();
    let mut left_out = 0;
    loop {
        let line = match ask()? {
            None if left_out > 0 && !talk.answered => {
                return Err(CliError::Usage("no message could be answered".to_owned()).into());
            }
            None => return Ok(()),
            Some(Ok(line)) if line.trim().is_empty() => continue,
            Some(Ok(line)) => line,
            Some(Err(error)) => {
                out.error(&error.context("this line was skipped"));
                left_out += 1;
                continue;
            }
        };
        let limit = session.limit();
        let ids = match talk.hear(line.trim(), limit, settings.max_tokens, out) {
            Ok(ids) => ids,
            // If a message cannot be read, the conversation is unchanged.
            Err(error) if talk.answered || error.downcast_ref::<CliError>().is_some() => {
                out.error(&error.context("the message was skipped"));
                left_out += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let (continued, new) = follow(&loaded, session, &ids);
        session = continued;
        let answer = interrupt.during(|| {
            generate(&mut session, new, (&settings, &mut sampler, &tokenizer), &mut emit(out, &interrupt))
        })?;
        if out.is_json() {
            let mut value = record(&loaded, &session, new.len(), &answer);
            value["sampling"] = record_of(&sampling);
            out.result(&value, String::new)?;
        } else if !out.piece("\n") {
            return Ok(());
        } else if !matches!(answer.end, End::Token(_)) {
            out.note(&summary(new.len(), &answer));
        }
        talk.messages.push(message("assistant", &answer.text));
        talk.answered = true;
    }
}

/// The conversation so far.
struct Talk<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    messages: Vec<Message>,
    /// Whether there was an answer already, so that the template is known to accept this conversation.
    answered: bool,
}

impl Talk<'_> {
    /// Adds a message of the user and returns the ids of the conversation up to where the answer begins. If it exceeds the context, the
    /// oldest questions and answers are dropped. On an error nothing is added.
    fn hear(&mut self, line: &str, limit: usize, max_tokens: usize, out: &Output) -> Result<Vec<u32>> {
        let mut messages = self.messages.clone();
        messages.push(message("user", line));
        let encode = |messages: &[Message]| -> Result<Vec<u32>> {
            Ok(self.tokenizer.encode(&self.template.render(messages, true)?, AddSpecial::No)?)
        };
        let mut ids = encode(&messages)?;
        let mut forgotten = 0;
        // Leave room for an answer, unless that would drop most of the conversation.
        if ids.len() > limit - max_tokens.min(limit / 4) {
            // Down to half of it, because what follows must be processed again.
            while ids.len() > limit / 2 && forget(&mut messages) {
                forgotten += 1;
                ids = encode(&messages)?;
            }
        }
        if ids.len() > limit {
            let message = format!(
                "with the chat template the message takes {} tokens, but the model's context is {limit}: shorten it",
                ids.len()
            );
            return Err(CliError::Usage(message).into());
        }
        if forgotten > 0 {
            out.note(&format!(
                "note: the conversation exceeds the model's context: its oldest answers ({forgotten}) are left out"
            ));
        }
        self.messages = messages;
        Ok(ids)
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

/// The user's next line, or an error if it is not text; none at the end of the conversation.
fn ask() -> Result<Option<Result<String>>> {
    if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr();
        write!(stderr, "> ").and_then(|()| stderr.flush())?;
    }
    let mut line = Vec::new();
    let read = std::io::stdin().lock().read_until(b'\n', &mut line)?;
    let text =
        |line| String::from_utf8(line).map_err(|e| anyhow!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()));
    Ok((read > 0).then(|| text(line)))
}

/// Drops the oldest question and its answer, if there is one besides the last question.
fn forget(messages: &mut Vec<Message>) -> bool {
    let first = messages.iter().position(|message| message.role == "user");
    let range = first.map(|first| first..first + 2).filter(|range| range.end < messages.len());
    range.map(|range| messages.drain(range)).is_some()
}

/// The session with what it has processed so far, if the conversation continues it, else a new one; and the tokens left to process.
fn follow<'a, 'b>(loaded: &'a Loaded, session: Session<'a>, ids: &'b [u32]) -> (Session<'a>, &'b [u32]) {
    match ids.strip_prefix(session.ids()) {
        Some(new) if !new.is_empty() => (session, new),
        _ => (loaded.session(), ids),
    }
}
