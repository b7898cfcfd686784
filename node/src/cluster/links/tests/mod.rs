//! Links over a network in memory.

mod hostile;
mod network;

use bytes::Bytes;
use fastrand::Rng;

use self::network::{Network, address, id, key, options};
use super::{LinkEvent, LinkOptions};
use crate::cluster::message::tests::{messages, record};
use crate::cluster::message::{PeerMessage, PutReason, RequestId};
use crate::io::Monotonic;

fn ping(number: u64) -> PeerMessage {
    PeerMessage::Ping { request: RequestId(number), target: None, entries: vec![] }
}

fn put(number: u64, len: usize) -> PeerMessage {
    let mut rng = Rng::with_seed(number);
    let record = record(&mut rng, Some(len));
    PeerMessage::Put { request: RequestId(number), reason: PutReason::Write, record }
}

fn with_secret(options: &mut LinkOptions) {
    options.key = key(7);
}

/// What a node was told, apart from messages.
fn told(net: &Network, node: usize) -> Vec<String> {
    let events = net.nodes[node].events.iter();
    let told = events.filter_map(|event| match event {
        LinkEvent::Message { .. } => None,
        LinkEvent::Up { node, .. } => Some(format!("up {}", node.0[19])),
        LinkEvent::Down { node } => Some(format!("down {}", node.0[19])),
        LinkEvent::Unsent { node } => Some(format!("unsent {}", node.0[19])),
    });
    told.collect()
}

fn received(net: &Network, node: usize) -> Vec<PeerMessage> {
    let events = net.nodes[node].events.iter();
    let messages = events.filter_map(|event| match event {
        LinkEvent::Message { message, .. } => Some(message.clone()),
        _ => None,
    });
    messages.collect()
}

/// Whether all nodes have one link with each of those they should, and nothing left over.
#[track_caller]
fn check_quiet(net: &Network, pairs: usize) {
    assert_eq!(net.open_ends(), 2 * pairs, "open ends of connections");
    let links: usize = net.nodes.iter().map(|node| node.links.links().count()).sum();
    assert_eq!(links, 2 * pairs, "links");
    for node in &net.nodes {
        assert_eq!(node.links.waiting_and_held_bytes(), (0, 0));
    }
}

#[track_caller]
fn check_same(mut found: Vec<PeerMessage>, sent: &[PeerMessage]) {
    for message in sent {
        let at = found.iter().position(|other| other == message);
        found.swap_remove(at.unwrap_or_else(|| panic!("lost: {:.200}", format!("{message:?}"))));
    }
    assert!(found.is_empty(), "{} messages too many", found.len());
}

#[test]
fn messages_of_every_kind_arrive_however_the_stream_is_cut() {
    for seed in 0..20 {
        let mut net = Network::of(seed, 2, |options| {
            if seed % 2 == 0 {
                with_secret(options);
            }
        });
        let mut sent = [Vec::new(), Vec::new()];
        for round in 0..3 {
            for from in 0..2 {
                let mut rng = Rng::with_seed(seed * 100 + round * 10 + from as u64);
                for message in messages(&mut rng) {
                    sent[1 - from].push(message.clone());
                    net.send(from, 1 - from, message);
                    if net.rng.u8(..4) == 0 {
                        net.settle();
                    }
                }
            }
        }
        net.settle();
        for (node, sent) in sent.iter().enumerate() {
            assert_eq!(told(&net, node), [format!("up {}", 1 - node)], "seed {seed}");
            check_same(received(&net, node), sent);
        }
        check_quiet(&net, 1);
        let counters = net.nodes[0].links.counters();
        assert_eq!(counters.messages_sent, sent[1].len() as u64);
        assert_eq!(counters.messages_received, sent[0].len() as u64);
    }
}

