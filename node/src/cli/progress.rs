//! Progress bars on stderr, if that is a terminal.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes; `total` is how many there will be, if that is known. `what` counts beside
/// them, by [`ProgressBar::set_message`].
pub(super) fn progress_bar(total: Option<u64>, what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match total {
        Some(_) => format!("{{bar:40}} {{bytes}} of {{total_bytes}}{what}, {{eta}} left"),
        None => format!("{{spinner}} {{bytes}}{what}, {{elapsed}}"),
    };
    let style = ProgressStyle::with_template(&template).expect("the templates are well formed");
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style)
}

/// A bar over milliseconds of time that is known ahead, or else over a number of things.
pub(super) fn time_bar(total: Option<Duration>, what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match total {
        Some(_) => format!("{{bar:40}} {{elapsed}} {{msg}}{what}"),
        None => format!("{{spinner}} {what} {{pos}}, {{elapsed}}"),
    };
    let style = ProgressStyle::with_template(&template).expect("the templates are well formed");
    let len = total.map(|total| u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
    ProgressBar::with_draw_target(len, ProgressDrawTarget::stderr()).with_style(style)
}
