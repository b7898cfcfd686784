//! Writes an export file.

use std::io::{self, Write};

use super::{CHECK_KIND, END_KIND, HEADER, Sum};

/// A check follows after this many bytes.
const CHECK_EVERY_BYTES: u64 = 16 << 20;

/// What an export file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys.
    pub keys: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes keys as an export file.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    sum: Sum,
    checked_bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of `out`, here and below; the file is of no use after one.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, sum: Sum::default(), checked_bytes: 0 };
        writer.command(&[b"ECHO", HEADER.as_bytes()])?;
        Ok(writer)
    }

    /// Adds a key; `expiry_ms` is in ms since 1970, 0 = never.
    ///
    /// # Errors
    /// Those of the output.
    pub fn key(&mut self, user_key: &[u8], value: &[u8], expiry_ms: u64) -> io::Result<()> {
        self.sum.keys += 1;
        if expiry_ms == 0 {
            self.command(&[b"SET", user_key, value])?;
        } else {
            self.command(&[b"SET", user_key, value, b"PXAT", expiry_ms.to_string().as_bytes()])?;
        }
        if self.sum.bytes - self.checked_bytes >= CHECK_EVERY_BYTES {
            self.checked_bytes = self.sum.bytes;
            self.check(CHECK_KIND)?;
        }
        Ok(())
    }

    /// How much was written so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals { keys: self.sum.keys, bytes: self.sum.bytes }
    }

    /// Ends the file and flushes it.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        self.check(END_KIND)?;
        self.out.flush()?;
        let totals = self.totals();
        Ok((self.out, totals))
    }

    fn check(&mut self, kind: &str) -> io::Result<()> {
        let text = self.sum.text(kind);
        self.command(&[b"ECHO", text.as_bytes()])
    }

    fn command(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let (mut result, out, sum) = (Ok(()), &mut self.out, &mut self.sum);
        encode(words, |part| {
            if result.is_ok() {
                result = out.write_all(part);
                sum.add(part);
            }
        });
        result
    }
}

/// Calls `part` with the pieces of a command's encoding, in order.
fn encode(words: &[&[u8]], mut part: impl FnMut(&[u8])) {
    part(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        part(format!("${}\r\n", word.len()).as_bytes());
        part(word);
        part(b"\r\n");
    }
}
