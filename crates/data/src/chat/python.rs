//! Shared by the filters: how Python prints a number and looks up an argument.

use minijinja::Error;
use minijinja::value::{Kwargs, Value};

/// A number as Python prints it: the shortest digits, exponents with a sign and two digits.
pub(super) fn float_text(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().expect("Rust writes a number");
            format!("{digits}e{exponent:+03}")
        }
        None => text,
    }
}

/// An argument by position, else by name.
pub(super) fn named(positional: Option<Value>, name: &str, kwargs: &Kwargs) -> Result<Option<Value>, Error> {
    if positional.is_some() { Ok(positional) } else { kwargs.get(name) }
}
