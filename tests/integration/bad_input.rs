//! Hostile and broken input: Redis's own error texts, bounded memory, connections that survive
//! where Redis's would, a node that survives always.

use kadring_tests::node_process::Driver;
use kadring_tests::resp_client::{Reply, RespClient, encode_command};

use crate::TestNode;

/// Longest key.
const KEY_BYTES_MAX: usize = 65_535;

/// What a node may grow by, whatever is sent to it.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn pong(client: &mut RespClient) {
    assert_eq!(client.call(&[b"PING"]).unwrap(), Reply::Simple("PONG".into()));
}

/// Runs a test on both drivers and checks afterwards that the node lives and has not grown.
fn on_both(test: impl Fn(&TestNode)) {
    for driver in Driver::ALL {
        let node = TestNode::start(driver);
        check_bounded(&node, || test(&node));
    }
}

fn check_bounded(node: &TestNode, test: impl FnOnce()) {
    pong(&mut node.client());
    let before = node.node.resident_bytes().unwrap();
    test();
    pong(&mut node.client());
    let peak = node.node.resident_bytes_peak().unwrap();
    assert!(peak < before + GROWTH_BYTES_MAX, "{before} B resident before, at most {peak} B");
    assert!(!node.node.stderr().contains("panicked"), "{}", node.node.stderr());
}

#[test]
fn protocol_errors_have_the_text_of_redis_and_close() {
    let inline = vec![b'a'; 70_000];
    let count = [b"*".as_slice(), &vec![b'1'; 70_000]].concat();
    let length = [b"*1\r\n$".as_slice(), &vec![b'1'; 70_000]].concat();
    let cases: [(&[u8], &str); 14] = [
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$1073741824\r\n", "invalid bulk length"),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870913\r\n", "invalid bulk length"),
        (b"SET k \"open\r\n", "unbalanced quotes in request"),
        (b"SET k 'a'b\r\n", "unbalanced quotes in request"),
        (&inline, "too big inline request"),
        (&count, "too big mbulk count string"),
        (&length, "too big bulk count string"),
    ];
    on_both(|node| {
        for (bytes, text) in cases {
            let mut client = node.client();
            // The node may close before all of it is sent.
            drop(client.send_raw(bytes));
            let reply = client.read_to_close().unwrap();
            let start = bytes[..bytes.len().min(40)].escape_ascii();
            let expected = format!("-ERR Protocol error: {text}\r\n");
            assert_eq!(String::from_utf8_lossy(&reply), expected, "{start}");
        }
    });
}

#[test]
fn commands_before_a_protocol_error_are_answered_first() {
    on_both(|node| {
        let mut client = node.client();
        client.send_raw(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*1\r\n!\r\n").unwrap();
        let reply = client.read_to_close().unwrap();
        let expected = "+OK\r\n-ERR Protocol error: expected '$', got '!'\r\n";
        assert_eq!(String::from_utf8_lossy(&reply), expected);
        assert_eq!(node.client().call(&[b"GET", b"k"]).unwrap(), Reply::Bulk(b"v".to_vec()));
    });
}

#[test]
fn mistakes_in_commands_leave_the_connection_open() {
    let long = "n".repeat(300);
    let shown = format!("ERR unknown command '{}', with args beginning with: ", &long[..128]);
    on_both(|node| {
        let mut client = node.client();
        for (words, expected) in [
            (&["nosuch"][..], "ERR unknown command 'nosuch', with args beginning with: "),
            (
                &["nosuch", "a", "b"],
                "ERR unknown command 'nosuch', with args beginning with: 'a' 'b' ",
            ),
            (&[&long], &shown),
            (&["bad\r\nname"], "ERR unknown command 'bad  name', with args beginning with: "),
            (&["get"], "ERR wrong number of arguments for 'get' command"),
            (&["GET", "a", "b"], "ERR wrong number of arguments for 'get' command"),
            (&["set", "k"], "ERR wrong number of arguments for 'set' command"),
            (&["mset", "k"], "ERR wrong number of arguments for 'mset' command"),
            (&["mset", "k", "v", "l"], "ERR wrong number of arguments for 'mset' command"),
            (&["incr"], "ERR wrong number of arguments for 'incr' command"),
            (&["client", "nosuch"], "ERR unknown subcommand 'nosuch'. Try CLIENT HELP."),
            (&["config"], "ERR wrong number of arguments for 'config' command"),
            (&["config", "get"], "ERR wrong number of arguments for 'config|get' command"),
            (&["select", "x"], "ERR value is not an integer or out of range"),
        ] {
            let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let reply = client.call(&bytes).unwrap();
            assert_eq!(reply, Reply::Error(expected.to_owned()), "{words:?}");
        }
        pong(&mut client);
    });
}

#[test]
fn empty_requests_are_passed_over() {
    on_both(|node| {
        let mut client = node.client();
        client.send_raw(b"\r\n\r\n*0\r\n*-1\r\n   \r\n\nPING\r\n").unwrap();
        assert_eq!(client.read_reply().unwrap(), Reply::Simple("PONG".into()));
        pong(&mut client);
    });
}

#[test]
fn truncated_commands_change_nothing() {
    on_both(|node| {
        let mut bytes = Vec::new();
        encode_command(&mut bytes, &[b"SET", b"half", b"value"]);
        for cut in 0..bytes.len() {
            let mut client = node.client();
            client.send_raw(&bytes[..cut]).unwrap();
            client.finish_sending().unwrap();
            assert_eq!(client.read_to_close().unwrap(), b"", "cut at {cut}");
        }
        assert_eq!(node.client().call(&[b"GET", b"half"]).unwrap(), Reply::Nil);
    });
}

#[test]
fn hundred_thousand_arguments_are_served() {
    on_both(|node| {
        let mut client = node.client();
        let names: Vec<Vec<u8>> =
            (0..100_000).map(|number| format!("key:{number}").into_bytes()).collect();
        client.call(&[b"MSET", &names[0], b"v", &names[99_999], b"w"]).unwrap();
        let words = |verb: &'static [u8]| {
            let names = names.iter().map(Vec::as_slice);
            std::iter::once(verb).chain(names).collect::<Vec<&[u8]>>()
        };
        assert_eq!(client.call(&words(b"EXISTS")).unwrap(), Reply::Integer(2));
        let Reply::Array(values) = client.call(&words(b"MGET")).unwrap() else { panic!() };
        assert_eq!(values.len(), 100_000);
        assert_eq!(values[99_999], Reply::Bulk(b"w".to_vec()));
        let reply = client.call(&words(b"NOSUCH")).unwrap();
        assert!(reply.is_error("ERR unknown command 'NOSUCH'"), "{}", reply.brief());
        assert!(reply.brief().len() < 400);
        assert_eq!(client.call(&words(b"DEL")).unwrap(), Reply::Integer(2));
    });
}

