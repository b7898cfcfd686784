//! What the command line accepts, shows and refuses; commands against an address nobody serves.

use std::io::{self, Write};

use clap::{CommandFactory as _, Parser as _};

use super::{CliError, Command, CommandLine, ExitCode, finish, run};
use crate::config::{SETTINGS, variable_name};

fn parse(args: &[&str]) -> Result<CommandLine, clap::Error> {
    CommandLine::try_parse_from([&["kadring"], args].concat())
}

fn run_words(args: &[&str]) -> CliError {
    run([&["kadring"], args].concat().into_iter().map(Into::into)).unwrap_err()
}

#[test]
fn command_definition_is_sound() {
    CommandLine::command().debug_assert();
}

#[test]
fn help_shows_every_option_with_variable_and_default() {
    for mut command in
        [CommandLine::command(), CommandLine::command().find_subcommand("run").unwrap().clone()]
    {
        // A switch shows its value as one that may be left out.
        let help = command.render_long_help().to_string().replace("[=<", " <").replace(">]", ">");
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for setting in SETTINGS {
            for part in [
                format!("--{} <{}>", setting.flag, setting.value_name),
                format!("[default: {}]", setting.default_text()),
                format!("[env: {}]", variable_name(setting.key)),
            ] {
                assert!(words.contains(&part), "{part} is missing in {help}");
            }
        }
        for part in ["--config <FILE>", "--requirepass-file <FILE>", "Exit codes:"] {
            assert!(words.contains(part), "{part} is missing in {help}");
        }
        assert!(!words.contains("--requirepass <"), "a password does not belong on a command line");
    }
}

#[test]
fn every_subcommand_has_help() {
    for name in [
        "run", "get", "set", "del", "info", "check", "bench", "locate", "routes", "lookup",
        "nodes", "cluster",
    ] {
        let error = run_words(&[name, "--help"]);
        assert_eq!(error.exit_code(), ExitCode::Clean, "{name}");
    }
    assert_eq!(run_words(&["--version"]).exit_code(), ExitCode::Clean);
}

#[test]
fn bare_command_takes_the_flags_of_run() {
    let bare = parse(&["--shards", "4"]).unwrap();
    assert!(bare.command.is_none());
    assert_eq!(bare.run.get("shards"), Some("4".into()));
    let Some(Command::Run(flags)) = parse(&["run", "--shards=4"]).unwrap().command else {
        panic!("run is a command");
    };
    assert_eq!(flags.get("shards"), Some("4".into()));
    assert_eq!(flags.get("io"), None);
}

#[test]
fn wrong_arguments_are_usage_errors() {
    for args in [
        &["--nonsense"][..],
        &["frobnicate"],
        &["--shards"],
        &["--shards", "1", "--shards", "2"],
        &["--shards", "1", "run"],
        &["run", "extra"],
        &["run", "--shards", "many"],
        &["--client", "0.0.0.0:0"],
        &["--config", "/nonexistent/kadring.toml"],
        &["get"],
        &["del"],
        &["locate"],
        &["lookup"],
        &["nodes", "extra"],
        &["cluster"],
        &["cluster", "0"],
        &["cluster", "2", "--replicas", "3"],
        &["--admin", "localhost"],
        &["--admin", "0.0.0.0:0"],
        &["--admin-public=maybe"],
        &["set", "k"],
        &["set", "k", "v", "--expire-ms", "0"],
        &["get", "--client", "nowhere", "k"],
    ] {
        assert_eq!(run_words(args).exit_code(), ExitCode::Usage, "{args:?}");
    }
}

#[test]
fn keys_and_values_may_look_odd() {
    for args in [
        &["set", "k", "-"][..],
        &["set", "k", "-5"],
        &["set", "k", ""],
        &["set", "k", "v", "--expire-ms", "5"],
        &["set", "--expire-ms", "5", "k", "v"],
        &["set", "--", "--key", "--value"],
        &["get", "--", "--key"],
        &["get", "run"],
    ] {
        parse(args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    }
}

#[test]
fn no_node_has_its_own_exit_code_and_remedy() {
    // Port 1 of loopback: nobody listens there, and connecting is refused at once.
    for args in [
        &["get", "--client", "127.0.0.1:1", "k"][..],
        &["set", "--client", "127.0.0.1:1", "k", "v"],
        &["del", "--client", "127.0.0.1:1", "k"],
        &["info", "--client", "127.0.0.1:1"],
    ] {
        let error = run_words(args);
        assert_eq!(error.exit_code(), ExitCode::NodeUnreachable, "{error}");
        let line = error.to_string();
        assert!(line.starts_with("no node answers at 127.0.0.1:1: "), "{line}");
        assert!(line.contains("start one with `kadring run`"), "{line}");
    }
}

/// Accepts everything and fails at the flush, as a closed pipe behind a buffer does.
struct Closed(io::ErrorKind);

impl Write for Closed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn reader_that_goes_away_is_forgiven_and_a_full_disk_is_not() {
    finish(Ok(()), &mut Closed(io::ErrorKind::BrokenPipe)).unwrap();
    let error = finish(Ok(()), &mut Closed(io::ErrorKind::StorageFull)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Failure);
}

#[test]
fn damage_is_reported_even_when_nobody_reads_the_list() {
    let damage = super::DamageFound { findings_count: 1, repaired_count: 0 };
    let error = finish(Err(damage.into()), &mut Closed(io::ErrorKind::BrokenPipe)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::DamageFound);
}