#[test]
fn links_made_at_the_same_moment_become_one() {
    for seed in 0..60 {
        let mut net = Network::of(seed, 4, with_secret);
        let mut sent = vec![Vec::new(); 4];
        for round in 0..3 {
            for from in 0..4 {
                for to in (0..4).filter(|to| *to != from) {
                    let number = (round * 100 + from * 10 + to) as u64;
                    let message =
                        if number.is_multiple_of(5) { put(number, 600_000) } else { ping(number) };
                    sent[to].push(message.clone());
                    net.send(from, to, message);
                }
            }
            (0..net.rng.usize(..200)).for_each(|_| net.some_steps());
        }
        net.settle();
        for (node, sent) in sent.iter().enumerate() {
            check_same(received(&net, node), sent);
            let told = told(&net, node);
            assert_eq!(told.len(), 3, "seed {seed}: {told:?}");
        }
        check_quiet(&net, 6);
    }
}

#[test]
fn large_values_do_not_hold_up_short_messages() {
    let mut net = Network::of(1, 2, with_secret);
    let large: Vec<PeerMessage> = (0..5).map(|number| put(number, 8 << 20)).collect();
    large.iter().for_each(|message| net.send(0, 1, message.clone()));
    net.send(0, 1, ping(9));
    while net.nodes[1].events.len() < 2 {
        net.some_steps();
    }
    assert_eq!(received(&net, 1), [ping(9)], "before any of the large ones");
    (10..40).for_each(|number| net.send(0, 1, ping(number)));
    net.settle();
    let found = received(&net, 1);
    let last = found.iter().position(|message| *message == ping(39)).unwrap();
    assert!(found[last..].iter().any(|message| matches!(message, PeerMessage::Put { .. })));
    assert_eq!(found.len(), 36);
    check_same(
        found.into_iter().filter(|m| matches!(m, PeerMessage::Put { .. })).collect(),
        &large,
    );
    check_quiet(&net, 1);
}

#[test]
fn short_messages_keep_their_order() {
    let mut net = Network::of(3, 2, |_| {});
    for number in 0..2_000 {
        net.send(0, 1, ping(number));
        if number % 37 == 0 {
            net.some_steps();
        }
    }
    net.settle();
    let expected: Vec<PeerMessage> = (0..2_000).map(ping).collect();
    assert!(received(&net, 1) == expected);
}

#[test]
fn broken_links_are_told_and_made_again() {
    for seed in 0..20 {
        let mut net = Network::of(seed, 2, with_secret);
        net.send(0, 1, ping(1));
        net.run_ms(20_000);
        net.cut();
        net.run_ms(1_000);
        for node in 0..2 {
            let other = format!("{}", 1 - node);
            let expected = [format!("up {other}"), format!("down {other}"), format!("up {other}")];
            assert_eq!(told(&net, node), expected, "seed {seed}");
            assert_eq!(net.nodes[node].links.counters().broken, 1);
        }
        check_quiet(&net, 1);
    }
}

#[test]
fn node_that_starts_again_takes_the_place_of_its_last_process() {
    for seed in 0..20 {
        let mut net = Network::of(seed, 2, with_secret);
        net.send(0, 1, ping(1));
        net.settle();
        // The other one does not hear of the death, and has links of the last process.
        net.freeze(0, true);
        net.kill(1);
        let mut again = options(1);
        with_secret(&mut again);
        net.restart(1, again);
        net.freeze(0, false);
        net.send(1, 0, ping(2));
        net.send(0, 1, ping(3));
        net.run_ms(3_000);
        assert_eq!(received(&net, 0), [ping(2)], "seed {seed}");
        assert_eq!(told(&net, 0)[..3], ["up 1", "down 1", "up 1"], "seed {seed}");
        check_quiet(&net, 1);
    }
}

#[test]
fn what_cannot_be_sent_is_told_at_once() {
    let mut net = Network::of(1, 2, |_| {});
    net.stop_listening(1);
    net.send(0, 1, ping(1));
    net.send(0, 1, ping(2));
    net.settle();
    assert_eq!(told(&net, 0), ["unsent 1"]);
    // Within the pause nothing is tried.
    net.send(0, 1, ping(3));
    assert_eq!(net.connects.len(), 1);
    net.settle();
    assert_eq!(told(&net, 0), ["unsent 1", "unsent 1"]);
    net.send(0, 7, ping(4));
    net.settle();
    assert_eq!(told(&net, 0)[2..], ["unsent 7"]);
    assert_eq!(net.nodes[0].links.counters().unsent_no_link, 4);
    check_quiet(&net, 0);
}

