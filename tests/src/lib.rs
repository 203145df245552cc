//! End-to-end, golden, family and layering tests.
