//! Commands on keys that the node has not in memory: it was restarted, and reads the disk first.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use kadring_tests::node_process::Driver;
use kadring_tests::resp_client::{Reply, RespClient, encode_command};

use crate::TestNode;

const KEYS: usize = 3_000;
/// How long to wait for what must happen soon.
const SOON: Duration = Duration::from_secs(10);

fn key(number: usize) -> Vec<u8> {
    format!("cold:{number}").into_bytes()
}

fn value(number: usize) -> Vec<u8> {
    format!("value {number} ").into_bytes().repeat(20)
}

/// Starts a node that holds `KEYS` keys, none of them in memory.
fn cold_node(driver: Driver) -> TestNode {
    let node = TestNode::start_with(driver, &[("KADRING_CACHE_BYTES", "0")]);
    let mut client = node.client();
    let pairs: Vec<Vec<u8>> = (0..KEYS).flat_map(|number| [key(number), value(number)]).collect();
    assert_eq!(call(&mut client, b"MSET", &pairs), Reply::Simple("OK".into()));
    node.terminate_and_restart()
}

fn cold_nodes(test: impl Fn(TestNode)) {
    for driver in Driver::ALL {
        test(cold_node(driver));
    }
}

fn call(client: &mut RespClient, name: &[u8], words: &[Vec<u8>]) -> Reply {
    let words: Vec<&[u8]> = std::iter::once(name).chain(words.iter().map(Vec::as_slice)).collect();
    client.call(&words).unwrap()
}

fn integer(number: usize) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap())
}

fn keys(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    range.map(key).collect()
}

#[test]
fn commands_over_many_cold_keys_answer_for_each() {
    cold_nodes(|node| {
        let mut client = node.client();
        assert_eq!(call(&mut client, b"EXISTS", &keys(0..2 * KEYS)), integer(KEYS));
        let node = node.terminate_and_restart();
        let mut client = node.client();
        let Reply::Array(values) = call(&mut client, b"MGET", &keys(0..KEYS + 5)) else {
            panic!("MGET")
        };
        assert_eq!(values.len(), KEYS + 5);
        for (number, found) in values.iter().enumerate() {
            let expected = (number < KEYS).then(|| value(number));
            assert_eq!(found.bytes().map(<[u8]>::to_vec), expected, "{number}");
        }
        let node = node.terminate_and_restart();
        let mut client = node.client();
        // Each key twice: it counts once.
        let twice = [keys(100..KEYS + 100), keys(100..KEYS + 100)].concat();
        assert_eq!(call(&mut client, b"DEL", &twice), integer(KEYS - 100));
        assert_eq!(client.call_line("DBSIZE").unwrap(), integer(100));
        let node = node.crash_and_restart();
        let mut client = node.client();
        assert_eq!(call(&mut client, b"EXISTS", &keys(0..KEYS)), integer(100));
    });
}

#[test]
fn commands_behind_one_that_waits_for_the_disk_see_its_effect() {
    cold_nodes(|node| {
        let mut client = node.client();
        let mut bytes = Vec::new();
        for number in 0..300 {
            let key = key(number);
            for command in [
                &[&b"STRLEN"[..], &key][..],
                &[b"EXPIRE", &key, b"1000"],
                &[b"TTL", &key],
                &[b"SET", &key, b"never", b"NX"],
                &[b"SET", &key, b"new", b"XX", b"KEEPTTL"],
                &[b"PERSIST", &key],
                &[b"TTL", &key],
                &[b"GET", &key],
                &[b"DEL", &key],
                &[b"EXISTS", &key],
                &[b"SET", &key, b"again", b"NX", b"GET"],
            ] {
                encode_command(&mut bytes, command);
            }
        }
        client.send_raw(&bytes).unwrap();
        for number in 0..300 {
            let replies: Vec<Reply> = (0..11).map(|_| client.read_reply().unwrap()).collect();
            let expected = [
                integer(value(number).len()),
                integer(1),
                integer(1000),
                Reply::Nil,
                Reply::Simple("OK".into()),
                integer(1),
                Reply::Integer(-1),
                Reply::Bulk(b"new".to_vec()),
                integer(1),
                integer(0),
                Reply::Nil,
            ];
            assert_eq!(replies, expected, "{number}");
        }
    });
}

