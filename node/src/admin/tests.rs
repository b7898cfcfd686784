//! The admin door against a client whose bytes come in pieces, and a clock that is set.

use bytes::Bytes;

use super::*;

const ONE: ConnectionId = ConnectionId(1);

/// The door and what a driver would do for it.
#[derive(Default)]
struct Rig {
    door: AdminDoor,
    now: Monotonic,
    /// Answers to reports that are asked for; none leaves questions open.
    report: Option<NodeReport>,
    received: String,
    receiving: bool,
    sending: bool,
    closed: bool,
    /// Whether sends end by themselves.
    stuck: bool,
}

impl Rig {
    fn open() -> Self {
        let mut rig = Self { report: Some(NodeReport::default()), ..Self::default() };
        rig.door.handle_accepted(rig.now, ONE);
        rig.run();
        rig
    }

    fn run(&mut self) {
        loop {
            while let Some(id) = self.door.poll_question() {
                if let Some(report) = &self.report {
                    self.door.answer(self.now, id, report);
                }
            }
            let Some(request) = self.door.poll_request() else { return };
            match request {
                Request::Receive(ONE) => {
                    assert!(!std::mem::replace(&mut self.receiving, true), "two at a time");
                }
                Request::Send(ONE, parts) => {
                    assert!(!self.sending, "two at a time");
                    for part in &parts {
                        self.received.push_str(std::str::from_utf8(part).unwrap());
                    }
                    self.sending = true;
                    if !self.stuck {
                        self.sending = false;
                        self.door.handle_sent(self.now, ONE, &Ok(()));
                    }
                }
                Request::Close(ONE) => {
                    assert!(!std::mem::replace(&mut self.closed, true), "closed twice");
                    self.door.handle_closed(ONE);
                }
                other => unreachable!("{other:?}"),
            }
        }
    }

    /// The client sends bytes, or finishes with none.
    fn send(&mut self, bytes: &[u8]) {
        assert!(std::mem::take(&mut self.receiving), "nothing is received: {}", self.received);
        let buffer = ReceiveBuffer::new(bytes.into(), bytes.len(), 7);
        let given_back = self.door.handle_received(self.now, ONE, Ok(buffer));
        assert_eq!(given_back.unwrap().into_parts().1, 7);
        self.run();
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_millis(ms);
        self.door.handle_time(self.now);
        self.run();
    }

