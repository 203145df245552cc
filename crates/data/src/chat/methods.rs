//! Methods of Python's strings and lists that templates call, beyond those of `minijinja_contrib`.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => of_text(text, name, args),
        (None, ValueKind::Seq) if name == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|item| item == wanted);
            found.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "it is not in the list"))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
    .or_else(|error| match error.kind() {
        ErrorKind::UnknownMethod => pycompat::unknown_method_callback(state, value, name, args),
        _ => Err(error),
    })
}

fn of_text(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let parts = |parts: [&str; 3]| Value::from(minijinja::value::Tuple::from(parts.map(Value::from).to_vec()));
    Ok(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (sign,): (&str,) = from_args(args)?;
            text.split_once(sign).map_or_else(|| parts([text, "", ""]), |(a, b)| parts([a, sign, b]))
        }
        "rpartition" => {
            let (sign,): (&str,) = from_args(args)?;
            text.rsplit_once(sign).map_or_else(|| parts(["", "", text]), |(a, b)| parts([a, sign, b]))
        }
        "rsplit" if !args.is_empty() => {
            let (sign, most): (&str, Option<i64>) = from_args(args)?;
            let most =
                most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(most, sign).map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            text.chars().map(swapped).collect::<String>().into()
        }
        "isdecimal" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()
        }
        "index" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at =
                text.find(wanted).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "it is not in the text"))?;
            text[..at].chars().count().into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let digits = text.trim_start_matches(['+', '-']);
            let sign = &text[..text.len() - digits.len()];
            format!("{sign}{}{digits}", "0".repeat(missing(text, width)?)).into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let (fill, missing) = (fill.unwrap_or(" "), missing(text, width)?);
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // CPython's choice for an odd number of spaces.
                _ => missing / 2 + (missing & width & 1),
            };
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into()
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// Maximum width of padded text, because templates must not allocate memory at will.
const WIDEST: usize = 1 << 16;

fn missing(text: &str, width: usize) -> Result<usize, Error> {
    match width {
        0..=WIDEST => Ok(width.saturating_sub(text.chars().count())),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("a text of {width} characters is too wide"))),
    }
}
