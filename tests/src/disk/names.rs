//! The names of the simulated disk: directories, entries, and the entry operations that no
//! directory sync has made durable yet.

use std::collections::{BTreeMap, BTreeSet};

use wal::disk::{DiskErrorKind, FileName};

use super::crash::Choices;
use crate::tally::Occurrence;

/// A file, whatever its names; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InodeId(pub(super) u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Change {
    MakeDirectory(FileName),
    Create(FileName, InodeId),
    Rename(FileName, FileName, InodeId),
    Remove(FileName, InodeId),
    RemoveDirectory(FileName),
}

impl Change {
    /// The directory whose sync makes this change durable.
    fn directory(&self) -> FileName {
        match self {
            Self::MakeDirectory(name)
            | Self::Create(name, _)
            | Self::Rename(name, ..)
            | Self::Remove(name, _)
            | Self::RemoveDirectory(name) => name.parent(),
        }
    }

    /// What it is called when it is lost.
    fn loss(&self) -> Occurrence {
        match self {
            Self::MakeDirectory(_) | Self::Create(..) => Occurrence::LostEntry,
            Self::Rename(..) => Occurrence::LostRename,
            Self::Remove(..) | Self::RemoveDirectory(_) => Occurrence::LostRemoval,
        }
    }

    fn inode(&self) -> Option<InodeId> {
        match self {
            Self::MakeDirectory(_) | Self::RemoveDirectory(_) => None,
            Self::Create(_, inode) | Self::Rename(_, _, inode) | Self::Remove(_, inode) => {
                Some(*inode)
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Tree {
    directories: BTreeSet<FileName>,
    files: BTreeMap<FileName, InodeId>,
}

impl Tree {
    /// Whether `change` can follow what this tree has kept: its source is there, its name free.
    fn admits(&self, change: &Change) -> bool {
        match change {
            Change::MakeDirectory(_) => true,
            Change::Create(name, _) => !self.files.contains_key(name),
            Change::Rename(from, _, inode) => self.files.get(from) == Some(inode),
            Change::Remove(name, inode) => self.files.get(name) == Some(inode),
            Change::RemoveDirectory(name) => self.is_empty_directory(name),
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::MakeDirectory(name) => {
                self.directories.insert(name.clone());
            }
            Change::Create(name, inode) => {
                self.files.insert(name.clone(), *inode);
            }
            Change::Rename(from, to, inode) => {
                self.files.remove(from);
                self.files.insert(to.clone(), *inode);
            }
            Change::Remove(name, _) => {
                self.files.remove(name);
            }
            Change::RemoveDirectory(name) => {
                // What was removed from it before, and not synced, goes with it. Files of other
                // directories stay, also of those that are not durable themselves yet.
                self.directories.retain(|other| !is_below(other, name));
                self.files.retain(|file, _| !is_below(&file.parent(), name));
            }
        }
    }

    fn is_empty_directory(&self, name: &FileName) -> bool {
        let mut names = self.files.keys().chain(&self.directories);
        self.directories.contains(name) && names.all(|inside| inside.parent() != *name)
    }

    fn has_directory(&self, name: &FileName) -> bool {
        name.as_str().is_empty()
            || (self.directories.contains(name) && self.has_directory(&name.parent()))
    }

    /// Drops what lies in directories that are not there.
    fn prune(&mut self) {
        let whole = self.clone();
        self.directories.retain(|name| whole.has_directory(name));
        self.files.retain(|name, _| whole.has_directory(&name.parent()));
    }
}

/// Whether a directory is another one or lies in it.
fn is_below(directory: &FileName, above: &FileName) -> bool {
    let mut at = directory.clone();
    while !at.as_str().is_empty() && at != *above {
        at = at.parent();
    }
    at == *above
}

/// Every name on the disk.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Names {
    running: Tree,
    durable: Tree,
    /// Completion number and change, in completion order.
    pending: Vec<(u64, Change)>,
}

impl Names {
    pub(super) fn inode(&self, name: &FileName) -> Option<InodeId> {
        self.running.files.get(name).copied()
    }

    pub(super) fn durable_inode(&self, name: &FileName) -> Option<InodeId> {
        let inode = self.durable.files.get(name).copied();
        inode.filter(|_| self.durable.has_directory(&name.parent()))
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&FileName, InodeId)> {
        self.running.files.iter().map(|(name, inode)| (name, *inode))
    }

    /// The files of a directory.
    pub(super) fn list(&self, name: &FileName) -> Result<Vec<(String, InodeId)>, DiskErrorKind> {
        self.require_directory(name)?;
        let inside = self.files().filter(|(file, _)| file.parent() == *name);
        let entry = |file: &FileName| {
            file.as_str().rsplit_once('/').map_or(file.as_str(), |(_, last)| last).to_owned()
        };
        Ok(inside.map(|(file, inode)| (entry(file), inode)).collect())
    }

    pub(super) fn make_directory(
        &mut self,
        number: u64,
        name: &FileName,
    ) -> Result<(), DiskErrorKind> {
        self.require_directory(&name.parent())?;
        if !self.running.has_directory(name) {
            self.change(number, Change::MakeDirectory(name.clone()));
        }
        Ok(())
    }

    /// Enters a new file.
    pub(super) fn create(
        &mut self,
        number: u64,
        name: &FileName,
        inode: InodeId,
    ) -> Result<(), DiskErrorKind> {
        self.require_directory(&name.parent())?;
        self.change(number, Change::Create(name.clone(), inode));
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        number: u64,
        from: &FileName,
        to: &FileName,
    ) -> Result<(), DiskErrorKind> {
        let inode = self.inode(from).ok_or(DiskErrorKind::NotFound)?;
        // Two names of one file are left as they are, as rename(2) says.
        if self.inode(to) != Some(inode) {
            self.change(number, Change::Rename(from.clone(), to.clone(), inode));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, number: u64, name: &FileName) -> Result<(), DiskErrorKind> {
        let inode = self.inode(name).ok_or(DiskErrorKind::NotFound)?;
        self.change(number, Change::Remove(name.clone(), inode));
        Ok(())
    }

    /// Gives a file a second name.
    pub(super) fn link(
        &mut self,
        number: u64,
        from: &FileName,
        to: &FileName,
    ) -> Result<(), DiskErrorKind> {
        let inode = self.inode(from).ok_or(DiskErrorKind::NotFound)?;
        self.require_directory(&to.parent())?;
        if self.inode(to).is_some() || self.running.has_directory(to) {
            return Err(DiskErrorKind::Io);
        }
        self.change(number, Change::Create(to.clone(), inode));
        Ok(())
    }

    pub(super) fn remove_directory(
        &mut self,
        number: u64,
        name: &FileName,
    ) -> Result<(), DiskErrorKind> {
        if self.inode(name).is_some() {
            return Err(DiskErrorKind::Io);
        }
        self.require_directory(name)?;
        if !self.running.is_empty_directory(name) {
            return Err(DiskErrorKind::Io);
        }
        self.change(number, Change::RemoveDirectory(name.clone()));
        Ok(())
    }

    /// Makes durable what happened in directory `name` before `covers`.
    pub(super) fn sync(&mut self, name: &FileName, covers: u64) -> Result<(), DiskErrorKind> {
        self.require_directory(name)?;
        let durable = &mut self.durable;
        let mut removed = Vec::new();
        self.pending.retain(|(number, change)| {
            let covered = *number < covers && change.directory() == *name;
            if covered {
                durable.apply(change);
                if let Change::RemoveDirectory(directory) = change {
                    removed.push((directory.clone(), *number));
                }
            }
            !covered
        });
        // A directory made later under that name does not inherit what was pending in it.
        self.pending.retain(|(number, change)| {
            let inside = |directory: &FileName| is_below(&change.directory(), directory);
            !removed.iter().any(|(directory, end)| number < end && inside(directory))
        });
        Ok(())
    }

    /// Enters a durable file, as if it had always been there.
    pub(super) fn plant(&mut self, name: &FileName, inode: InodeId) {
        for tree in [&mut self.running, &mut self.durable] {
            let mut directory = name.parent();
            while !directory.as_str().is_empty() {
                tree.directories.insert(directory.clone());
                directory = directory.parent();
            }
            tree.files.insert(name.clone(), inode);
        }
    }

    /// Number of yes-or-no questions that a power loss asks about the names, at most.
    pub(super) fn questions(&self) -> usize {
        self.pending.len()
    }

    /// The names as a power loss leaves them. A change whose precondition was lost is lost too.
    pub(super) fn after_power_loss(&self, choices: &mut Choices<'_>) -> Self {
        let mut tree = self.durable.clone();
        let mut broken = BTreeSet::new();
        for (_, change) in &self.pending {
            let cut = choices.keeps_name_order() && broken.contains(&change.directory());
            if !cut && tree.admits(change) && choices.keeps_name() {
                tree.apply(change);
            } else {
                choices.note(change.loss());
                broken.insert(change.directory());
            }
        }
        tree.prune();
        Self { running: tree.clone(), durable: tree, pending: Vec::new() }
    }

    /// Whether some name, durable or not, may still lead to the file.
    pub(super) fn may_reach(&self) -> BTreeSet<InodeId> {
        let trees = [&self.running, &self.durable].into_iter();
        let named = trees.flat_map(|tree| tree.files.values().copied());
        named.chain(self.pending.iter().filter_map(|(_, change)| change.inode())).collect()
    }

    fn require_directory(&self, name: &FileName) -> Result<(), DiskErrorKind> {
        let found = self.running.has_directory(name);
        if found { Ok(()) } else { Err(DiskErrorKind::NotFound) }
    }

    fn change(&mut self, number: u64, change: Change) {
        self.running.apply(&change);
        self.pending.push((number, change));
    }
}
