//! Every target on seeded inputs.

use fastrand::Rng;
use kadring::export::Reader;
use kadring::io::device::DeviceProbe;
use kadring::krpc::message::Message;
use kadring::snapshot::Catalog;

use super::targets::TARGETS;
use super::{extents, files, krpc, links};

const INPUTS: u64 = 3_000;

#[test]
fn every_decoder_takes_any_bytes() {
    for target in TARGETS {
        // A store is opened for each input, or on it: that takes longer.
        let is_slow = matches!(target.name, "segment_file" | "checkpoint");
        target.run_seeded(1, if is_slow { INPUTS / 6 } else { INPUTS });
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

/// Without a mutation every generator's input must be accepted, or the targets try nothing that
/// lies behind a decoder's first check.
#[test]
fn generators_make_what_their_decoders_accept() {
    let mut rng = Rng::with_seed(3);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mut tables = 0;
    for _ in 0..20 {
        tables += usize::from(files::has_table(&files::valid_footer(&mut rng)));
        assert!(Catalog::decode(&text(files::valid_catalog(&mut rng))).is_ok());
        assert!(DeviceProbe::from_toml(&text(files::valid_device(&mut rng))).is_some());
        assert!(extents::is_sound(&extents::valid_extent(&mut rng)));
        let export = files::valid_export(&mut rng);
        let (mut reader, mut input) = (Reader::new(), &export[..]);
        while reader.next(&mut input).unwrap().is_some() {}
        assert!(reader.finish().is_ok());
        let slots = storage::fuzz_checkpoint(&files::valid_checkpoint(&mut rng));
        assert!(slots > 0, "the checkpoint is refused or empty");
        assert!(Message::decode(&krpc::valid_krpc(&mut rng)).is_ok());
    }
    assert!(tables > 10, "{tables} footers of 20 have a table");
}

/// Steps must get past the first checks: some answers are taken, and bring nodes into the table.
#[test]
fn steps_of_the_node_target_bring_nodes_into_its_table() {
    let mut rng = Rng::with_seed(4);
    let (mut known, mut answers, mut queries) = (0, 0, 0);
    for _ in 0..200 {
        let node = krpc::play(&krpc::valid_steps(&mut rng));
        known += node.table().len();
        answers += node.counters().responses_in;
        queries += node.counters().queries_in;
    }
    assert!(known > 50 && answers > 100 && queries > 100, "{known} {answers} {queries}");
}

/// Links come up and carry messages, and strangers get in where anybody may, and nowhere else.
#[test]
fn steps_of_the_link_targets_bring_links_up() {
    for has_secret in [false, true] {
        let mut rng = Rng::with_seed(5);
        let (mut up, mut messages, mut refused) = (0, 0, 0);
        for _ in 0..200 {
            let played = links::play(&links::valid_link_steps(&mut rng), has_secret);
            up += played.up;
            messages += played.messages;
            refused += played.refused;
        }
        assert!(up > 100 && messages > 200 && refused > 50, "{up} {messages} {refused}");
    }
}
