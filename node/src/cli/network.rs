//! `kadring locate|routes|lookup|nodes`: what a running node knows of others, as a table or JSON.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;

use redis::{Cmd, Value};
use serde_json::{Map, Value as Json, json};

use super::client::{Node, NodeFlags};
use super::error::CliError;
use super::table;
use crate::config::Sources;

/// Flags of `kadring routes` and `kadring nodes`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ListFlags {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Flags of `kadring locate`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LocateFlags {
    #[command(flatten)]
    pub(super) list: ListFlags,
    /// The key, taken byte for byte
    key: OsString,
}

/// Flags of `kadring lookup`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LookupFlags {
    #[command(flatten)]
    pub(super) list: ListFlags,
    /// The id to look for: 40 hexadecimal digits
    id: String,
}

impl ListFlags {
    /// The value given for the setting `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        self.node.get(key)
    }
}

/// How a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Right-aligned; empty is unknown.
    Number,
}

/// Title in the table, key in JSON.
type Column = (&'static str, &'static str, Kind);

type Rows = Vec<Vec<String>>;

const ID: Column = ("ID", "id", Kind::Text);
const ADDRESS: Column = ("ADDRESS", "address", Kind::Text);
const HEALTH: Column = ("HEALTH", "health", Kind::Text);
const HOLDERS: &[Column] = &[ID, ADDRESS, HEALTH];
const FOUND: &[Column] = &[ID, ADDRESS];
const MEMBERS: &[Column] =
    &[ID, ADDRESS, ("PHASE", "phase", Kind::Text), ("STANDING", "standing", Kind::Text), HEALTH];
const ROUTES: &[Column] = &[
    ID,
    ADDRESS,
    ("BUCKET", "bucket", Kind::Number),
    ("STATE", "state", Kind::Text),
    ("RTT MS", "round_trip_ms", Kind::Number),
];

/// Writes which nodes hold a key.
///
/// # Errors
/// What went wrong.
pub(super) fn locate(
    flags: &LocateFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.LOCATE");
    command.arg(flags.key.as_bytes());
    list(&command, HOLDERS, flags.list.json, sources, out)
}

/// Writes the routing table.
///
/// # Errors
/// What went wrong.
pub(super) fn routes(
    flags: &ListFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    list(&redis::cmd("KAD.ROUTES"), ROUTES, flags.json, sources, out)
}

/// Writes the members of the cluster.
///
/// # Errors
/// What went wrong.
pub(super) fn nodes(
    flags: &ListFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    list(&redis::cmd("KAD.NODES"), MEMBERS, flags.json, sources, out)
}

/// Writes the nodes closest to an id, and what finding them has taken.
///
/// # Errors
/// What went wrong.
pub(super) fn lookup(
    flags: &LookupFlags,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut command = redis::cmd("KAD.LOOKUP");
    command.arg(&flags.id);
    let mut node = Node::connect(sources)?;
    let answer = node.ask(&command)?;
    let (figures, rows) = found(answer).ok_or_else(|| node.strange())?;
    let text = if flags.list.json {
        let mut object: Map<String, Json> =
            figures.into_iter().map(|(name, value)| (name, number(&value))).collect();
        object.insert("nodes".to_owned(), objects(FOUND, &rows));
        pretty(&Json::Object(object))
    } else {
        let figures = figures.iter().map(|(name, value)| format!("{name} {value}"));
        format!("{}\n{}", shown(FOUND, &rows), figures.collect::<Vec<_>>().join(", ") + "\n")
    };
    out.write_all(text.as_bytes()).map_err(CliError::Output)
}

fn list(
    command: &Cmd,
    columns: &[Column],
    as_json: bool,
    sources: &Sources<'_>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut node = Node::connect(sources)?;
    let answer = node.ask(command)?;
    let rows = rows(answer, columns.len()).ok_or_else(|| node.strange())?;
    let text = if as_json { pretty(&objects(columns, &rows)) } else { shown(columns, &rows) };
    out.write_all(text.as_bytes()).map_err(CliError::Output)
}

/// Rows of at least so many strings: newer nodes may tell more.
fn rows(answer: Value, columns: usize) -> Option<Rows> {
    let Value::Array(rows) = answer else { return None };
    let rows = rows.into_iter().map(|row| {
        let Value::Array(cells) = row else { return None };
        let cells: Option<Vec<String>> = cells.into_iter().map(string).collect();
        cells.filter(|cells| cells.len() >= columns)
    });
    rows.collect()
}

