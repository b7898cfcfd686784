//! Tests of large values.
