//! Tests of doors of several threads.