#[test]
fn attempts_that_nobody_answers_end_in_time() {
    let mut net = Network::of(1, 2, |_| {});
    net.holes.push(address(1));
    net.send(0, 1, ping(1));
    net.run_ms(1_999);
    assert_eq!(told(&net, 0), [""; 0]);
    net.run_ms(1);
    assert_eq!(told(&net, 0), ["unsent 1"]);
    assert_eq!(net.nodes[0].links.counters().attempts_failed, 1);
}

#[test]
fn seeds_are_tried_for_ever_and_ever_more_rarely() {
    let mut net = Network::of(1, 1, |_| {});
    net.connect(0, None, address(1));
    net.run_ms(60_000);
    let times: Vec<u64> = net.connects.iter().map(|(at, _)| at.0 / 1_000_000).collect();
    assert!((15..40).contains(&times.len()), "{times:?}");
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] <= 100 && pauses[8..].iter().all(|pause| (2_500..=5_000).contains(pause)));
    net.add(options(1));
    net.run_ms(5_001);
    assert_eq!(told(&net, 0), ["up 1"]);
    let count = net.connects.len();
    net.run_ms(100_000);
    assert_eq!(net.connects.len(), count, "it is up");
    check_quiet(&net, 1);
}

#[test]
fn many_nodes_that_seed_each_other_at_the_same_moment_all_meet() {
    let mut net = Network::of(5, 10, with_secret);
    for from in 0..10 {
        // Their own address is in the list, too.
        (0..10).for_each(|to| net.connect(from, None, address(to)));
    }
    net.run_ms(10_000);
    check_quiet(&net, 45);
    for node in 0..10 {
        assert_eq!(told(&net, node).len(), 9, "{:?}", told(&net, node));
    }
    let count = net.connects.len();
    net.run_ms(100_000);
    assert_eq!(net.connects.len(), count, "nobody tries to reach himself again");
}

#[test]
fn another_node_at_an_address_is_not_taken_for_the_one_expected() {
    let mut net = Network::of(1, 2, with_secret);
    let now = net.now;
    net.nodes[0].links.learn(id(5), address(1));
    net.nodes[0].links.send(now, id(5), ping(1));
    net.settle();
    assert_eq!(told(&net, 0), ["unsent 5", "up 1"]);
    assert_eq!(received(&net, 1), []);
}

#[test]
fn full_queues_refuse_large_values_before_short_messages() {
    let mut net = Network::of(1, 3, |options| {
        options.limits.link_send_bytes_max = 8 << 20;
        options.limits.send_bytes_max = 12 << 20;
    });
    for to in [1, 2] {
        net.send(0, to, ping(0));
    }
    net.settle();
    (1..3).for_each(|node| net.freeze(node, true));
    for to in [1, 2] {
        (0..20).for_each(|number| net.send(0, to, put(number, 1 << 20)));
        net.settle();
        net.send(0, to, ping(1));
    }
    net.settle();
    let (waiting, _) = net.nodes[0].links.waiting_and_held_bytes();
    assert!((9 << 20..12 << 20).contains(&waiting), "{waiting}");
    let counters = net.nodes[0].links.counters();
    assert_eq!(told(&net, 0)[2..], ["unsent 1", "unsent 2"]);
    let taken = 40 - counters.unsent_full;
    assert!((9..=12).contains(&taken), "{taken}");
    (1..3).for_each(|node| net.freeze(node, false));
    net.settle();
    let count = |node| received(&net, node).len() as u64;
    assert_eq!(count(1) + count(2), taken + 4, "all that was taken arrives");
    check_quiet(&net, 2);
}

#[test]
fn values_above_the_limit_are_not_sent() {
    let mut net = Network::of(1, 2, |options| options.limits.value_bytes_max = 1_000);
    net.send(0, 1, put(1, 1_001));
    net.send(0, 1, put(2, 1_000));
    net.settle();
    assert_eq!(received(&net, 1), [put(2, 1_000)]);
    assert_eq!(told(&net, 0), ["unsent 1", "up 1"]);
}

