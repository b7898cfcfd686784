//! `kadring cluster N` with real processes: it starts, serves, and leaves nothing behind.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use kadring_tests::http_client::HttpClient;
use kadring_tests::node_process::run_to_end;
use kadring_tests::resp_client::RespClient;
use kadring_tests::tool_process::ToolProcess;
use rustix::process::{Pid, Signal, kill_process};

use crate::admin;

/// Whatever a cluster is waited for.
const DEADLINE: Duration = Duration::from_secs(120);

struct Started {
    tool: ToolProcess,
    clients: Vec<SocketAddr>,
    admins: Vec<SocketAddr>,
    directory: PathBuf,
}

fn start(arguments: &[&str]) -> Started {
    let words: Vec<OsString> = ["cluster"].iter().chain(arguments).map(OsString::from).collect();
    let temporary = env!("CARGO_TARGET_TMPDIR").to_owned();
    let tool = ToolProcess::start(&words, &[("TMPDIR".to_owned(), temporary)]).unwrap();
    let mut lines = Vec::new();
    while lines.last().is_none_or(|last: &String| !last.starts_with("Ctrl-C")) {
        let Some(line) = tool.line(DEADLINE) else {
            tool.terminate();
            let (status, text) = tool.wait_end(DEADLINE).unwrap();
            panic!("{status}: {}", text.chars().take(1000).collect::<String>());
        };
        lines.push(line);
    }
    assert!(lines[0].starts_with("NODE  CLIENT "), "{lines:?}");
    let column = |column| -> Vec<SocketAddr> {
        let rows = lines[1..].iter().take_while(|line| !line.trim().is_empty());
        rows.map(|row| row.split_whitespace().nth(column).unwrap().parse().unwrap()).collect()
    };
    let (clients, admins) = (column(1), column(3));
    let data = lines.iter().find_map(|line| line.strip_prefix("Data and logs: ")).unwrap();
    let directory = data.rsplit_once(" (").unwrap().0.into();
    Started { tool, clients, admins, directory }
}

fn expect(client: &mut RespClient, line: &str, expected: &[u8]) {
    let reply = client.call_line(line).unwrap();
    assert_eq!(reply.bytes(), Some(expected), "{line}: {}", reply.brief());
}

fn process_of(client: &mut RespClient) -> Pid {
    let reply = client.call_line("INFO server").unwrap();
    let text = String::from_utf8(reply.bytes().unwrap().to_vec()).unwrap();
    let pid = text.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
    Pid::from_raw(pid.parse().unwrap()).unwrap()
}

#[test]
fn cluster_serves_and_leaves_nothing_behind() {
    let Started { tool, clients, directory, .. } = start(&["3"]);
    assert_eq!(clients.len(), 3);
    let mut clients: Vec<_> = clients.iter().map(|at| RespClient::connect(*at).unwrap()).collect();
    expect(&mut clients[0], "SET greeting hello", b"OK");
    for client in &mut clients {
        expect(client, "GET greeting", b"hello");
    }
    assert!(directory.join("node-3").is_dir() && directory.join("node-3.log").is_file());
    tool.terminate();
    let (status, text) = tool.wait_end(DEADLINE).unwrap();
    assert_eq!((status.code(), &*text), (Some(0), ""));
    assert!(!directory.exists());
    for client in &mut clients {
        assert!(client.read_to_close().is_ok(), "the node has closed the connection");
    }
}

