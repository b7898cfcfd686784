//! [`Case`]: what to send and what may come back, as text.

use std::collections::BTreeMap;

/// A case: steps that are taken one after the other.
#[derive(Clone, Debug)]
pub struct Case {
    /// File and name.
    pub name: String,
    /// The rule, and who does otherwise.
    pub why: String,
    /// What is sent, and what may come back.
    pub steps: Vec<Step>,
}

/// A datagram and its allowed replies.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The datagram, a template.
    pub send: String,
    /// Sets of conditions: one of them must hold as a whole.
    pub allowed: Vec<Vec<Condition>>,
    /// Values of the reply to be kept: name and path.
    pub kept: Vec<(String, String)>,
}

/// Something that a reply must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none.
    Silence,
    /// It is a response.
    Response,
    /// It is an error with this code.
    Error(i64),
    /// There is a value at the path.
    Has(String),
    /// There is none.
    Lacks(String),
    /// The value at the path is this, a template of bencode.
    Is(String, String),
    /// The string at the path has so many bytes.
    Len(String, usize),
    /// The string at the path has a whole multiple of so many bytes.
    Times(String, usize),
    /// The list at the path has strings of so many bytes alone, and one at least.
    Each(String, usize),
    /// The number at the path is between these, both included.
    Within(String, i64, i64),
}

/// A line that is none of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseError {
    /// Which file.
    pub file: String,
    /// The line.
    pub line: String,
}

/// Reads the cases of a file.
///
/// # Errors
/// A line is none of a case.
pub fn parse(file: &str, text: &str) -> Result<Vec<Case>, CaseError> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        parse_line(&mut cases, file, word, rest)
            .ok_or_else(|| CaseError { file: file.to_owned(), line: line.to_owned() })?;
    }
    Ok(cases)
}

fn parse_line(cases: &mut Vec<Case>, file: &str, word: &str, rest: &str) -> Option<()> {
    if word == "case" {
        let name = format!("{file}/{rest}");
        cases.push(Case { name, why: String::new(), steps: Vec::new() });
        return Some(());
    }
    let case = cases.last_mut()?;
    match word {
        "why" => rest.clone_into(&mut case.why),
        "send" => case.steps.push(Step { send: rest.to_owned(), ..Step::default() }),
        "expect" | "or" => {
            let conditions: Option<Vec<_>> = rest.split("; ").map(parse_condition).collect();
            case.steps.last_mut()?.allowed.push(conditions?);
        }
        "keep" => {
            let (name, path) = rest.split_once(' ')?;
            case.steps.last_mut()?.kept.push((name.to_owned(), path.to_owned()));
        }
        _ => return None,
    }
    Some(())
}

fn parse_condition(text: &str) -> Option<Condition> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let pair = || rest.split_once(' ').map(|(path, value)| (path.to_owned(), value));
    Some(match word {
        "silence" => Condition::Silence,
        "reply" => Condition::Response,
        "error" => Condition::Error(rest.parse().ok()?),
        "has" => Condition::Has(rest.to_owned()),
        "lacks" => Condition::Lacks(rest.to_owned()),
        "is" => pair().map(|(path, value)| Condition::Is(path, value.to_owned()))?,
        "len" => Condition::Len(pair()?.0, pair()?.1.parse().ok()?),
        "times" => Condition::Times(pair()?.0, pair()?.1.parse().ok()?),
        "each" => Condition::Each(pair()?.0, pair()?.1.parse().ok()?),
        "within" => {
            let (path, bounds) = pair()?;
            let (least, most) = bounds.split_once(' ')?;
            Condition::Within(path, least.parse().ok()?, most.parse().ok()?)
        }
        _ => return None,
    })
}

/// Fills a template; `None` if it is none, or names something that was not kept.
#[must_use]
pub fn fill(template: &str, kept: &BTreeMap<String, Vec<u8>>) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), template);
    while let Some((before, after)) = rest.split_once('<') {
        let (inside, after) = after.split_once('>')?;
        bytes.extend_from_slice(before.as_bytes());
        if let Some(name) = inside.strip_prefix('$') {
            bytes.extend_from_slice(kept.get(name)?);
        } else if let Some(hex) = inside.strip_prefix("hex:") {
            for index in (0..hex.len()).step_by(2) {
                bytes.push(u8::from_str_radix(hex.get(index..index + 2)?, 16).ok()?);
            }
        } else {
            let (byte, count) = inside.strip_prefix("fill:")?.split_once(':')?;
            bytes.extend(byte.repeat(count.parse().ok()?).into_bytes());
        }
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}
