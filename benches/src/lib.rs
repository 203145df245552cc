//! Criterion benches with committed records.
