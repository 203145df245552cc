//! The `tojson` filter of chat templates: Python's `json.dumps`, with the defaults that transformers gives it.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::python::{float_text, named};

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut positional = args.0.into_iter();
    let mut arg = |name: &str| named(positional.next(), name, &kwargs).map(Option::unwrap_or_default);
    let [ensure_ascii, indent, separators, sort_keys] =
        [arg("ensure_ascii")?, arg("indent")?, arg("separators")?, arg("sort_keys")?];
    kwargs.assert_all_used()?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => Some(indent.to_string()),
        ValueKind::Bool => Some(" ".repeat(usize::from(indent.is_true()))),
        _ => Some(" ".repeat(usize::try_from(indent).unwrap_or(0))),
    };
    // At the end of a line nothing follows the comma.
    let mut signs = [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()];
    if !(separators.is_none() || separators.is_undefined()) {
        let given: Vec<String> = separators.try_iter()?.map(|sign| sign.to_string()).collect();
        signs = given.try_into().map_err(|_| wrong("separators are two texts"))?;
    }
    let [comma, colon] = signs;
    let format = Python { indent, comma, colon, ensure_ascii: ensure_ascii.is_true(), depth: 0, has_items: false };
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, format);
    let written = if sort_keys.is_true() {
        serde_json::to_value(value).and_then(|mut value| {
            value.sort_all_objects();
            value.serialize(&mut serializer)
        })
    } else {
        value.serialize(&mut serializer)
    };
    written.map_err(|e| wrong("this cannot be JSON").with_source(e))?;
    Ok(String::from_utf8(bytes).expect("JSON is text").into())
}

fn wrong(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

/// JSON as `json.dumps` prints it.
struct Python {
    indent: Option<String>,
    comma: String,
    colon: String,
    ensure_ascii: bool,
    depth: usize,
    /// Whether the current or the last closed container has items.
    has_items: bool,
}

impl Python {
    fn begin(&mut self) {
        self.depth += 1;
        self.has_items = false;
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        if !is_first {
            out.write_all(self.comma.as_bytes())?;
        }
        self.line(out)
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items { self.line(out) } else { Ok(()) }
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }
}

impl Formatter for Python {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float_text(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            match c {
                ' '..='~' => write!(out, "{c}")?,
                _ => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin();
        out.write_all(b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out)?;
        out.write_all(b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin();
        out.write_all(b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out)?;
        out.write_all(b"}")
    }
}