#[test]
fn silent_nodes_are_noticed() {
    let mut net = Network::of(1, 2, with_secret);
    net.send(0, 1, ping(1));
    net.settle();
    net.freeze(1, true);
    net.run_ms(14_000);
    assert_eq!(told(&net, 0), ["up 1"]);
    net.run_ms(6_000);
    assert_eq!(told(&net, 0), ["up 1", "down 1"]);
    assert_eq!(net.nodes[0].links.counters().silent, 1);
    // One that does not take anything is silent in the same way.
    net.freeze(1, false);
    net.run_ms(20_000);
    assert_eq!(told(&net, 0)[2..], ["up 1"]);
    net.freeze(1, true);
    (0..40).for_each(|number| net.send(0, 1, put(number, 1 << 20)));
    net.run_ms(20_000);
    assert_eq!(told(&net, 0)[3..], ["down 1"]);
    assert_eq!(net.nodes[0].links.waiting_and_held_bytes(), (0, 0));
}

#[test]
fn beats_keep_idle_links_up_and_measure_them() {
    let mut net = Network::of(1, 2, |_| {});
    net.send(0, 1, ping(1));
    net.run_ms(200_000);
    check_quiet(&net, 1);
    for node in &net.nodes {
        let info = node.links.links().next().unwrap();
        assert_eq!(info.rtt_ns, Some(0), "nothing takes time here");
    }
    assert_eq!(net.nodes[0].links.links().next().unwrap().address, address(1));
}

#[test]
fn links_that_nobody_uses_are_closed_and_made_again_in_silence() {
    let mut net = Network::of(1, 2, with_secret);
    net.send(0, 1, ping(1));
    net.run_ms(299_000);
    check_quiet(&net, 1);
    net.run_ms(2_000);
    check_quiet(&net, 0);
    net.send(1, 0, ping(2));
    net.settle();
    check_quiet(&net, 1);
    assert_eq!(received(&net, 0), [ping(2)]);
    // Neither was told that the other is gone, since it is not.
    assert_eq!(told(&net, 0), ["up 1"]);
    assert_eq!(told(&net, 1), ["up 0"]);
    assert_eq!(net.nodes[0].links.counters().closed, 1);
}

#[test]
fn node_whose_idle_link_was_closed_is_told_down_when_it_is_gone() {
    let mut net = Network::of(1, 2, |_| {});
    net.send(0, 1, ping(1));
    net.run_ms(301_000);
    net.kill(1);
    net.send(0, 1, ping(2));
    net.settle();
    assert_eq!(told(&net, 0), ["up 1", "down 1"]);
}

#[test]
fn messages_that_cross_the_end_of_an_idle_link_arrive() {
    for seed in 0..40 {
        let mut net = Network::of(seed, 2, with_secret);
        net.send(0, 1, ping(0));
        // To the moment when the link is closed: the next step of both happens at once.
        net.run_ms(299_999);
        net.now = net.now.plus_millis(1);
        let now = net.now;
        for node in 0..2 {
            net.nodes[node].links.handle_time(now);
            (0..net.rng.usize(..4)).for_each(|_| net.some_steps());
            net.send(1, 0, ping(node as u64 + 1));
            net.send(1, 0, put(node as u64 + 5, 700_000));
        }
        net.send(0, 1, ping(9));
        net.settle();
        let sent = [ping(1), ping(2), put(5, 700_000), put(6, 700_000)];
        check_same(received(&net, 0), &sent);
        check_same(received(&net, 1), &[ping(0), ping(9)]);
    }
}

