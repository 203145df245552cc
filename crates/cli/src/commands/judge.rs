//! `omniquant judge`: two models answer questions, and a third one says whose answers are better.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use oq_data::{AddSpecial, ChatTemplate, Message, Tokenizer};
use oq_generate::{Choice, Loaded, Sampler, Sampling, Settings, generate};
use oq_judge::{Answerer, ChatOptions, Contest, Endpoint, Question, Rules, Side, Tally};
use serde_json::{Value, json};

use crate::args::{JudgeArgs, ModelArgs};
use crate::commands::running::{load, open};
use crate::exit::CliError;
use crate::output::Output;
use crate::resolve::Named;

pub fn run(args: &JudgeArgs, out: &Output) -> Result<()> {
    // Mistakes are reported before anything is loaded.
    let sampling = sampling(args)?;
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
    if key.is_none() && args.judge.contains("://api.openai.com/") {
        let message = "OPENAI_API_KEY is not set, which this judge needs: set it, or name another --judge";
        return Err(CliError::Usage(message.to_owned()).into());
    }
    let questions = Question::read(&args.questions)?;
    let n_questions = questions.len();
    let rules = Rules {
        a: args.a.clone(),
        b: args.b.clone(),
        judge: args.judge_model.clone(),
        max_tokens: args.max_tokens as usize,
        temperature: args.temperature,
        seed: args.seed,
    };
    let dir = match &args.out {
        Some(dir) => dir.clone(),
        None => PathBuf::from(format!("{}-against-{}", stem(&args.a)?, stem(&args.b)?)),
    };
    let mut contest = Contest::open(&dir, &rules, questions)?;
    for (side, name) in [(Side::A, &args.a), (Side::B, &args.b)] {
        if contest.lacks_answers(side) {
            answers(&mut contest, side, name, (args, sampling), out)?;
        }
    }
    let mut judge = Endpoint::new(&args.judge, &args.judge_model, key);
    let bar = out.bar("judging");
    contest.judge(&mut judge, &mut |done, of| bar.set(done, of))?;
    drop(bar);

    let tally = contest.tally();
    let record = dir.join("contest.jsonl");
    let counted = |count: usize| {
        let share = tally.share(count);
        let [value, low, high] =
            [share.map(|share| share.share), share.map(|share| share.low), share.map(|share| share.high)];
        json!({"count": count, "share": value, "low": low, "high": high})
    };
    let value: Value = json!({"a": args.a, "b": args.b, "judge": args.judge_model, "questions": n_questions,
        "wins": counted(tally.wins), "ties": counted(tally.ties), "losses": counted(tally.losses),
        "disagreements": tally.disagreements, "unreadable": tally.unreadable, "record": record.display().to_string()});
    out.result(&value, || table(args, &tally))
}

fn is_url(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

fn model_args(name: &str) -> ModelArgs {
    ModelArgs { name: name.to_owned(), revision: None }
}

/// A short name of a model for the folder.
fn stem(name: &str) -> Result<String, CliError> {
    match name.split_once("://") {
        Some((_, rest)) if is_url(name) => {
            let plain = rest.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
            Ok(plain.collect::<Vec<_>>().join("-"))
        }
        _ => Ok(Named::new(&model_args(name))?.stem()),
    }
}

fn sampling(args: &JudgeArgs) -> Result<Sampling> {
    let choice = match args.temperature {
        0.0 => Choice::Greedy,
        temperature => Choice::Draw { temperature, top_p: 1.0, top_k: None },
    };
    let sampling = Sampling::new(choice).with_seed(args.seed);
    Sampler::new(sampling)?;
    Ok(sampling)
}

/// Lets one of the two answer: over HTTP, or here, where it is in memory only meanwhile.
fn answers(
    contest: &mut Contest,
    side: Side,
    name: &str,
    (args, sampling): (&JudgeArgs, Sampling),
    out: &Output,
) -> Result<()> {
    let max_tokens = args.max_tokens as usize;
    let title = format!("answers of {side}");
    if is_url(name) {
        let token = std::env::var("OMNIQUANT_TOKEN").ok().filter(|token| !token.is_empty());
        let options = ChatOptions::greedy().with_temperature(args.temperature).with_max_tokens(max_tokens);
        let mut model = (Endpoint::of_only_model(name, token)?, options);
        let bar = out.bar(&title);
        return Ok(contest.answer(side, &mut model, &mut |done, of| bar.set(done, of))?);
    }
    let opened = open(&model_args(name), &args.run, out)?;
    let (tokenizer, template) = (Tokenizer::open(opened.dir())?, ChatTemplate::open(opened.dir())?);
    let settings = Settings::new(max_tokens).with_ends(tokenizer.eos().to_vec());
    let loaded = load(opened, out)?;
    let mut model = Local { loaded: &loaded, tokenizer, template, settings, sampling };
    let bar = out.bar(&title);
    Ok(contest.answer(side, &mut model, &mut |done, of| bar.set(done, of))?)
}

/// A model in memory.
struct Local<'a> {
    loaded: &'a Loaded,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    settings: Settings,
    sampling: Sampling,
}

impl Answerer for Local<'_> {
    fn answer(&mut self, question: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
        let message = Message { role: "user".to_owned(), content: question.to_owned() };
        let ids = self.tokenizer.encode(&self.template.render(&[message], true)?, AddSpecial::No)?;
        let mut sampler = Sampler::new(self.sampling)?;
        let how = (&self.settings, &mut sampler, &self.tokenizer);
        Ok(generate(&mut self.loaded.session(), &ids, how, &mut |_| ControlFlow::Continue(()))?.text)
    }
}

fn table(args: &JudgeArgs, tally: &Tally) -> String {
    let row = |name: &str, count: usize| {
        let share = tally.share(count).map_or(String::new(), |share| {
            let [share, low, high] = [share.share, share.low, share.high].map(|share| share * 100.0);
            format!("  {share:5.1}%  (95%: {low:.1} to {high:.1}%)")
        });
        format!("{name:<12}{count:>4}{share}\n")
    };
    format!(
        "A: {}\nB: {}\njudge: {}, each pair in both orders\n\n{}{}{}\nties in which the orders disagree: {}\npairs without a verdict: {}",
        args.a,
        args.b,
        args.judge_model,
        row("A wins", tally.wins),
        row("ties", tally.ties),
        row("B wins", tally.losses),
        tally.disagreements,
        tally.unreadable
    )
}
