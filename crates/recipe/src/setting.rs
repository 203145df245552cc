//! The types that keys of a recipe have: from a word of the command line, and as a recipe file writes them.

use std::fmt::Display;
use std::str::FromStr;

use oq_quant_core::{Bits, RotateKind, SiteKind};

use crate::choices::{Loss, Rounding, Start};

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

/// A key without a value is one that is not there.
impl<T: Setting> Setting for Option<T> {
    fn parse(text: &str) -> Result<Self, String> {
        T::parse(text).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, T::show)
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
