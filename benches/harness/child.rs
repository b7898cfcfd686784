//! Runs the bench once more as a process of its own, for what only a fresh process can tell:
//! resident memory, time since the start.

use serde_json::Value;
use std::error::Error;
use std::process::{Command, Stdio};

/// Starts this executable with these arguments, waits for its end and returns what its last line
/// says in JSON.
///
/// # Errors
/// If it fails, or its last line is no JSON.
pub fn run_again(arguments: &[String]) -> Result<Value, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(arguments).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("child {}: {}", arguments.join(" "), output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.lines().last().unwrap_or_default())?)
}

/// Takes a number out of what a child says.
///
/// # Errors
/// If it is not there.
pub fn number(said: &Value, name: &str) -> Result<f64, String> {
    said[name].as_f64().ok_or_else(|| format!("the child says nothing of {name}"))
}
