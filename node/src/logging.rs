//! Logs to stderr as text or JSON; stdout carries the readiness line and command output alone.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one; [`Config::validate`](crate::config::Config::validate) refuses it.
    #[error("the log filter `{0}` is not valid")]
    Filter(String),
    /// This process has set up its logs before.
    #[error("logs are set up already")]
    Twice(#[source] TryInitError),
}

/// Sends the process' events to stderr as `config` asks, from now on.
///
/// Text is coloured on a terminal only, and never when `NO_COLOR` is set. A stderr that cannot be
/// written to loses events and nothing else.
///
/// # Errors
/// [`LogError::Filter`] for a filter that [`parse_filter`] refuses, [`LogError::Twice`] on a second
/// call in one process.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter =
        parse_filter(&config.filter).ok_or_else(|| LogError::Filter(config.filter.clone()))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // Reporting a failed write to stderr means writing to stderr, which panics: a node must not die
    // because its log reader did.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .log_internal_errors(false);
    let result = match config.format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().finish().try_init(),
    };
    result.map_err(LogError::Twice)
}

/// Reads a filter such as `info` or `info,kadring::io=debug`.
///
/// Stricter than the library, for which a misspelt level is the name of a module: here a part
/// without `=` must be a level, and spans cannot be named.
pub fn parse_filter(text: &str) -> Option<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let is_sound = |part: &str| match part.rsplit_once('=') {
        Some((target, level)) => !target.is_empty() && is_level(level),
        None => is_level(part),
    };
    if !text.split(',').all(is_sound) {
        return None;
    }
    EnvFilter::builder().parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::parse_filter;

    #[test]
    fn levels_and_module_levels_are_accepted() {
        for text in ["info", "OFF", "warn,kadring::io=debug", "kadring=trace"] {
            assert!(parse_filter(text).is_some(), "{text}");
        }
    }

    #[test]
    fn misspelt_levels_are_refused_rather_than_silencing_the_node() {
        for text in ["", "inof", "info,", "kadring=loud", "=debug", "info warn", "kadring"] {
            assert!(parse_filter(text).is_none(), "{text:?}");
        }
    }
}
