//! The flags of `kadring run`, made from the table of settings, so that help, names and defaults
//! cannot drift from what is accepted.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{SETTINGS, YES_OR_NO, variable_name};

/// The flags given, by key of their setting.
#[derive(Clone, Debug, Default)]
pub(super) struct RunFlags(BTreeMap<&'static str, OsString>);

impl RunFlags {
    /// The value given for `key`.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        self.0.get(key).cloned()
    }
}

struct Flag {
    key: &'static str,
    long: &'static str,
    value_name: &'static str,
    help: String,
}

/// All flags in the order of the help text: the file, the settings, the password.
fn flags() -> impl Iterator<Item = Flag> {
    let config = Flag {
        key: "config",
        long: "config",
        value_name: "FILE",
        help: "Configuration file in TOML, with a key for every option".to_owned(),
    };
    let settings = SETTINGS.iter().map(|setting| Flag {
        key: setting.key,
        long: setting.flag,
        value_name: setting.value_name,
        help: format!("{} [default: {}]", setting.help, setting.default_text()),
    });
    let password = Flag {
        key: "requirepass_file",
        long: "requirepass-file",
        value_name: "FILE",
        help: "File whose one line is the password that clients must give; the password itself \
               goes into KADRING_REQUIREPASS or the configuration file, never on the command line"
            .to_owned(),
    };
    [config].into_iter().chain(settings).chain([password])
}

/// Nodes to join may be named one by one.
fn action_of(key: &str) -> ArgAction {
    if key == "bootstrap" { ArgAction::Append } else { ArgAction::Set }
}

impl clap::Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        flags().fold(command, |command, flag| {
            let help = format!("{} [env: {}]", flag.help, variable_name(flag.key));
            let arg = Arg::new(flag.key)
                .long(flag.long)
                .value_name(flag.value_name)
                .value_parser(clap::value_parser!(OsString))
                .allow_hyphen_values(false)
                .action(action_of(flag.key))
                .help(help);
            let is_switch = flag.value_name == YES_OR_NO;
            command.arg(if is_switch {
                arg.num_args(0..=1).require_equals(true).default_missing_value("yes")
            } else {
                arg
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |flag: Flag| {
            let given: Vec<&OsString> = matches.get_many(flag.key)?.collect();
            // Only what may be given more than once is.
            Some((flag.key, given.into_iter().cloned().collect::<Vec<_>>().join(OsStr::new(","))))
        };
        Ok(Self(flags().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