#[test]
fn client_commands_show_the_cluster() {
    let Started { tool, clients, .. } = start(&["2", "--", "--io", "pread"]);
    let address = clients[1].to_string();
    let ask = |words: &[&str]| {
        let output = run_to_end(&[words, &["--client", &address]].concat(), &[]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {text}");
        text
    };
    let nodes = ask(&["nodes"]);
    assert!(nodes.starts_with("ID ") && nodes.lines().count() == 3, "{nodes}");
    assert!(nodes.contains(" self\n"), "{nodes}");
    let other = nodes.lines().skip(1).find(|row| !row.ends_with(" self")).unwrap();
    let id = other.split(' ').next().unwrap().to_owned();
    let holders = ask(&["locate", "some key", "--json"]);
    assert!(holders.contains(&format!("\"id\": \"{id}\"")), "{holders}");
    let routes = ask(&["routes"]);
    assert!(routes.starts_with("ID ") && routes.contains("good"), "{routes}");
    let found = ask(&["lookup", &id]);
    assert!(found.contains(&id) && found.contains("hops "), "{found}");
    tool.terminate();
    assert_eq!(tool.wait_end(DEADLINE).unwrap().0.code(), Some(0));
}

#[test]
fn figures_of_a_cluster_are_those_that_are_documented() {
    let Started { tool, admins, .. } = start(&["2"]);
    let [mut documented, of_cluster, _] = admin::documented();
    assert!(!of_cluster.is_empty());
    documented.extend(of_cluster);
    let mut client = HttpClient::connect(admins[0]).unwrap();
    admin::check(&documented, &admin::told(&admin::scrape(&mut client)));
    tool.terminate();
    assert_eq!(tool.wait_end(DEADLINE).unwrap().0.code(), Some(0));
}

#[test]
fn data_stays_where_it_was_asked_for() {
    let place = crate::directory();
    let path = place.path().join("cluster");
    for round in 0..2 {
        let cluster = start(&["2", "--dir", path.to_str().unwrap()]);
        let mut client = RespClient::connect(cluster.clients[round]).unwrap();
        if round == 0 {
            expect(&mut client, "SET k v", b"OK");
        }
        expect(&mut client, "GET k", b"v");
        // Ctrl-C and SIGTERM are the same to it.
        match round {
            0 => cluster.tool.interrupt(),
            _ => cluster.tool.terminate(),
        }
        let (status, text) = cluster.tool.wait_end(DEADLINE).unwrap();
        assert_eq!((status.code(), &*text), (Some(0), ""));
    }
    assert!(path.join("node-2.log").is_file());
}

/// Nobody is left to stop the nodes: the kernel does.
#[test]
fn nodes_end_with_the_command_that_has_started_them() {
    let Started { tool, clients, directory, .. } = start(&["3"]);
    let mut clients: Vec<_> = clients.iter().map(|at| RespClient::connect(*at).unwrap()).collect();
    tool.kill9().unwrap();
    for client in &mut clients {
        // Either is what the end of a process looks like; a node that lives says nothing.
        let end = client.read_to_close();
        let is_reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(end.is_ok() || end.as_ref().is_err_and(is_reset), "{end:?}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn node_that_dies_is_reported_and_the_others_go_on() {
    let Started { tool, clients, .. } = start(&["3"]);
    let mut clients: Vec<_> = clients.iter().map(|at| RespClient::connect(*at).unwrap()).collect();
    kill_process(process_of(&mut clients[1]), Signal::KILL).unwrap();
    let report = "node 2 has ended (signal: 9 (SIGKILL))";
    assert!(tool.wait_for_error(report, DEADLINE));
    assert!(tool.wait_for_error("2 of 3 nodes are left", DEADLINE));
    clients[2].call_line("PING").unwrap();
    tool.terminate();
    let (status, text) = tool.wait_end(DEADLINE).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert_eq!(text.matches(report).count(), 2, "once when it was, once at the end: {text}");
}

/// A program that is no node, with what it does.
fn program(directory: &tempfile::TempDir, script: &str) -> String {
    let path = directory.path().join("program");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn cluster_that_does_not_start_says_why() {
    let place = crate::directory();
    let data = place.path().join("data");
    let run = |program: &str| {
        let arguments = ["cluster", "2", "--dir", data.to_str().unwrap(), "--program", program];
        let output = run_to_end(&arguments, &[]).unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run("/nonexistent/kadring");
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot start /nonexistent/kadring: "), "{text}");
    let ends = program(&place, "echo 'out of luck' >&2; exit 3");
    let (code, text) = run(&ends);
    assert_eq!(code, Some(1));
    assert!(text.contains("has ended (exit status: 3), having said: out of luck"), "{text}");
    let talks = program(&place, "echo hello; exec tail -f /dev/null");
    let (code, text) = run(&talks);
    assert_eq!(code, Some(1));
    assert!(text.contains("said \"hello\\n\" where it should say that it is ready"), "{text}");
}
