//! Runs cases against a node, wherever it is.

use std::collections::BTreeMap;

use kadring::krpc::bencode::{BencodeError, Kind, Reader};

use super::case::{Case, Condition, fill};

/// A case that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which case.
    pub case: String,
    /// Which of its steps, from 0.
    pub step: usize,
    /// What was wrong.
    pub what: String,
}

/// Sends all datagrams of a case through `exchange`, which answers the reply if there is one, and
/// looks at each.
///
/// # Errors
/// The first reply that is not allowed.
pub fn run(case: &Case, exchange: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Result<(), Failure> {
    let mut kept = BTreeMap::new();
    for (index, step) in case.steps.iter().enumerate() {
        let fail = |what: String| Failure { case: case.name.clone(), step: index, what };
        let sent = fill(&step.send, &kept).ok_or_else(|| fail("bad template".to_owned()))?;
        let reply = exchange(&sent);
        let shown = reply.as_ref().map(|reply| reply.escape_ascii().to_string());
        if let Some(reply) = &reply {
            let echoed = find(reply, "t");
            if echoed.is_none() || echoed != find(&sent, "t") {
                return Err(fail(format!("transaction id not repeated: {shown:?}")));
            }
        }
        let holds = |condition: &Condition| holds(condition, reply.as_deref(), &kept);
        if !step.allowed.iter().any(|conditions| conditions.iter().all(holds)) {
            let unmet: Vec<_> =
                step.allowed.iter().flatten().filter(|condition| !holds(condition)).collect();
            return Err(fail(format!("{unmet:?} do not hold of {shown:?}")));
        }
        for (name, path) in &step.kept {
            let value = reply.as_deref().and_then(|reply| find(reply, path));
            let value = value.ok_or_else(|| fail(format!("no {path} to keep: {shown:?}")))?;
            kept.insert(name.clone(), value.to_vec());
        }
    }
    Ok(())
}

fn holds(condition: &Condition, reply: Option<&[u8]>, kept: &BTreeMap<String, Vec<u8>>) -> bool {
    let Some(reply) = reply else { return *condition == Condition::Silence };
    let string_len = |path: &str| {
        find(reply, path).and_then(|raw| Reader::new(raw).bytes().ok()).map(<[u8]>::len)
    };
    match condition {
        Condition::Silence => false,
        Condition::Response => find(reply, "y") == Some(b"1:r"),
        Condition::Error(code) => error_code(reply) == Some(*code),
        Condition::Has(path) => find(reply, path).is_some(),
        Condition::Lacks(path) => find(reply, path).is_none(),
        Condition::Is(path, value) => {
            let value = fill(value, kept);
            value.is_some() && find(reply, path) == value.as_deref()
        }
        Condition::Len(path, len) => string_len(path) == Some(*len),
        Condition::Times(path, len) => string_len(path).is_some_and(|found| found % len == 0),
        Condition::Each(path, len) => find(reply, path).is_some_and(|list| each_has(list, *len)),
        Condition::Within(path, least, most) => {
            let number = find(reply, path).and_then(|raw| Reader::new(raw).integer().ok());
            number.is_some_and(|number| (*least..=*most).contains(&number))
        }
    }
}

fn each_has(list: &[u8], len: usize) -> bool {
    let mut reader = Reader::new(list);
    let mut count = 0;
    let mut read = || {
        reader.list()?;
        while !reader.end()? {
            count += 1;
            if reader.bytes()?.len() != len {
                return Ok(false);
            }
        }
        Ok::<_, BencodeError>(count > 0)
    };
    read().unwrap_or(false)
}

fn error_code(reply: &[u8]) -> Option<i64> {
    let mut reader = Reader::new(find(reply, "e")?);
    reader.list().ok()?;
    let code = reader.integer().ok()?;
    // The text has to be there, and to be text: one client discards errors with other bytes.
    std::str::from_utf8(reader.bytes().ok()?).ok()?;
    (find(reply, "y") == Some(b"1:e")).then_some(code)
}

/// The raw value at a path of keys, with a dot between them.
#[must_use]
pub fn find<'a>(message: &'a [u8], path: &str) -> Option<&'a [u8]> {
    let mut found = message;
    for wanted in path.split('.') {
        let mut reader = Reader::new(found);
        if reader.kind().ok()? != Kind::Dictionary {
            return None;
        }
        let mut keys = reader.dictionary().ok()?;
        loop {
            let key = reader.key(&mut keys).ok()??;
            let value = reader.value().ok()?;
            if key == wanted.as_bytes() {
                found = value;
                break;
            }
        }
    }
    Some(found)
}
