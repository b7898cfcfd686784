//! All cases on our own server; and the runner, which must be able to fail.

use super::local_node::LocalNode;
use super::*;

#[test]
fn our_server_answers_every_case_as_it_should() {
    let cases = all().unwrap();
    assert!(cases.len() > 95, "{}", cases.len());
    let mut node = LocalNode::default();
    let from = "127.0.0.1:6881".parse().unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        if let Err(failure) = run(case, &mut |sent| node.exchange(from, sent)) {
            failures.push(format!("{failure:?} ({})", case.why));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Where several kinds of replies are allowed, ours is the first: what docs/adr/0021 says.
#[test]
fn our_server_gives_the_first_of_the_allowed_answers() {
    let mut node = LocalNode::default();
    let from = "127.0.0.1:6881".parse().unwrap();
    for mut case in all().unwrap() {
        case.steps.iter_mut().for_each(|step| step.allowed.truncate(1));
        run(&case, &mut |sent| node.exchange(from, sent)).unwrap_or_else(|failure| {
            panic!("{failure:?}");
        });
    }
}

#[test]
fn silent_and_lying_nodes_fail() {
    let cases = all().unwrap();
    let failed = |exchange: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>| {
        cases.iter().filter(|case| run(case, exchange).is_err()).count()
    };
    assert!(failed(&mut |_| None) > 60);
    assert_eq!(failed(&mut |_| Some(b"d1:t2:zz1:y1:re".to_vec())), cases.len());
    assert!(failed(&mut |sent| Some(sent.to_vec())) > 60, "an echo");
}

#[test]
fn bad_cases_are_refused() {
    for line in ["send x", "case x\nexpect reply", "case x\nsend y\nexpect bliss", "nonsense"] {
        assert!(case::parse("file", line).is_err(), "{line}");
    }
}

#[test]
fn lists_and_numbers_are_looked_at() {
    let text = "case x\nsend d1:t1:ae\nexpect each r.l 2; within r.n 1 3";
    let case = &case::parse("file", text).unwrap()[0];
    let check = |values: &str, passes| {
        let reply = format!("d1:rd{values}e1:t1:a1:y1:re").into_bytes();
        assert_eq!(run(case, &mut |_| Some(reply.clone())).is_ok(), passes, "{values}");
    };
    check("1:ll2:ab2:cde1:ni3e", true);
    check("1:ll2:abe1:ni1e", true);
    for wrong in [
        "1:ll2:abe1:ni0e",
        "1:ll2:abe1:ni4e",
        "1:ll2:abe1:n1:1",
        "1:ll2:abe",
        "1:ll2:ab3:cdee1:ni1e",
        "1:lle1:ni1e",
        "1:ll2:abi1ee1:ni1e",
        "1:l2:ab1:ni1e",
    ] {
        check(wrong, false);
    }
}
