//! The files of `configs/`: their names, without `.toml`, and contents.

include!(concat!(env!("OUT_DIR"), "/configs.rs"));

/// Parses embedded text. Errors in it are bugs of this library, which its tests find.
pub(crate) fn parsed<T>(result: Result<T, crate::error::RecipeError>) -> T {
    result.unwrap_or_else(|error| panic!("embedded file is wrong: {error}"))
}
