//! `peer_message` of kadring-tests for cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kadring_tests::fuzz::links::peer_message(bytes));
