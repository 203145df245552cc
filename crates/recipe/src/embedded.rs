//! The files of `configs/`: the name of each, without `.toml`, and its text.

include!(concat!(env!("OUT_DIR"), "/configs.rs"));

/// Parses embedded text; what is wrong with it is a fault of this library, which its tests find.
pub(crate) fn parsed<T>(result: Result<T, crate::RecipeError>) -> T {
    result.unwrap_or_else(|error| panic!("embedded file is wrong: {error}"))
}
