//! [`WaitLedger`]: what WAIT answers on one connection.

use std::collections::BTreeMap;

use super::CommandId;

/// Durable copies of the connection's writes that are not yet everywhere.
#[derive(Clone, Debug, Default)]
pub struct WaitLedger {
    copies: BTreeMap<CommandId, usize>,
}

impl WaitLedger {
    /// Notes how many copies a write has. `is_last` if there will be no more: then only the least
    /// such number is kept.
    pub fn note(&mut self, command: CommandId, copies: usize, is_last: bool) {
        if is_last {
            self.copies.remove(&command);
            let least = self.copies.entry(CommandId(0)).or_insert(copies);
            *least = copies.min(*least);
        } else {
            self.copies.insert(command, copies);
        }
    }

    /// The fewest copies of an earlier write without the first; nothing if there was no write.
    #[must_use]
    pub fn replicas(&self) -> Option<usize> {
        self.copies.values().min().map(|copies| copies.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_write_with_the_fewest_copies_counts() {
        let mut ledger = WaitLedger::default();
        assert_eq!(ledger.replicas(), None);
        ledger.note(CommandId(1), 2, false);
        ledger.note(CommandId(2), 3, true);
        assert_eq!(ledger.replicas(), Some(1));
        ledger.note(CommandId(1), 3, true);
        assert_eq!(ledger.replicas(), Some(2));
        ledger.note(CommandId(3), 2, true);
        assert_eq!(ledger.replicas(), Some(1));
    }
}
