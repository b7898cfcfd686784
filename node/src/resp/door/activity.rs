//! [`Activity`]: which commands the clients give, and how long they wait for replies.

use std::ops::AddAssign;

use crate::histogram::Histogram;
use crate::resp::command::{COMMANDS, CommandSpec};

/// What kind of command it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CommandKind {
    Read,
    Write,
    /// It has no key.
    #[default]
    Other,
}

/// The kinds and their names.
pub(super) const COMMAND_KINDS: [(CommandKind, &str); 3] =
    [(CommandKind::Read, "read"), (CommandKind::Write, "write"), (CommandKind::Other, "other")];

impl CommandKind {
    fn of(spec: &CommandSpec) -> Self {
        let has_key = spec.keys.first != 0;
        match spec.flags {
            flags if flags.contains(&"write") => Self::Write,
            _ if has_key => Self::Read,
            _ => Self::Other,
        }
    }
}

/// All commands and subcommands.
fn specs() -> impl Iterator<Item = &'static CommandSpec> {
    COMMANDS.iter().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
}

/// What the clients of a thread do. That of several threads can be added.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity {
    /// By id of the command: commands executed.
    commands: Vec<u64>,
    kinds: Vec<CommandKind>,
    /// By kind: from the first bytes received until nothing was left to be answered.
    waits: [Histogram; COMMAND_KINDS.len()],
}

impl Activity {
    pub(super) fn new() -> Self {
        let len = specs().map(|spec| spec.id as usize + 1).max().unwrap_or(0);
        let mut kinds = vec![CommandKind::Other; len];
        specs().for_each(|spec| kinds[spec.id as usize] = CommandKind::of(spec));
        Self { commands: vec![0; len], kinds, waits: Default::default() }
    }

    /// Counts a command; says of what kind it is.
    pub(super) fn note_command(&mut self, spec: &CommandSpec) -> CommandKind {
        self.commands[spec.id as usize] += 1;
        self.kinds[spec.id as usize]
    }

    /// Counts how long a client has waited, whose last command was of this kind.
    pub(super) fn note_wait(&mut self, kind: CommandKind, ns: u64) {
        self.waits[kind as usize].record(ns);
    }

    /// How often each command was executed, by its name.
    pub(super) fn commands(&self) -> impl Iterator<Item = (&'static str, u64)> {
        specs().map(|spec| (spec.name, self.commands.get(spec.id as usize).copied().unwrap_or(0)))
    }

    /// How long clients have waited, by kind of command.
    pub(super) fn waits(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        COMMAND_KINDS.iter().map(|(kind, name)| (*name, &self.waits[*kind as usize]))
    }
}

impl AddAssign<&Self> for Activity {
    fn add_assign(&mut self, other: &Self) {
        if self.commands.is_empty() {
            self.clone_from(other);
            return;
        }
        self.commands.iter_mut().zip(&other.commands).for_each(|(sum, more)| *sum += more);
        self.waits.iter_mut().zip(&other.waits).for_each(|(sum, more)| *sum += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> &'static CommandSpec {
        specs().find(|spec| spec.name == name).unwrap()
    }

    #[test]
    fn commands_have_names_and_kinds_of_their_own() {
        let mut activity = Activity::new();
        let kinds = [
            ("get", CommandKind::Read),
            ("set", CommandKind::Write),
            ("ping", CommandKind::Other),
            ("client|id", CommandKind::Other),
        ];
        for (name, kind) in kinds {
            assert_eq!(activity.note_command(spec(name)), kind, "{name}");
        }
        activity.note_wait(CommandKind::Write, 5);
        let mut sum = Activity::default();
        sum += &activity;
        sum += &activity;
        for (name, count) in sum.commands() {
            let expected = if kinds.iter().any(|(known, _)| *known == name) { 2 } else { 0 };
            assert_eq!(count, expected, "{name}");
        }
        let waits: Vec<_> = sum.waits().map(|(name, waits)| (name, waits.count())).collect();
        assert_eq!(waits, [("read", 0), ("write", 2), ("other", 0)]);
    }
}
