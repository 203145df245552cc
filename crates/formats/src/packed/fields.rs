//! Fields of `quantization_config`.

use oq_quant_core::Bits;
use serde_json::Value;

use crate::FormatError;

/// Refuses a field whose value is not in `allowed`; an absent field counts as null.
pub(crate) fn expect(
    object: &Value,
    field: &'static str,
    allowed: &[Value],
    expected: &'static str,
) -> Result<(), FormatError> {
    let value = object.get(field).unwrap_or(&Value::Null);
    if allowed.contains(value) { Ok(()) } else { Err(wrong(field, Some(value), expected)) }
}

/// The width of codes.
pub(crate) fn bits(object: &Value, field: &'static str) -> Result<Bits, FormatError> {
    let value = object.get(field);
    let number = value.and_then(Value::as_u64).and_then(|bits| u32::try_from(bits).ok());
    number.and_then(|bits| Bits::new(bits).ok()).ok_or_else(|| wrong(field, value, "2 to 8"))
}

/// A field that is not as expected.
pub(crate) fn wrong(field: &'static str, got: Option<&Value>, expected: &'static str) -> FormatError {
    let got = got.filter(|value| !value.is_null()).map_or("absent".to_owned(), Value::to_string);
    FormatError::QuantConfig { field, got, expected }
}