    /// Takes what has come; the status of each answer.
    fn statuses(&mut self) -> Vec<String> {
        let text = std::mem::take(&mut self.received);
        let lines = text.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 "));
        lines.map(|line| line[..3].to_owned()).collect()
    }
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn requests_are_answered_however_their_bytes_are_cut() {
    for len in 1..HEALTH.len() {
        let mut rig = Rig::open();
        for piece in HEALTH.as_bytes().chunks(len) {
            rig.send(piece);
        }
        assert_eq!(rig.statuses(), ["200"], "{len}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut rig = Rig::open();
    let missing = "\r\nGET /missing HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    rig.send(format!("{HEALTH}{missing}{post}{HEALTH}GET /rea").as_bytes());
    assert_eq!(rig.statuses(), ["200", "404", "405", "200"]);
    rig.send(b"dyz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(rig.statuses(), ["200"]);
    assert!(!rig.closed && rig.receiving);
    assert_eq!(rig.door.counters().requests, 5);
}

#[test]
fn head_has_the_length_of_the_body_that_it_leaves_out() {
    let mut rig = Rig::open();
    rig.send(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(rig.received.ends_with("Connection: keep-alive\r\n\r\n"), "{}", rig.received);
    assert!(rig.received.contains("\r\nContent-Length: 3\r\n"), "{}", rig.received);
}

#[test]
fn methods_that_are_not_served_are_told_which_are() {
    let mut rig = Rig::open();
    rig.send(b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(rig.received.contains("\r\nAllow: GET, HEAD\r\n"), "{}", rig.received);
}

#[test]
fn sick_node_says_why() {
    let mut rig = Rig::open();
    let report = NodeReport { ills: vec!["shard 3: broken".to_owned()], ..NodeReport::default() };
    rig.report = Some(report);
    rig.send(HEALTH.as_bytes());
    assert!(rig.received.starts_with("HTTP/1.1 503 ") && rig.received.contains("shard 3: broken"));
    assert!(rig.received.contains("\r\n\r\nshard 3: broken\n"), "{}", rig.received);
}

#[test]
fn node_that_waits_is_healthy_and_not_ready() {
    let mut rig = Rig::open();
    let waits_for = vec!["its peers".to_owned()];
    rig.report = Some(NodeReport { waits_for, ..NodeReport::default() });
    let ready = HEALTH.replace("healthz", "readyz");
    rig.send(format!("{HEALTH}{ready}").as_bytes());
    assert_eq!(rig.statuses(), ["200", "503"]);
}

#[test]
fn metrics_come_in_the_format_that_is_accepted() {
    let families = vec![Family::counter("kadring_things_total", "Things", 4)];
    let metrics = HEALTH.replace("healthz", "metrics");
    let open = metrics.replace("Host", "Accept: application/openmetrics-text\r\nHost");
    for (request, media, line) in [
        (&metrics, "text/plain; version=0.0.4", "# TYPE kadring_things_total counter\n"),
        (&open, "application/openmetrics-text; version=1.0.0", "# TYPE kadring_things counter\n"),
    ] {
        let mut rig = Rig::open();
        rig.report = Some(NodeReport { families: families.clone(), ..NodeReport::default() });
        rig.send(request.as_bytes());
        let head = format!("Content-Type: {media}; charset=utf-8\r\n");
        assert!(rig.received.contains(&head) && rig.received.contains(line), "{}", rig.received);
    }
}

#[test]
fn nonsense_is_refused_once_and_what_follows_it_is_thrown_away() {
    let mut rig = Rig::open();
    rig.send(b"*1\r\n$4\r\nPING\r\n");
    assert_eq!(rig.statuses(), ["400"]);
    rig.send(HEALTH.as_bytes());
    assert_eq!(rig.statuses(), [""; 0]);
    assert!(!rig.closed, "the client may still read why");
    rig.send(b"");
    assert!(rig.closed && rig.door.is_empty());
}

#[test]
fn client_that_goes_on_after_a_refusal_is_cut_off() {
    let mut rig = Rig::open();
    rig.send(b"\0");
    let chunk = vec![0; 256 << 10];
    for _ in 0..=LINGER_BYTES_MAX / chunk.len() {
        assert!(!rig.closed);
        rig.send(&chunk);
    }
    assert!(rig.closed);
    let mut rig = Rig::open();
    rig.send(b"\0");
    rig.pass(LINGER_MS - 1);
    assert!(!rig.closed);
    rig.pass(1);
    assert!(rig.closed);
}

#[test]
fn head_that_is_too_large_is_refused_before_it_ends() {
    let mut rig = Rig::open();
    rig.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ");
    let (mut sent, chunk) = (0, [b'x'; 1000]);
    while rig.received.is_empty() {
        rig.send(&chunk);
        sent += chunk.len();
    }
    assert_eq!(rig.statuses(), ["431"]);
    assert!(sent <= HEAD_BYTES_MAX + chunk.len(), "{sent}");
}

#[test]
fn connection_ends_when_the_client_says_so() {
    let mut rig = Rig::open();
    rig.send(HEALTH.replace("Host", "Connection: close\r\nHost").as_bytes());
    assert!(rig.received.contains("\r\nConnection: close\r\n"));
    assert!(rig.closed);
    // One that has finished sending still gets its answer.
    let mut rig = Rig { stuck: true, ..Rig::open() };
    rig.send(HEALTH.as_bytes());
    assert!(rig.sending && !rig.receiving);
    rig.stuck = false;
    rig.door.handle_sent(rig.now, ONE, &Ok(()));
    rig.run();
    rig.send(b"");
    assert!(rig.closed);
}

#[test]
fn slow_clients_are_closed_in_every_state() {
    let idle = Rig::open();
    let mut partial = Rig::open();
    partial.send(b"GET /");
    let mut unanswered = Rig { report: None, ..Rig::open() };
    unanswered.send(HEALTH.as_bytes());
    let mut unread = Rig { stuck: true, ..Rig::open() };
    unread.send(HEALTH.as_bytes());
    let mut kept = Rig::open();
    kept.send(HEALTH.as_bytes());
    let cases = [
        (idle, HEAD_MS, 0),
        (partial, HEAD_MS, 1),
        (unanswered, ANSWER_MS, 1),
        (unread, SEND_MS, 1),
        (kept, IDLE_MS, 0),
    ];
    for (index, (mut rig, ms, late)) in cases.into_iter().enumerate() {
        assert_eq!(rig.door.deadline(), Some(rig.now.plus_millis(ms)), "{index}");
        rig.pass(ms - 1);
        assert!(!rig.closed, "{index}");
        rig.pass(1);
        assert!(rig.closed, "{index}");
        assert_eq!(rig.door.counters().connections_late, late, "{index}");
        assert_eq!(rig.door.deadline(), None, "{index}");
    }
}

#[test]
fn drip_of_bytes_does_not_move_the_deadline_of_a_head() {
    let mut rig = Rig::open();
    for _ in 0..10 {
        rig.send(b"G");
        rig.pass(HEAD_MS / 10);
    }
    assert!(rig.closed);
}

#[test]
fn idle_client_has_its_time_from_the_first_byte_of_the_next_head() {
    let mut rig = Rig::open();
    rig.send(HEALTH.as_bytes());
    rig.pass(IDLE_MS - HEAD_MS - 1);
    rig.send(b"G");
    rig.pass(HEAD_MS);
    assert!(rig.closed);
}

#[test]
fn connections_above_the_limit_are_closed() {
    let mut door = AdminDoor::default();
    let limit = ADMIN_CONNECTIONS_MAX as u64;
    for id in 0..=limit {
        door.handle_accepted(Monotonic(0), ConnectionId(id));
    }
    let mut closed = Vec::new();
    while let Some(request) = door.poll_request() {
        if let Request::Close(id) = request {
            closed.push(id);
        }
    }
    assert_eq!(closed, [ConnectionId(limit)]);
    assert_eq!(door.counters().connections_refused, 1);
    door.handle_closed(ConnectionId(limit));
    door.handle_closed(ConnectionId(0));
    door.handle_accepted(Monotonic(0), ConnectionId(limit + 1));
    assert!(matches!(door.poll_request(), Some(Request::Receive(_))));
}

#[test]
fn closing_door_closes_all_and_takes_nobody() {
    let mut rig = Rig { report: None, ..Rig::open() };
    rig.send(HEALTH.as_bytes());
    rig.door.close();
    rig.run();
    assert!(rig.closed && rig.door.is_empty());
    rig.door.handle_accepted(rig.now, ConnectionId(2));
    assert!(matches!(rig.door.poll_request(), Some(Request::Close(ConnectionId(2)))));
    assert_eq!(rig.door.counters().connections_refused, 0);
}

#[test]
fn answers_to_connections_that_are_gone_are_dropped() {
    let mut rig = Rig { report: None, ..Rig::open() };
    rig.send(HEALTH.as_bytes());
    rig.door.handle_closed(ONE);
    rig.door.answer(rig.now, ONE, &NodeReport::default());
    assert!(rig.door.poll_request().is_none());
}

/// Whatever comes, in whatever pieces, the door holds a bounded amount of it.
#[test]
fn random_bytes_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(1);
    let words: [&[u8]; 8] =
        [b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n", b"Host: a", b"\r\n\r\n", b"\xff", b": "];
    for _ in 0..2000 {
        let mut rig = Rig::open();
        for _ in 0..random.usize(1..40) {
            if rig.closed || !rig.receiving {
                break;
            }
            let piece: Vec<u8> = if random.u8(..) < 200 {
                words[random.usize(..words.len())].to_vec()
            } else {
                let len = random.usize(1..5000);
                std::iter::repeat_with(|| random.u8(..)).take(len).collect()
            };
            rig.send(&piece);
            let held = rig.door.connections.get(&ONE).map_or(0, |one| one.input.len());
            assert!(held <= HEAD_BYTES_MAX + 5000, "{held}");
        }
    }
}

#[test]
fn answer_is_one_piece_of_memory_for_head_and_body_each() {
    let response = Response::text(Status::Fine, "ok");
    let parts: Vec<Bytes> = response.into_parts(Method::Get, true);
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[1], "ok\n");
}
