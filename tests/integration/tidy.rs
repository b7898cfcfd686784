//! Enforces what the style asks of the repository itself, with plain code over plain text.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;
const FILE_NAMES_BANNED: [&str; 7] =
    ["util", "common", "helpers", "misc", "types", "manager", "service"];
const UNSAFE_FOLDER: &str = "node/src/io";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lists all files below the root, without what is built or not ours.
fn files() -> Vec<String> {
    let root = root();
    let mut found = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && name != ".ci";
            if hidden || name == "target" || name == "kadring-data" {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else {
                let relative = path.strip_prefix(&root).unwrap();
                found.push(relative.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| (read(&path), path)).map(|(text, path)| (path, text)).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.starts_with("tests/integration/")
}

/// The text before the unit tests at the end of a file.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

/// The code of a line: without its comment, and without string contents as far as that is simple.
fn code(line: &str) -> String {
    let parts = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    parts.split("//").next().unwrap_or_default().to_owned()
}

#[track_caller]
fn check(faults: &[String]) {
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        if !text.starts_with("//! ") {
            faults.push(format!("{path}: line one is no `//!` comment"));
        }
    }
    check(&faults);
}

#[test]
fn source_files_are_short() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        let count = without_tests(&text).lines().count();
        if count > LINES_MAX && !is_test_file(&path) {
            faults.push(format!("{path}: {count} lines, at most {LINES_MAX}"));
        }
        for (index, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            let unbreakable = line.contains("://") || line.starts_with("//! |");
            if columns > COLUMNS_MAX && !unbreakable {
                faults.push(format!("{path}:{}: {columns} columns", index + 1));
            }
        }
    }
    check(&faults);
}

#[test]
fn file_and_folder_names_say_what_is_inside() {
    let mut faults = Vec::new();
    for path in files().iter().filter(|path| path.ends_with(".rs")) {
        let parts = path.trim_end_matches(".rs").split('/');
        for part in parts.filter(|part| FILE_NAMES_BANNED.contains(part)) {
            faults.push(format!("{path}: `{part}` says nothing"));
        }
    }
    check(&faults);
}

#[test]
fn unsafe_code_stays_in_its_folder() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        for (index, line) in text.lines().enumerate() {
            let code = code(line);
            let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| word == "unsafe") && !path.starts_with(UNSAFE_FOLDER) {
                faults.push(format!("{path}:{}: unsafe outside {UNSAFE_FOLDER}", index + 1));
            }
        }
    }
    for crate_root in ["wal/src/lib.rs", "storage/src/lib.rs", "tests/src/lib.rs"] {
        if !read(crate_root).contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{crate_root}: does not forbid unsafe code"));
        }
    }
    if !read("node/src/lib.rs").contains("#![deny(unsafe_code)]") {
        faults.push("node/src/lib.rs: does not deny unsafe code".to_owned());
    }
    check(&faults);
}

#[test]
fn lints_are_lifted_with_a_reason_only() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        let text: String = text.lines().map(|line| code(line) + "\n").collect();
        for opening in ["[allow(", "[expect("] {
            for (at, _) in text.match_indices(opening) {
                let attribute = text[at..].split(")]").next().unwrap_or_default();
                let line = text[..at].lines().count();
                if opening == "[allow(" {
                    faults.push(format!("{path}:{line}: `expect` instead of `allow`"));
                } else if !attribute.contains("reason") {
                    faults.push(format!("{path}:{line}: no reason given"));
                }
            }
        }
    }
    check(&faults);
}

/// What is open has to say what is missing; a bare marker does not.
#[test]
fn open_ends_say_what_is_missing() {
    let mut faults = Vec::new();
    let marker = ["TO", "DO"].concat();
    for (path, text) in rust_files() {
        for (index, line) in text.lines().enumerate() {
            let Some((_, rest)) = line.split_once(&marker) else {
                continue;
            };
            if rest.trim_start_matches(':').split_whitespace().count() < 4 {
                faults.push(format!("{path}:{}: says too little", index + 1));
            }
        }
        for banned in [["FIX", "ME"].concat(), ["XX", "X:"].concat(), ["HA", "CK:"].concat()] {
            if text.contains(&banned) {
                faults.push(format!("{path}: {banned}"));
            }
        }
    }
    check(&faults);
}