/// The figures of a lookup, and the nodes that it has found.
fn found(answer: Value) -> Option<(Vec<(String, String)>, Rows)> {
    let Value::Array(parts) = answer else { return None };
    let [figures, nodes] = <[Value; 2]>::try_from(parts).ok()?;
    let Value::Array(figures) = figures else { return None };
    let words: Option<Vec<String>> = figures.into_iter().map(string).collect();
    let pairs = words?.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    Some((pairs, rows(nodes, FOUND.len())?))
}

/// A string without anything that could steer a terminal.
fn string(value: Value) -> Option<String> {
    let text = match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::SimpleString(text) => text,
        Value::Int(number) => number.to_string(),
        _ => return None,
    };
    Some(text.replace(char::is_control, "?"))
}

fn shown(columns: &[Column], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = columns.iter().map(|(title, ..)| *title).collect();
    let right: Vec<bool> = columns.iter().map(|(.., kind)| *kind == Kind::Number).collect();
    table::aligned(&titles, &right, rows)
}

fn objects(columns: &[Column], rows: &[Vec<String>]) -> Json {
    let object = |row: &Vec<String>| -> Json {
        let cells = columns.iter().zip(row).map(|((_, key, kind), cell)| {
            let value = match kind {
                Kind::Text => json!(cell),
                Kind::Number => number(cell),
            };
            ((*key).to_owned(), value)
        });
        Json::Object(cells.collect())
    };
    Json::Array(rows.iter().map(object).collect())
}

/// A number as JSON; null if it is none.
fn number(text: &str) -> Json {
    let whole = text.parse::<u64>().map(Json::from);
    whole.unwrap_or_else(|_| text.parse::<f64>().map_or(Json::Null, Json::from))
}

fn pretty(value: &Json) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(cells: &[&str]) -> Value {
        Value::Array(cells.iter().map(|cell| Value::BulkString(cell.as_bytes().into())).collect())
    }

    #[test]
    fn routes_are_a_table_with_numbers_to_the_right() {
        let answer = Value::Array(vec![
            array(&["ab", "127.0.0.1:7400", "3", "good", "0.25"]),
            array(&["cd", "[::1]:1", "12", "questionable", "", "something newer"]),
        ]);
        let rows = rows(answer, ROUTES.len()).unwrap();
        let expected = "ID  ADDRESS         BUCKET  STATE         RTT MS\n\
                        ab  127.0.0.1:7400       3  good            0.25\n\
                        cd  [::1]:1             12  questionable\n";
        assert_eq!(shown(ROUTES, &rows), expected);
        let expected = json!([
            {"id": "ab", "address": "127.0.0.1:7400", "bucket": 3, "state": "good",
             "round_trip_ms": 0.25},
            {"id": "cd", "address": "[::1]:1", "bucket": 12, "state": "questionable",
             "round_trip_ms": null},
        ]);
        assert_eq!(objects(ROUTES, &rows), expected);
    }

    #[test]
    fn lookup_has_figures_and_nodes() {
        let nodes = Value::Array(vec![array(&["ab", "127.0.0.1:1"])]);
        let answer = Value::Array(vec![array(&["hops", "2", "queries", "5"]), nodes]);
        let (figures, rows) = found(answer).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(figures, [pair("hops", "2"), pair("queries", "5")]);
        assert_eq!(rows, [["ab", "127.0.0.1:1"]]);
    }

    #[test]
    fn strange_answers_are_told_from_empty_ones() {
        assert_eq!(rows(Value::Array(Vec::new()), 3), Some(Vec::new()));
        for strange in [
            Value::Okay,
            Value::Nil,
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![array(&["too", "short"])]),
            Value::Array(vec![Value::Array(vec![Value::Nil, Value::Nil, Value::Nil])]),
        ] {
            assert_eq!(rows(strange.clone(), 3), None, "{strange:?}");
        }
        assert_eq!(found(Value::Array(vec![array(&[])])), None);
        assert_eq!(string(Value::BulkString(b"\x1b[31mred".to_vec())).unwrap(), "?[31mred");
    }
}
