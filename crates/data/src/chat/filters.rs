//! Jinja2 filters and tests that `minijinja` lacks or implements differently.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter};

use super::json::tojson;
use super::methods::method;
use super::python::{float_text, named};

/// Adds all of them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_formatter(print);
    environment.add_filter("tojson", tojson);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter("center", center);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("truncate", truncate);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    // Anything with a length and items: strings and maps too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
}

/// Prints a value as Python's `str` does.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match f64::try_from(value.clone()) {
        Ok(number) if value.kind() == ValueKind::Number && !value.is_integer() => {
            write!(out, "{}", float_text(number)).map_err(|_| Error::from(ErrorKind::WriteFailure))
        }
        _ => escape_formatter(out, state, value),
    }
}

fn default(value: Value, other: Option<Value>, boolean: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = named(other, "default_value", &kwargs)?.unwrap_or_else(|| "".into());
    let boolean = named(boolean, "boolean", &kwargs)?.is_some_and(|boolean| boolean.is_true());
    kwargs.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value })
}

fn int(value: Value, other: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = named(other, "default", &kwargs)?.unwrap_or_else(|| 0.into());
    kwargs.assert_all_used()?;
    let of_text = |text: &str| {
        let text = text.trim();
        text.parse().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as i64))
    };
    let number = match value.kind() {
        ValueKind::String => value.as_str().and_then(of_text),
        ValueKind::Bool => Some(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => return Ok(value),
        ValueKind::Number => f64::try_from(value).ok().map(|number| number as i64),
        _ => None,
    };
    Ok(number.map_or(other, Value::from))
}

fn float(value: Value, other: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = named(other, "default", &kwargs)?.unwrap_or_else(|| 0.0.into());
    kwargs.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value).ok(),
    };
    Ok(number.map_or(other, Value::from))
}

fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&#34;"),
            '\'' => text.push_str("&#39;"),
            c => text.push(c),
        }
    }
    Value::from_safe_string(text)
}

fn center(state: &mut State<'_, '_>, value: &Value, width: Option<Value>) -> Result<Value, Error> {
    method(state, &value.to_string().into(), "center", &[width.unwrap_or_else(|| 80.into())])
}

/// Truncated at a word boundary (unless `killwords` is set) if it is longer than `length` by more than `leeway`.
fn truncate(text: &str, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let mut positional = args.0.into_iter();
    let mut arg = |name: &str| named(positional.next(), name, &kwargs);
    let [length, killwords, end, leeway] = [arg("length")?, arg("killwords")?, arg("end")?, arg("leeway")?];
    kwargs.assert_all_used()?;
    let length = length.map_or(Ok(255), usize::try_from)?;
    let leeway = leeway.map_or(Ok(5), usize::try_from)?;
    let end = end.map_or_else(|| "...".to_owned(), |end| end.to_string());
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let is_cut_anywhere = killwords.is_some_and(|kill| kill.is_true());
    let kept = if is_cut_anywhere { &*kept } else { kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words) };
    Ok(format!("{kept}{end}"))
}
