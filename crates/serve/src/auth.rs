//! Who may ask: everyone, or those who have the token.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use crate::refusal::Refusal;

/// Checks `Authorization: Bearer TOKEN`. How long that takes does not depend on how much of the token is right.
pub(crate) fn check(token: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = token else { return Ok(()) };
    let given = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    // The scheme's name is not case-sensitive.
    let given = match given.split_at_checked(b"Bearer ".len()) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"Bearer ") => given,
        _ => b"",
    };
    match bool::from(given.ct_eq(token.as_bytes())) {
        true => Ok(()),
        false => Err(Refusal::unauthorised()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_token(token: Option<&str>, header: Option<&str>, passes: bool) {
        let mut headers = HeaderMap::new();
        header.map(|value| headers.insert(AUTHORIZATION, value.parse().unwrap()));
        assert_eq!(check(token, &headers).is_ok(), passes, "{token:?} {header:?}");
    }

    #[test]
    fn the_token_opens() {
        check_token(None, None, true);
        check_token(None, Some("Bearer anything"), true);
        check_token(Some("abc"), Some("Bearer abc"), true);
        check_token(Some("abc"), Some("bearer abc"), true);
        for wrong in ["Bearer abd", "Bearer ab", "Bearer abcd", "Bearer ", "Bearer", "abc", "Basic abc", ""] {
            check_token(Some("abc"), Some(wrong), false);
        }
        check_token(Some("abc"), None, false);
    }
}
