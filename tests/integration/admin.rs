//! The admin door of a real node: pages, HTTP, and whether the figures are right.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kadring_tests::exposition::{Exposition, Format};
use kadring_tests::http_client::HttpClient;
use kadring_tests::node_process::{Driver, run_to_end};
use kadring_tests::resp_client::RespClient;

use crate::TestNode;

const OPEN_METRICS: &str = "Accept: application/openmetrics-text; version=1.0.0\r\n";

fn start(driver: Driver, variables: &[(&str, &str)]) -> (TestNode, SocketAddr) {
    let variables = [&[("KADRING_ADMIN", "127.0.0.1:0")], variables].concat();
    let node = TestNode::start_with(driver, &variables);
    let line = &node.node.ready().line;
    let admin = line.split(' ').find_map(|word| word.strip_prefix("admin="));
    let admin = admin.unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
    (node, admin)
}

pub(crate) fn scrape(client: &mut HttpClient) -> Exposition {
    let answer = client.get("/metrics", OPEN_METRICS).unwrap();
    assert_eq!(answer.status, 200);
    Exposition::parse(&answer.body, Format::OpenMetrics).unwrap_or_else(|fault| {
        panic!("{}", fault.chars().take(300).collect::<String>());
    })
}

/// Type and labels by name.
pub(crate) type Figures = BTreeMap<String, (String, BTreeSet<String>)>;

/// The tables of docs/OPERATIONS.md, "Metrics": of every node, and besides of one of a cluster and
/// of one of BitTorrent's DHT.
pub(crate) fn documented() -> [Figures; 3] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPERATIONS.md");
    let text = fs::read_to_string(path).unwrap();
    let section = text.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let (every, others) = section.split_once("\n### Of a node of a cluster\n").unwrap();
    let (cluster, mainline) = others.split_once("\n### Of a Mainline node\n").unwrap();
    [every, cluster, mainline].map(table)
}

fn table(text: &str) -> Figures {
    let mut all = BTreeMap::new();
    let is_figure =
        |line: &&str| line.starts_with("| `kadring_") || line.starts_with("| `process_");
    for line in text.lines().filter(is_figure) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|word| word.trim().trim_matches('`'));
        let labels = labels.filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let name = cells[0].trim_matches('`').to_owned();
        assert!(all.insert(name, (cells[1].to_owned(), labels)).is_none(), "{line}");
    }
    all
}

/// What a node tells.
pub(crate) fn told(exposition: &Exposition) -> Figures {
    let of_family = |(name, kind): (&String, &String)| {
        let is_its = |known: &str| known == name || known == format!("{name}_count");
        let series = exposition.samples.keys().find(|(known, _)| is_its(known)).unwrap();
        let labels = series.1.iter().map(|(name, _)| name.clone()).collect();
        (name.clone(), (kind.clone(), labels))
    };
    exposition.types.iter().map(of_family).collect()
}

#[track_caller]
pub(crate) fn check(documented: &Figures, told: &Figures) {
    for (name, found) in told {
        assert_eq!(documented.get(name), Some(found), "{name}: documented, told");
    }
    let missing: Vec<_> = documented.keys().filter(|name| !told.contains_key(*name)).collect();
    assert!(missing.is_empty(), "documented and not told: {missing:?}");
}

#[test]
fn figures_are_those_that_are_documented() {
    let [documented, ..] = documented();
    assert!(documented.len() > 80, "{}", documented.len());
    for driver in [Driver::Uring, Driver::Pread] {
        let (_node, admin) = start(driver, &[]);
        let mut client = HttpClient::connect(admin).unwrap();
        let open = scrape(&mut client);
        let plain = client.get("/metrics", "").unwrap().body;
        let plain = Exposition::parse(&plain, Format::Prometheus).unwrap();
        assert_eq!(open.types, plain.types);
        assert!(open.samples.keys().eq(plain.samples.keys()));
        check(&documented, &told(&open));
    }
}

/// Clients on several threads of the node, scrapes all the while; when all is quiet, INFO and
/// /metrics say the same.
#[test]
fn figures_move_under_load_never_fall_and_agree_with_info() {
    let (node, admin) = start(Driver::Uring, &[("KADRING_THREADS", "2")]);
    let mut http = HttpClient::connect(admin).unwrap();
    let first = scrape(&mut http);
    let (is_over, address) = (AtomicBool::new(false), node.node.address());
    let mut scrapes = 0;
    let last = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..4).map(|client| scope.spawn(move || load(address, client))).collect();
        let is_over = &is_over;
        let scraper = scope.spawn(move || {
            let mut before = scrape(&mut http);
            loop {
                let stop = is_over.load(Ordering::Acquire);
                let now = scrape(&mut http);
                let fallen = now.fallen_since(&before);
                assert!(fallen.is_empty(), "{:?}", &fallen[..fallen.len().min(5)]);
                before = now;
                scrapes += 1;
                if stop {
                    return (before, http, scrapes);
                }
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        is_over.store(true, Ordering::Release);
        scraper.join().unwrap()
    });
    let (last, mut http, scrapes) = last;
    assert!(scrapes > 2, "{scrapes}");
    for name in ["kadring_commands_total", "kadring_log_frames_total", "kadring_sent_bytes_total"] {
        assert!(last.sum(name) > first.sum(name), "{name}");
    }
    let commands = |name: &str| {
        let labels = vec![("command".to_owned(), name.to_owned())];
        last.samples[&("kadring_commands_total".to_owned(), labels)]
    };
    assert_eq!((commands("set"), commands("get"), commands("ping")), (2000.0, 2000.0, 0.0));
    let waits = |kind: &str| {
        let labels = vec![("kind".to_owned(), kind.to_owned())];
        last.samples[&("kadring_request_seconds_count".to_owned(), labels)]
    };
    assert!(waits("write") >= 1000.0 && waits("read") >= 1000.0, "each client waits for replies");
    assert!(last.sum("kadring_durable_write_seconds_count") > 0.0);
    let info = info(&mut node.client());
    let now = scrape(&mut http);
    let field = |name: &str| info[name].parse::<f64>().unwrap();
    for (metric, figure) in [
        ("kadring_commands_total", field("total_commands_processed") + 1.0),
        ("kadring_connections_total", field("total_connections_received")),
        ("kadring_received_bytes_total", field("total_net_input_bytes")),
        ("kadring_cache_hits_total", field("cache_hits")),
        ("kadring_cache_misses_total", field("cache_misses")),
        ("kadring_clients_max", field("maxclients")),
    ] {
        assert_eq!(now.sum(metric), figure, "{metric}");
    }
    let keys = info["db0"].split(',').next().unwrap().strip_prefix("keys=").unwrap();
    assert_eq!(now.sum("kadring_keys"), keys.parse::<f64>().unwrap());
    assert_eq!(now.sum("kadring_keys"), 2000.0);
}