#[test]
fn every_decision_record_is_listed_numbered_and_dated() {
    let mut faults = Vec::new();
    let list = read("docs/adr/README.md");
    let records: Vec<String> = files()
        .into_iter()
        .filter_map(|path| path.strip_prefix("docs/adr/").map(str::to_owned))
        .filter(|name| name != "README.md")
        .collect();
    for (index, name) in records.iter().enumerate() {
        if !list.contains(&format!("({name})")) {
            faults.push(format!("docs/adr/{name} is not listed in docs/adr/README.md"));
        }
        if !name.starts_with(&format!("{:04}-", index + 1)) {
            faults.push(format!("docs/adr/{name} breaks the numbering"));
        }
        let text = read(&format!("docs/adr/{name}")).to_lowercase();
        for word in ["status", "date", "decision"] {
            if !text.contains(word) {
                faults.push(format!("docs/adr/{name} lacks `{word}`"));
            }
        }
    }
    assert!(!records.is_empty());
    check(&faults);
}

#[test]
fn every_golden_file_is_listed_in_the_format_document() {
    let mut faults = Vec::new();
    let format = read("docs/FORMAT.md");
    for path in files() {
        let name = path.rsplit('/').next().unwrap_or_default();
        let golden = path.starts_with("tests/data/") || path.contains("/golden/");
        let is_text = name.ends_with(".txt") || name.ends_with(".md");
        if golden && !is_text && !format.contains(name) {
            faults.push(format!("{path} is not listed in docs/FORMAT.md"));
        }
    }
    check(&faults);
}

/// An operator finds every limit in one table.
#[test]
fn every_limit_is_in_the_table_of_limits() {
    // How long a thing of the format can get, not what a node does.
    const OF_THE_FORMAT: [&str; 8] = [
        "COARSE_MS",
        "ENTRY_LEN_MAX",
        "FILE_BYTES_MAX",
        "FINE_MS",
        "HEADER_BYTES_MAX",
        "LEN_MAX",
        "RECORD_HEADER_LEN_MAX",
        "UNNUMBERED_VALUE_LEN_MAX",
    ];
    let operations = read("docs/OPERATIONS.md");
    let table = operations.split("## Limits").nth(1).and_then(|rest| rest.split("\n## ").next());
    let table =
        table.expect("OPERATIONS.md has the section").replace("`_MAX`", "`SEGMENT_BYTES_MAX`");
    let (mut faults, mut count, mut product) = (Vec::new(), 0, String::new());
    for (path, text) in rust_files() {
        let is_product =
            ["wal/src/", "storage/src/", "node/src/"].iter().any(|at| path.starts_with(at));
        if !is_product || path.contains("tests") {
            continue;
        }
        let text = text.split("mod tests {").next().unwrap_or_default();
        product.push_str(text);
        for line in text.lines().map(code) {
            let declared = line.split_once("const ").and_then(|(_, rest)| rest.split_once(':'));
            let Some((name, _)) = declared else { continue };
            let is_limit =
                ["_MAX", "_LIMIT", "_TIMEOUT", "_MS", "_NS"].iter().any(|end| name.ends_with(end));
            if is_limit && !OF_THE_FORMAT.contains(&name) {
                count += 1;
                if !table.contains(&format!("`{name}`")) {
                    faults.push(format!("{path}: {name} is not in docs/OPERATIONS.md, Limits"));
                }
            }
        }
    }
    assert!(count > 50, "only {count} found");
    for name in table.split('`').skip(1).step_by(2) {
        let is_constant =
            name.len() > 3 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if is_constant && !product.contains(&format!("const {name}:")) {
            faults.push(format!("docs/OPERATIONS.md, Limits: {name} is not in the code"));
        }
    }
    check(&faults);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let mut faults = Vec::new();
    for path in files().iter().filter(|path| path.ends_with("/Cargo.toml")) {
        let text = read(path);
        if !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{path}: does not take the workspace's lints"));
        }
        for line in text.lines().filter(|line| line.contains("version = \"")) {
            faults.push(format!("{path}: version outside the workspace's table: {line}"));
        }
    }
    check(&faults);
}

#[test]
fn tests_do_not_sleep() {
    let mut faults = Vec::new();
    for (path, text) in rust_files() {
        for (index, line) in text.lines().enumerate() {
            if code(line).contains("thread::sleep") {
                faults.push(format!("{path}:{}: waits by sleeping", index + 1));
            }
        }
    }
    check(&faults);
}