#[test]
fn draining_sends_what_waits_and_says_good_bye() {
    for seed in 0..20 {
        let mut net = Network::of(seed, 3, with_secret);
        net.send(0, 1, ping(1));
        net.send(2, 0, ping(2));
        net.settle();
        net.send(0, 1, put(3, 3 << 20));
        net.send(0, 2, ping(4));
        let now = net.now;
        net.nodes[0].links.drain(now);
        assert!(!net.nodes[0].links.is_drained());
        net.send(0, 1, ping(5));
        net.settle();
        assert!(net.nodes[0].links.is_drained(), "seed {seed}");
        assert_eq!(received(&net, 1), [ping(1), put(3, 3 << 20)]);
        assert_eq!(told(&net, 1), ["up 0", "down 0"]);
        assert_eq!(told(&net, 2), ["up 0", "down 0"]);
        assert_eq!(told(&net, 0)[2..], ["unsent 1"], "and not down: it is this node that goes");
        check_quiet(&net, 0);
        // Nobody gets in any more.
        net.run_ms(1_000);
        net.send(1, 0, ping(6));
        net.connect(0, Some(1), address(1));
        net.connect(0, None, address(2));
        net.run_ms(5_000);
        assert_eq!(told(&net, 1)[2..], ["unsent 0"]);
        assert!(net.nodes[0].links.is_drained());
        assert_eq!(net.nodes[0].links.deadline(), None);
    }
}

#[test]
fn draining_does_not_wait_for_ever() {
    let mut net = Network::of(1, 3, |_| {});
    net.holes.push(address(2));
    net.send(0, 1, ping(1));
    net.settle();
    net.freeze(1, true);
    net.send(0, 1, put(2, 3 << 20));
    net.send(0, 2, ping(3));
    let now = net.now;
    net.nodes[0].links.drain(now);
    net.run_ms(4_999);
    assert!(!net.nodes[0].links.is_drained());
    net.run_ms(1);
    assert!(net.nodes[0].links.is_drained());
    assert_eq!(net.nodes[0].links.waiting_and_held_bytes(), (0, 0));
}

#[test]
fn forgotten_nodes_are_left_alone() {
    let mut net = Network::of(1, 2, with_secret);
    net.send(0, 1, ping(1));
    net.settle();
    let now = net.now;
    net.nodes[0].links.forget(now, &id(1));
    net.send(0, 1, ping(2));
    net.run_ms(10_000);
    check_quiet(&net, 0);
    assert_eq!(told(&net, 0), ["up 1", "unsent 1"]);
    assert_eq!(net.connects.len(), 1);
}

#[test]
fn receiver_that_takes_no_events_stops_receiving() {
    let mut net = Network::of(1, 2, |options| options.limits.events_max = 100);
    net.send(0, 1, ping(0));
    net.settle();
    net.nodes[1].takes_events = false;
    let large = |number| put(number, 1 << 20);
    (0..30).for_each(|number| net.send(0, 1, large(number)));
    (0..3_000).for_each(|number| net.send(0, 1, ping(number)));
    // Longer than a silence may be: that nothing is received is no fault of the other side.
    net.run_ms(10_000);
    let (waiting, _) = net.nodes[0].links.waiting_and_held_bytes();
    assert!(waiting > 20 << 20, "{waiting} bytes wait where they came from");
    net.nodes[1].takes_events = true;
    net.run_ms(1_000);
    assert_eq!(received(&net, 1).len(), 3_031);
    assert_eq!(told(&net, 1), ["up 0"]);
    check_quiet(&net, 1);
}

#[test]
fn unfinished_values_of_many_links_are_bounded_and_all_arrive() {
    let mut net = Network::of(1, 9, |options| {
        options.limits.receive_bytes_max = 4 << 20;
        options.limits.value_bytes_max = 2 << 20;
    });
    for from in 1..9 {
        (0..3).for_each(|number| net.send(from, 0, put(from as u64 * 10 + number, 2 << 20)));
    }
    let mut held_max = 0;
    while net.step() {
        held_max = held_max.max(net.nodes[0].links.waiting_and_held_bytes().1);
    }
    net.run_ms(1_000);
    assert_eq!(received(&net, 0).len(), 24);
    // Each link may have begun one value when the budget was full, and one link has two.
    assert!(held_max <= (4 + 2 * 9) << 20, "{held_max}");
    check_quiet(&net, 8);
}

