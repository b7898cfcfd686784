//! Reads and checks an export file.

use wal::record::VALUE_LEN_MAX;

use super::{CHECK_KIND, END_KIND, HEADER, HEADER_KIND, Sum, Totals};
use crate::resp::frame::{Arguments, Parsed, Parser, ParserLimits};

/// Longest line and most words of a command that a sound file has.
const LINE_BYTES_MAX: usize = 128;
const WORDS_MAX: usize = 5;

/// Why a file is not, or no longer, a sound export file. Positions are bytes from its start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not start like one.
    #[error("this is no export file")]
    NotAnExport,
    /// A version this program does not know.
    #[error("export file of version {found:?}, this program knows version 1")]
    Version {
        /// What stands for the version.
        found: String,
    },
    /// Something other than the commands of an export file.
    #[error("no valid command at byte {position}")]
    Command {
        /// Where.
        position: u64,
    },
    /// Counts or checksum do not match.
    #[error("damaged before byte {position}: it says {expected:?}, {found:?} was read")]
    Check {
        /// Where the check stands.
        position: u64,
        /// What the file says.
        expected: String,
        /// What was read.
        found: String,
    },
    /// The file ends early.
    #[error("cut off after byte {position}")]
    Truncated {
        /// Where the last whole command ends.
        position: u64,
    },
    /// Bytes after the last command.
    #[error("stray bytes after the end at byte {position}")]
    AfterEnd {
        /// Where.
        position: u64,
    },
}

/// A piece of an export file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A key. It is known to be sound only after the next check.
    Key {
        /// The user key.
        user_key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// Milliseconds since 1970, 0 = never.
        expiry_ms: u64,
    },
    /// Everything so far is sound.
    Checked {
        /// Keys so far.
        keys: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Keys,
    End,
}

/// Takes an export file in pieces of any size.
#[derive(Debug)]
pub struct Reader {
    parser: Parser,
    /// Whole commands.
    sum: Sum,
    /// All bytes, the start of the next command included.
    taken: Sum,
    stage: Stage,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// Begins at the start of a file.
    #[must_use]
    pub fn new() -> Self {
        let mut parser = Parser::new(ParserLimits {
            arguments_max: WORDS_MAX,
            bulk_bytes_max: VALUE_LEN_MAX,
            bulk_bytes_declared_max: VALUE_LEN_MAX,
            inline_bytes_max: LINE_BYTES_MAX,
            ..ParserLimits::default()
        });
        parser.set_authenticated(true);
        let (sum, taken) = (Sum::default(), Sum::default());
        Self { parser, sum, taken, stage: Stage::Start }
    }

    /// Takes the next item out of `input`, which it shortens; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FormatError`]; nothing after it can be trusted.
    pub fn next<'p, 'i: 'p>(
        &'p mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Item<'p>>, FormatError> {
        let position = self.sum.bytes;
        if self.stage == Stage::End {
            let stray = !input.is_empty();
            return if stray { Err(FormatError::AfterEnd { position }) } else { Ok(None) };
        }
        let bad = match self.stage {
            Stage::Start => FormatError::NotAnExport,
            Stage::Keys | Stage::End => FormatError::Command { position },
        };
        let given = *input;
        let parsed = self.parser.next(input);
        // As they stand in the file: the parser is more lenient than the format.
        self.taken.add(given.get(..given.len() - input.len()).unwrap_or_default());
        match parsed {
            Parsed::Incomplete => Ok(None),
            Parsed::TooLarge(_) | Parsed::Error(_) => Err(bad),
            Parsed::Command(words) => {
                let item = take(&mut self.sum, &mut self.stage, words);
                let item = item.map_err(|error| error.unwrap_or(bad))?;
                self.sum = Sum { keys: self.sum.keys, ..self.taken.clone() };
                Ok(Some(item))
            }
        }
    }

    /// How much was read, as far as whole commands go.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals { keys: self.sum.keys, bytes: self.sum.bytes }
    }

    /// Says how much was read, after all bytes have been given.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] or [`FormatError::NotAnExport`] if the end was not among them.
    pub fn finish(&self) -> Result<Totals, FormatError> {
        let (keys, bytes) = (self.sum.keys, self.sum.bytes);
        match self.stage {
            Stage::Start => Err(FormatError::NotAnExport),
            Stage::Keys => Err(FormatError::Truncated { position: bytes }),
            Stage::End => Ok(Totals { keys, bytes }),
        }
    }
}

/// Takes a command; an error of `None` is one that only the caller can name.
fn take<'a>(
    sum: &mut Sum,
    stage: &mut Stage,
    command: Arguments<'a>,
) -> Result<Item<'a>, Option<FormatError>> {
    let position = sum.bytes;
    let words: Vec<&[u8]> = command.iter().collect();
    let item = match words[..] {
        [b"ECHO", text] => {
            let text = std::str::from_utf8(text).map_err(|_| None)?;
            echo(sum, stage, text, position)?
        }
        _ if *stage != Stage::Keys => return Err(None),
        [b"SET", user_key, value] => Item::Key { user_key, value, expiry_ms: 0 },
        [b"SET", user_key, value, b"PXAT", expiry] => {
            let expiry = std::str::from_utf8(expiry).ok().and_then(|text| text.parse().ok());
            Item::Key { user_key, value, expiry_ms: expiry.filter(|ms| *ms > 0).ok_or(None)? }
        }
        _ => return Err(None),
    };
    sum.keys += u64::from(matches!(item, Item::Key { .. }));
    Ok(item)
}

fn echo<'a>(
    sum: &Sum,
    stage: &mut Stage,
    text: &str,
    position: u64,
) -> Result<Item<'a>, Option<FormatError>> {
    if *stage == Stage::Start {
        return match text.strip_prefix(HEADER_KIND) {
            _ if text == HEADER => {
                *stage = Stage::Keys;
                Ok(Item::Checked { keys: 0 })
            }
            Some(version) => Err(Some(FormatError::Version { found: version.to_owned() })),
            None => Err(None),
        };
    }
    let kind = text.split(' ').next().unwrap_or_default();
    if kind != CHECK_KIND && kind != END_KIND {
        return Err(None);
    }
    let found = sum.text(kind);
    if found != text {
        return Err(Some(FormatError::Check { position, expected: text.to_owned(), found }));
    }
    if kind == END_KIND {
        *stage = Stage::End;
    }
    Ok(Item::Checked { keys: sum.keys })
}