#[test]
fn of_many_clients_one_only_makes_or_removes_a_cold_key() {
    cold_nodes(|node| {
        let won: Vec<(usize, usize)> = thread::scope(|scope| {
            let racing = |_| {
                let mut client = node.client();
                scope.spawn(move || {
                    let (mut removed, mut made) = (0, 0);
                    for number in 0..300 {
                        let key = key(number);
                        let reply = client.call(&[b"DEL", &key]).unwrap();
                        removed += usize::from(reply == integer(1));
                        let fresh = [b"fresh:", &key[..]].concat();
                        let reply = client.call(&[b"SET", &fresh, b"v", b"NX"]).unwrap();
                        made += usize::from(reply == Reply::Simple("OK".into()));
                    }
                    (removed, made)
                })
            };
            let clients: Vec<_> = (0..8).map(racing).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let removed: usize = won.iter().map(|(removed, _)| removed).sum();
        let made: usize = won.iter().map(|(_, made)| made).sum();
        assert_eq!((removed, made), (300, 300));
    });
}

#[test]
fn cold_keys_are_listed_once_each() {
    cold_nodes(|node| {
        let mut client = node.client();
        let expected: BTreeSet<Vec<u8>> = keys(0..KEYS).into_iter().collect();
        let Reply::Array(listed) = client.call_line("KEYS *").unwrap() else { panic!("KEYS") };
        assert_eq!(listed.len(), KEYS);
        let listed: BTreeSet<Vec<u8>> =
            listed.iter().map(|name| name.bytes().unwrap().to_vec()).collect();
        assert_eq!(listed, expected);
        let node = node.terminate_and_restart();
        let mut client = node.client();
        let (mut cursor, mut listed) = (b"0".to_vec(), Vec::new());
        loop {
            let reply = client.call(&[b"SCAN", &cursor, b"COUNT", b"100"]).unwrap();
            let Reply::Array(parts) = reply else { panic!("SCAN") };
            let [Reply::Bulk(next), Reply::Array(names)] = parts.as_slice() else { panic!("SCAN") };
            assert!(names.len() >= 100 || next == b"0", "{} names", names.len());
            listed.extend(names.iter().map(|name| name.bytes().unwrap().to_vec()));
            cursor.clone_from(next);
            if cursor == b"0" {
                break;
            }
        }
        assert_eq!(listed.len(), KEYS);
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
        let Reply::Bulk(name) = client.call_line("RANDOMKEY").unwrap() else { panic!("RANDOMKEY") };
        assert!(expected.contains(&name));
    });
}

#[test]
fn clients_that_leave_while_the_disk_is_read_leave_nothing_behind() {
    cold_nodes(|node| {
        for round in 0..40 {
            let mut client = node.client();
            let range = round * 20..round * 20 + 20;
            let mut bytes = Vec::new();
            for (name, keys) in [
                (&b"EXISTS"[..], keys(0..KEYS)),
                (b"INCR", keys(range.start..range.start + 1)),
                (b"DEL", keys(range.clone())),
                (b"MGET", keys(0..KEYS)),
            ] {
                let words: Vec<&[u8]> =
                    std::iter::once(name).chain(keys.iter().map(Vec::as_slice)).collect();
                bytes.clear();
                encode_command(&mut bytes, &words[..words.len().min(1 + 20 * (1 + round % 3))]);
                client.send_raw(&bytes).unwrap();
            }
            client.send(&[b"KEYS", b"*"]).unwrap();
            // Without a look at the replies.
            drop(client);
        }
        let mut client = node.client();
        let deadline = Instant::now() + SOON;
        loop {
            let Reply::Bulk(info) = client.call_line("INFO clients").unwrap() else {
                panic!("INFO")
            };
            let info = String::from_utf8(info).unwrap();
            if info.contains("connected_clients:1\r") && info.contains("blocked_clients:0\r") {
                break;
            }
            assert!(Instant::now() < deadline, "{info}");
        }
        // No lock is left on any key.
        let pairs: Vec<Vec<u8>> =
            keys(0..KEYS).into_iter().flat_map(|key| [key, b"7".to_vec()]).collect();
        assert_eq!(call(&mut client, b"MSET", &pairs), Reply::Simple("OK".into()));
        for number in 0..800 {
            // A DEL that has begun goes on without its client.
            let reply = client.call(&[b"INCR", &key(number)]).unwrap();
            assert!([integer(8), integer(1)].contains(&reply), "{number}: {}", reply.brief());
        }
    });
}

#[test]
fn other_clients_are_served_while_a_command_has_very_many_keys() {
    let node = cold_node(Driver::Uring);
    let mut long = node.client();
    let words: Vec<Vec<u8>> = (0..300_000).map(|number| key(number % (2 * KEYS))).collect();
    let mut bytes = Vec::new();
    let words: Vec<&[u8]> =
        std::iter::once(&b"EXISTS"[..]).chain(words.iter().map(Vec::as_slice)).collect();
    encode_command(&mut bytes, &words);
    thread::scope(|scope| {
        let long = scope.spawn(move || {
            long.send_raw(&bytes).unwrap();
            (long.read_reply().unwrap(), Instant::now())
        });
        let mut client = node.client();
        let (mut slowest, mut served) = (Duration::ZERO, 0);
        while !long.is_finished() {
            let start = Instant::now();
            assert_eq!(client.call(&[b"EXISTS", &key(served % KEYS)]).unwrap(), integer(1));
            slowest = slowest.max(start.elapsed());
            served += 1;
        }
        let (reply, _) = long.join().unwrap();
        assert_eq!(reply, integer(150_000));
        assert!(served > 20, "{served} commands beside it, the slowest in {slowest:?}");
    });
}

#[test]
fn very_many_cold_gets_sent_at_once_are_answered_in_order() {
    cold_nodes(|node| {
        let mut client = node.client();
        let mut bytes = Vec::new();
        for number in 0..KEYS {
            encode_command(&mut bytes, &[b"GET", &key(number)]);
            if number % 100 == 0 {
                encode_command(&mut bytes, &[b"SET", &key(number), b"new"]);
            }
        }
        client.send_raw(&bytes).unwrap();
        for number in 0..KEYS {
            assert_eq!(client.read_reply().unwrap(), Reply::Bulk(value(number)), "{number}");
            if number % 100 == 0 {
                assert_eq!(client.read_reply().unwrap(), Reply::Simple("OK".into()));
            }
        }
    });
}

/// A plain SET reads nothing, so that older records of the key are still known to the index; what
/// removes the new value must not let them come back.
#[test]
fn cold_value_that_was_overwritten_does_not_come_back() {
    cold_nodes(|node| {
        let mut client = node.client();
        let past = [&b"PXAT"[..], b"1"];
        for number in 0..60 {
            let key = key(number);
            let words =
                [&[&b"SET"[..], &key, b"new"], &past[..if number % 3 == 2 { 2 } else { 0 }]];
            assert_eq!(client.call(&words.concat()).unwrap(), Reply::Simple("OK".into()));
            if number % 3 == 0 {
                assert_eq!(client.call(&[b"DEL", &key]).unwrap(), integer(1));
            }
        }
        let check = |node: &TestNode| {
            let mut client = node.client();
            for number in 0..60 {
                let key = key(number);
                let is_there = number % 3 == 1;
                let expected = if is_there { Reply::Bulk(b"new".to_vec()) } else { Reply::Nil };
                assert_eq!(client.call(&[b"GET", &key]).unwrap(), expected, "{number}");
                let exists = client.call(&[b"EXISTS", &key]).unwrap();
                assert_eq!(exists, integer(usize::from(is_there)), "{number}");
            }
        };
        check(&node);
        check(&node.crash_and_restart());
    });
}