#[test]
fn values_that_nobody_takes_are_bounded() {
    let mut net = Network::of(1, 2, |options| options.limits.receive_bytes_max = 4 << 20);
    net.send(0, 1, ping(0));
    net.settle();
    net.nodes[1].takes_events = false;
    (0..30).for_each(|number| net.send(0, 1, put(number, 1 << 20)));
    net.settle();
    let count = net.nodes[1].links.outputs.events.len();
    assert!((4..10).contains(&count), "{count} values of 1 MiB");
    net.nodes[1].takes_events = true;
    net.settle();
    assert_eq!(received(&net, 1).len(), 31);
    check_quiet(&net, 1);
}

#[test]
fn addresses_are_bounded() {
    let mut net = Network::of(1, 1, |options| options.limits.peers_max = 10);
    let links = &mut net.nodes[0].links;
    (1..100).for_each(|number| links.learn(id(number), address(number)));
    assert_eq!(links.peers.len(), 10);
    let now = net.now;
    (1..100).for_each(|number| net.connect(0, None, address(number)));
    assert_eq!(net.nodes[0].links.seeds.len(), 10);
    net.nodes[0].links.connect(now, Some(id(0)), address(5));
    assert!(!net.nodes[0].links.peers.contains_key(&id(0)), "not itself");
}

/// Everything at once: messages of all sizes, cuts, deaths, restarts. No message comes twice, and
/// when the faults stop, everything goes through again.
#[test]
fn links_come_through_any_mix_of_faults() {
    for seed in 0..25 {
        let mut net = Network::of(seed, 4, with_secret);
        let mut number = 0;
        for _ in 0..60 {
            let (from, to) = (net.rng.usize(..4), net.rng.usize(..4));
            match net.rng.u8(..24) {
                0 => net.cut(),
                1 => {
                    net.kill(to);
                    net.nodes[to].events.clear();
                    let mut again = options(to);
                    with_secret(&mut again);
                    net.restart(to, again);
                }
                2 => net.freeze(to, true),
                3 => (0..4).for_each(|node| net.freeze(node, false)),
                4..8 => {
                    let millis = net.rng.u64(..8_000);
                    net.run_ms(millis);
                }
                _ => (0..net.rng.usize(..60)).for_each(|_| net.some_steps()),
            }
            for _ in 0..if from == to { 0 } else { 4 } {
                number += 1;
                let len = [10, 1_000, 20_000, 400_000][net.rng.usize(..4)];
                net.send(from, to, put(number, len));
            }
        }
        (0..4).for_each(|node| net.freeze(node, false));
        net.run_ms(60_000);
        for node in 0..4 {
            let found = received(&net, node);
            let mut requests: Vec<RequestId> = found.iter().filter_map(request).collect();
            let count = requests.len();
            requests.sort_unstable();
            requests.dedup();
            assert_eq!(requests.len(), count, "seed {seed}: something came twice");
            net.nodes[node].events.clear();
        }
        for from in 0..4 {
            (0..4).filter(|to| *to != from).for_each(|to| net.send(from, to, ping(from as u64)));
        }
        net.run_ms(1_000);
        for node in 0..4 {
            assert_eq!(received(&net, node).len(), 3, "seed {seed}, node {node}");
        }
        check_quiet(&net, 6);
    }
}

fn request(message: &PeerMessage) -> Option<RequestId> {
    match message {
        PeerMessage::Put { request, .. } => Some(*request),
        _ => None,
    }
}

#[test]
fn same_inputs_have_same_outputs() {
    let run = || {
        let mut net = Network::of(9, 3, with_secret);
        for number in 0..50 {
            let (from, to) = (net.rng.usize(..3), net.rng.usize(..3));
            net.send(from, to, put(number, 50_000));
            net.some_steps();
        }
        net.cut();
        net.run_ms(30_000);
        let sent: Vec<Bytes> = (0..3).flat_map(|node| net.sent_by(node)).map(Bytes::from).collect();
        (sent, net.connects.clone(), Monotonic(net.now.0))
    };
    assert!(run() == run());
}
