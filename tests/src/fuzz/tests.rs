//! Every target on seeded inputs.

use super::targets::TARGETS;

const INPUTS: u64 = 3_000;

#[test]
fn every_decoder_takes_any_bytes() {
    for target in TARGETS {
        // A store is opened on each input: that takes longer.
        let count = if target.name == "segment_file" { INPUTS / 3 } else { INPUTS };
        target.run_seeded(1, count);
    }
}

#[test]
fn valid_inputs_are_valid_and_mutations_are_not_all_refused() {
    for target in TARGETS {
        let mut inputs: Vec<_> = (0..200).map(|index| target.input(2, index)).collect();
        inputs.sort();
        inputs.dedup();
        assert!(inputs.len() > 100, "{}: {} different inputs", target.name, inputs.len());
    }
}
