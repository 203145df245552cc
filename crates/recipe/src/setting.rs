//! One key of a recipe: its type, its option on the command line, and what is allowed.

use std::fmt::Display;
use std::str::FromStr;

use oq_quant_core::{Bits, RotateKind, SiteKind};

use crate::{Loss, Overrides, Recipe, RecipeError, Rounding, Start};

/// A key of a recipe's tables, as the program needs it. All of them are [`keys`](crate::keys).
#[derive(Clone, Copy)]
pub struct Key {
    /// As a recipe file writes it, such as `learn.epochs`.
    pub path: &'static str,
    /// Its option on the command line, where it has one.
    pub option: Option<KeyOption>,
    pub(crate) set: fn(&mut Overrides, &str) -> Result<(), String>,
    pub(crate) is_asked_for: fn(&Overrides) -> bool,
    pub(crate) is_read: fn(&Recipe) -> bool,
    pub(crate) check: fn(&Recipe) -> Result<(), RecipeError>,
}

/// The option of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOption {
    /// With underscores, such as `lwc_lr` for `--lwc-lr`.
    pub name: &'static str,
    /// What stands for its value in the help, such as `N`.
    pub value_name: &'static str,
    /// What the help says of it.
    pub help: &'static str,
    /// Whether its value is a list, with commas between the entries.
    pub is_list: bool,
}

impl Key {
    /// Sets the key from a word of the command line; the error says what is allowed.
    pub fn set(&self, overrides: &mut Overrides, text: &str) -> Result<(), String> {
        (self.set)(overrides, text)
    }
}

/// What is declared beside a key's name, type and documentation.
pub(crate) struct Declared<T> {
    pub(crate) value_name: &'static str,
    pub(crate) help: &'static str,
    /// Whether a run reads it.
    pub(crate) is_read: fn(&Recipe) -> bool,
    /// Whether a value asks for anything: an option that asks for nothing needs no warning where it is not read.
    pub(crate) asks: fn(&T) -> bool,
    /// What the value must be where it is not allowed.
    pub(crate) allows: fn(&T, &Recipe) -> Result<(), String>,
}

impl<T> Declared<T> {
    /// Every run reads it, and any value is allowed.
    pub(crate) const PLAIN: Self =
        Self { value_name: "", help: "", is_read: |_| true, asks: |_| true, allows: |_, _| Ok(()) };
}

/// An error with what is allowed, unless a value `is_allowed`.
pub(crate) fn must(is_allowed: bool, allowed: impl Into<String>) -> Result<(), String> {
    if is_allowed { Ok(()) } else { Err(allowed.into()) }
}

/// Refuses a learning rate that is not positive and finite.
pub(crate) fn must_be_rate(rate: f64, example: &str) -> Result<(), String> {
    must(rate.is_finite() && rate > 0.0, format!("positive and finite, such as {example}"))
}

/// A type that keys have.
pub(crate) trait Setting: Sized {
    /// Whether words of it are lists.
    const IS_LIST: bool = false;

    /// From a word of the command line.
    fn parse(text: &str) -> Result<Self, String>;

    /// As a recipe file writes it.
    fn show(&self) -> String;

    /// Whether TOML, in which recipes are kept, can hold it.
    fn fits(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Setting for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be true or false".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for f64 {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be a number".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Whole numbers, 0 or more.
macro_rules! whole_numbers {
    ($($number:ty),+) => {
        $(impl Setting for $number {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| "must be a whole number, 0 or more".to_owned())
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn fits(&self) -> Result<(), String> {
                must(i64::try_from(*self).is_ok(), format!("{} (2^63 - 1) or less", i64::MAX))
            }
        })+
    };
}

whole_numbers!(usize, u64);

/// Choices by name, which recipe files write in quotes.
macro_rules! names {
    ($($name:ty),+) => {
        $(impl Setting for $name {
            fn parse(text: &str) -> Result<Self, String> {
                from_str(text)
            }

            fn show(&self) -> String {
                format!("\"{self}\"")
            }
        })+
    };
}

names!(SiteKind, RotateKind, Loss, Start, Rounding);

impl Setting for Bits {
    fn parse(text: &str) -> Result<Self, String> {
        from_str(text)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl<T: Setting> Setting for Vec<T> {
    const IS_LIST: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(T::parse).collect()
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

fn from_str<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}