#[test]
fn promised_arguments_that_never_come_take_no_memory() {
    on_both(|node| {
        let clients: Vec<_> = (0..200)
            .map(|_| {
                let mut client = node.client();
                client.send_raw(b"*1048576\r\n$3\r\nSET\r\n$536870912\r\nabc").unwrap();
                client
            })
            .collect();
        pong(&mut node.client());
        drop(clients);
    });
}

#[test]
fn keys_at_the_limit_are_kept_and_past_it_refused() {
    on_both(|node| {
        let mut client = node.client();
        let key = vec![b'k'; KEY_BYTES_MAX];
        let longer = vec![b'k'; KEY_BYTES_MAX + 1];
        assert_eq!(client.call(&[b"SET", &key, b"v"]).unwrap(), ok());
        assert_eq!(client.call(&[b"GET", &key]).unwrap(), Reply::Bulk(b"v".to_vec()));
        for words in [
            &[&b"SET"[..], &longer, b"v"][..],
            &[b"INCR", &longer],
            &[b"MSET", b"fine", b"v", &longer, b"v"],
        ] {
            let reply = client.call(words).unwrap();
            assert!(reply.is_error("ERR "), "{}", reply.brief());
            assert!(reply.brief().contains("65535"), "limit not named: {}", reply.brief());
        }
        assert_eq!(client.call(&[b"DBSIZE"]).unwrap(), Reply::Integer(1), "half an MSET");
        pong(&mut client);
    });
}

#[test]
fn values_at_the_limit_are_kept_and_past_it_drained_and_refused() {
    for driver in Driver::ALL {
        let limit = 1 << 20;
        let variables = [("KADRING_VALUE_BYTES_MAX", "1048576")];
        let node = TestNode::start_with(driver, &variables);
        check_bounded(&node, || {
            let mut client = node.client();
            let value = vec![b'v'; limit];
            assert_eq!(client.call(&[b"SET", b"k", &value]).unwrap(), ok());
            for len in [limit + 1, 3 * limit, 200 * limit] {
                let reply = client.call(&[b"SET", b"k", &vec![b'w'; len]]).unwrap();
                assert!(reply.is_error("ERR "), "{len} B: {}", reply.brief());
                pong(&mut client);
            }
            let reply = client.call(&[b"APPEND", b"k", b"x"]).unwrap();
            assert!(reply.is_error("ERR "), "APPEND past the limit: {}", reply.brief());
            assert!(client.call(&[b"GET", b"k"]).unwrap() == Reply::Bulk(value));
        });
    }
}

/// Mutates valid commands: whatever comes, the node answers others, and stays small.
#[test]
fn garbage_never_takes_the_node_down() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    on_both(|node| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut valid = Vec::new();
        for words in [
            &[&b"SET"[..], b"k", b"v", b"PX", b"100"][..],
            &[b"MGET", b"a", b"b"],
            &[b"SCAN", b"0", b"MATCH", b"*[", b"COUNT", b"9"],
            &[b"HELLO", b"3", b"SETNAME", b"x"],
            &[b"INCRBY", b"n", b"99"],
        ] {
            encode_command(&mut valid, words);
        }
        for _ in 0..300 {
            let mut bytes = valid.clone();
            for _ in 0..rng.usize(1..8) {
                let at = rng.usize(0..bytes.len());
                match rng.u32(0..4) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, *rng.choice(b"*$\r\n-0919\"'").unwrap()),
                    _ => drop(bytes.drain(at..(at + rng.usize(0..6)).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    bytes.push(b'*');
                }
            }
            let mut client = node.client();
            drop(client.send_raw(&bytes));
            drop(client.finish_sending());
            client.read_to_close().unwrap();
        }
        for _ in 0..50 {
            let mut bytes = vec![0; rng.usize(1..100_000)];
            rng.fill(&mut bytes);
            let mut client = node.client();
            drop(client.send_raw(&bytes));
            drop(client.finish_sending());
            client.read_to_close().unwrap();
        }
    });
}