/// The fields of INFO.
fn info(client: &mut RespClient) -> BTreeMap<String, String> {
    let reply = client.call_line("INFO").unwrap();
    let text = String::from_utf8(reply.bytes().unwrap().to_vec()).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// 500 writes and 500 reads, each answered before the next.
fn load(address: SocketAddr, client: usize) {
    let mut resp = RespClient::connect(address).unwrap();
    for index in 0..500 {
        let key = format!("key:{client}:{index}");
        assert!(!resp.call_line(&format!("SET {key} value")).unwrap().is_error(""));
        assert_eq!(resp.call_line(&format!("GET {key}")).unwrap().bytes(), Some(&b"value"[..]));
    }
}

#[test]
fn pages_are_served_over_one_connection_and_nonsense_is_refused() {
    for driver in Driver::ALL {
        let (_node, admin) = start(driver, &[]);
        let mut client = HttpClient::connect(admin).unwrap();
        let request = |line: &str| format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        let pipeline = ["HEAD /metrics", "GET /healthz", "GET /x", "PUT /healthz", "GET /readyz"];
        client.send(pipeline.map(request).concat().as_bytes()).unwrap();
        let head = client.answer(false).unwrap();
        assert!(head.field("content-length").unwrap().parse::<usize>().unwrap() > 1000);
        let answers: Vec<_> = (0..4).map(|_| client.answer(true).unwrap()).collect();
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!((head.status, statuses), (200, vec![200, 404, 405, 200]));
        assert_eq!((&*answers[0].body, answers[2].field("allow")), ("ok\n", Some("GET, HEAD")));

        client.send(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(client.answer(true).unwrap().status, 200);
        client.finish().unwrap();
        assert!(client.is_closed().unwrap());

        for (bytes, status) in [
            (b"PING\r\n\r\n".to_vec(), 400),
            (format!("GET /{} HTTP/1.1\r\n", "x".repeat(64 << 10)).into_bytes(), 431),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec(), 405),
        ] {
            let mut client = HttpClient::connect(admin).unwrap();
            client.send(&bytes).unwrap();
            let answer = client.answer(true).unwrap();
            assert_eq!((answer.status, answer.field("connection")), (status, Some("close")));
            client.finish().unwrap();
            assert!(client.is_closed().unwrap());
        }
    }
}

/// A client that does not take its replies holds the node up while it drains.
#[test]
fn node_that_stops_is_alive_and_not_ready() {
    let (node, admin) = start(Driver::Uring, &[]);
    let mut http = HttpClient::connect(admin).unwrap();
    assert_eq!(http.get("/readyz", "").unwrap().status, 200);
    let mut slow = node.client();
    let value = "v".repeat(8 << 20);
    slow.call(&[b"SET", b"k", value.as_bytes()]).unwrap();
    let get = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    slow.send_raw(&get.repeat(4)).unwrap();
    // The node has begun with the replies before it stops.
    let mut other = node.client();
    other.call_line("PING").unwrap();
    other.send_raw(b"SHUTDOWN\r\n").unwrap();
    assert_eq!(other.read_to_close().unwrap(), b"");
    let ready = http.get("/readyz", "").unwrap();
    assert_eq!((ready.status, &*ready.body), (503, "the node is stopping\n"));
    assert_eq!(http.get("/healthz", "").unwrap().status, 200);
    drop(slow);
    assert!(http.is_closed().unwrap());
    let (status, rest) = node.node.terminate().unwrap();
    assert_eq!((status.code(), &*rest), (Some(0), ""));
}

#[test]
fn address_of_the_admin_door_that_is_taken_is_named() {
    let (node, admin) = start(Driver::Uring, &[]);
    let place = crate::directory();
    let data = place.path().join("data");
    let arguments = ["run", "--client", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let output = run_to_end(&arguments, &[("KADRING_ADMIN".into(), admin.to_string())]).unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.ends_with("stop the process that uses it or give another --admin\n"), "{text}");
    drop(node);
}
