//! Long values that come in pieces, received into their places, in pipelines with short commands.

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;

use kadring_tests::node_process::Driver;
use kadring_tests::resp_client::{Reply, RespClient, encode_command};

use crate::TestNode;

/// Around what a receive buffer holds, around what is written beside the log, and far above.
const LENS: [usize; 14] = [
    0,
    3,
    2_000,
    16_383,
    16_384,
    16_385,
    20_000,
    65_536,
    262_143,
    262_144,
    262_145,
    1 << 20,
    3_000_000,
    8 << 20,
];

fn value(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31 + at / 253) ^ seed) as u8).collect()
}

fn key(number: usize) -> Vec<u8> {
    format!("key:{number}").into_bytes()
}

fn integer(number: usize) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap())
}

/// A pipeline of commands, and what is to be answered to each.
fn pipeline(seed: usize) -> (Vec<u8>, Vec<Reply>) {
    let ok = || Reply::Simple("OK".into());
    let (mut bytes, mut replies) = (Vec::new(), Vec::new());
    let mut model: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    for step in 0..70_usize {
        let drawn = (step * 7 + seed * 13) ^ (step / 3);
        let (number, len) = (drawn % 5, LENS[(step * 5 + seed) % LENS.len()]);
        let name = key(number);
        let (command, reply): (Vec<Vec<u8>>, Reply) = match step % 5 {
            0 | 2 => {
                let value = value(len, step);
                model.insert(number, value.clone());
                (vec![b"SET".to_vec(), name, value], ok())
            }
            1 => {
                let (other, value) = ((number + 1) % 5, value(len, step));
                let words = [b"MSET".to_vec(), name, value.clone(), key(other), b"short".to_vec()];
                model.insert(number, value);
                model.insert(other, b"short".to_vec());
                (words.to_vec(), ok())
            }
            3 => {
                let more = value(LENS[step % 8], step);
                let all = model.entry(number).or_default();
                // Values stay below the limit of 16 MiB.
                all.extend_from_slice(&more);
                (vec![b"APPEND".to_vec(), name, more], integer(all.len()))
            }
            _ => {
                let found = model.get(&number).cloned().map_or(Reply::Nil, Reply::Bulk);
                (vec![b"GET".to_vec(), name], found)
            }
        };
        let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        encode_command(&mut bytes, &words);
        replies.push(reply);
        encode_command(&mut bytes, &[b"STRLEN", &key(number)]);
        replies.push(integer(model.get(&number).map_or(0, Vec::len)));
    }
    (bytes, replies)
}

fn check_pipeline(client: &mut RespClient, seed: usize) {
    let (bytes, replies) = pipeline(seed);
    let mut writer = client.writer().unwrap();
    let writing = thread::spawn(move || writer.write_all(&bytes).unwrap());
    for (number, expected) in replies.iter().enumerate() {
        let reply = client.read_reply().unwrap();
        let (found, wanted) = (reply.brief(), expected.brief());
        assert!(reply == *expected, "seed {seed}, reply {number}: {found}, not {wanted}");
    }
    writing.join().unwrap();
}

#[test]
fn pipelines_of_long_and_short_values_are_what_the_model_says() {
    for driver in Driver::ALL {
        for threads in ["1", "2"] {
            let node = TestNode::start_with(driver, &[("KADRING_THREADS", threads)]);
            for seed in 0..2 {
                let mut client = node.client();
                assert_eq!(client.call(&[b"FLUSHALL"]).unwrap(), Reply::Simple("OK".into()));
                check_pipeline(&mut client, seed);
            }
        }
    }
}

/// Of a value that comes into its place we copy what came before, and what is written; not more.
#[test]
fn long_values_are_copied_once_but_for_their_beginning() {
    for driver in Driver::ALL {
        // What goes to another thread is copied on its way there.
        let node = TestNode::start_with(driver, &[("KADRING_THREADS", "1")]);
        let mut client = node.client();
        let (count, len) = (4, 4 << 20);
        for number in 0..count {
            let set = client.call(&[b"SET", &key(number), &value(len, number)]);
            assert_eq!(set.unwrap(), Reply::Simple("OK".into()));
        }
        let info = client.call(&[b"INFO", b"copies"]).unwrap();
        let info = String::from_utf8(info.bytes().unwrap().to_vec()).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("set_from_32k:")).unwrap();
        let copied = line.rsplit_once("copied_by_us=").unwrap().1.parse::<usize>().unwrap();
        assert!(line.starts_with(&format!("values={count},bytes={}", count * len)), "{line}");
        assert!((count * len..2 * count * len).contains(&copied), "{driver:?}: {line}");
    }
}

/// An announced value costs what has come of it, and nothing when its client has gone.
#[test]
fn announced_values_cost_no_memory() {
    const CLIENTS: usize = 40;
    const BOUND: u64 = 100 << 20;
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        let mut watcher = node.client();
        assert_eq!(watcher.call(&[b"PING"]).unwrap(), Reply::Simple("PONG".into()));
        let before = node.node.resident_bytes().unwrap();
        for round in 0..5 {
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| node.client()).collect();
            for client in &mut clients {
                // The first reply says that the rest of the piece has been seen.
                let announced = b"PING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777216\r\nvvvv";
                client.send_raw(announced).unwrap();
                assert_eq!(client.read_reply().unwrap(), Reply::Simple("PONG".into()));
            }
            let announced = node.node.resident_bytes().unwrap();
            assert!(announced < before + BOUND, "{driver:?}, {round}: {before}, {announced}");
            for client in &mut clients {
                client.send_raw(&vec![b'v'; 1 << 20]).unwrap();
            }
            drop(clients);
            let is_alone = |reply: Reply| {
                let text = String::from_utf8(reply.bytes().unwrap().to_vec()).unwrap();
                text.contains("connected_clients:1\r\n")
            };
            while !is_alone(watcher.call(&[b"INFO", b"clients"]).unwrap()) {}
        }
        let after = node.node.resident_bytes().unwrap();
        assert!(after < before + BOUND, "{driver:?}: {before} bytes before, {after} after");
        assert_eq!(watcher.call(&[b"EXISTS", b"k"]).unwrap(), Reply::Integer(0));
    }
}
