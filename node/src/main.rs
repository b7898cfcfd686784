//! The `kadring` binary: runs the command line, prints how it failed, chooses the exit code.

use std::io::Write as _;
use std::process;

use kadring::cli::{self, CliError, ExitCode};

fn main() -> process::ExitCode {
    let Err(error) = cli::run(std::env::args_os()) else {
        return ExitCode::Clean.into();
    };
    // A closed stderr or stdout must not turn the exit code into a panic.
    let _ = match &error {
        CliError::Arguments(error) => error.print(),
        other => {
            let line = other.to_string().replace(['\n', '\r'], " ");
            writeln!(std::io::stderr(), "kadring: {line}")
        }
    };
    error.exit_code().into()
}
