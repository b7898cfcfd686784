//! Bencode, read without copying and written in canonical form (BEP 3, "bencoding").
//!
//! [`Reader`] walks over bytes from anyone: it never reads past them, never recurses deeper than
//! [`DEPTH_MAX`] and allocates nothing. Two kinds of bad input are told apart: what cannot be read
//! is an error; what can be read, but is not written as bencode prescribes (keys out of order or
//! repeated, leading zeros, minus zero), is only noted, since some clients send it and some
//! messages must refuse it (BEP 44).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

/// Lists and dictionaries within each other at most: KRPC needs four.
pub const DEPTH_MAX: u32 = 16;

/// Why bytes are no bencode, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// They end within a value.
    #[error("ends within a value")]
    Truncated,
    /// A byte that fits nothing, or a value of another kind than wanted.
    #[error("unexpected byte at {at}")]
    Unexpected {
        /// Offset in bytes.
        at: usize,
    },
    /// No number, or one that does not fit 64 bits.
    #[error("bad number at {at}")]
    Number {
        /// Offset in bytes.
        at: usize,
    },
    /// Too many lists and dictionaries within each other.
    #[error("nested deeper than {DEPTH_MAX} at {at}")]
    Depth {
        /// Offset in bytes.
        at: usize,
    },
    /// More follows after the value.
    #[error("more bytes after the value, at {at}")]
    Trailing {
        /// Offset in bytes.
        at: usize,
    },
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A byte string.
    Bytes,
    /// An integer.
    Integer,
    /// A list.
    List,
    /// A dictionary.
    Dictionary,
}

/// Reads bencode from the front.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    canonical: bool,
}

impl<'a> Reader<'a> {
    /// Reads `input`.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, canonical: true }
    }

    /// Tells whether all that was read so far is written as bencode prescribes.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// Returns what the next value is.
    ///
    /// # Errors
    /// [`BencodeError::Truncated`] at the end, [`BencodeError::Unexpected`] if no value begins.
    pub fn kind(&self) -> Result<Kind, BencodeError> {
        match self.peek()? {
            b'0'..=b'9' => Ok(Kind::Bytes),
            b'i' => Ok(Kind::Integer),
            b'l' => Ok(Kind::List),
            b'd' => Ok(Kind::Dictionary),
            _ => Err(self.unexpected()),
        }
    }

    /// Reads a byte string.
    ///
    /// # Errors
    /// It is none, is cut off, or has no sensible length.
    pub fn bytes(&mut self) -> Result<&'a [u8], BencodeError> {
        if self.kind()? != Kind::Bytes {
            return Err(self.unexpected());
        }
        let at = self.at;
        let digits = self.digits()?;
        self.expect(b':')?;
        let len = usize::try_from(digits).map_err(|_| BencodeError::Number { at })?;
        let end = self.at.checked_add(len).ok_or(BencodeError::Number { at })?;
        let bytes = self.input.get(self.at..end).ok_or(BencodeError::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    /// Reads an integer.
    ///
    /// # Errors
    /// It is none or does not fit.
    pub fn integer(&mut self) -> Result<i64, BencodeError> {
        self.expect(b'i')?;
        let at = self.at;
        let negative = self.peek()? == b'-';
        if negative {
            self.advance();
        }
        let digits = self.digits()?;
        self.expect(b'e')?;
        self.canonical &= !(negative && digits == 0);
        let value = if negative { i128::from(digits).checked_neg() } else { Some(digits.into()) };
        value.and_then(|value| i64::try_from(value).ok()).ok_or(BencodeError::Number { at })
    }

    /// Goes into a list; [`end`](Self::end) tells when it is over.
    ///
    /// # Errors
    /// The next value is none.
    pub fn list(&mut self) -> Result<(), BencodeError> {
        self.expect(b'l')
    }

    /// Goes into a dictionary; [`key`](Self::key) reads its keys.
    ///
    /// # Errors
    /// The next value is none.
    pub fn dictionary(&mut self) -> Result<Keys<'a>, BencodeError> {
        self.expect(b'd')?;
        Ok(Keys { last: None })
    }

    /// Tells whether the list or dictionary is over, and then leaves it.
    ///
    /// # Errors
    /// [`BencodeError::Truncated`] at the end of input.
    pub fn end(&mut self) -> Result<bool, BencodeError> {
        let over = self.peek()? == b'e';
        if over {
            self.advance();
        }
        Ok(over)
    }

    /// Reads the next key of a dictionary, or leaves it.
    ///
    /// # Errors
    /// A key is no byte string.
    pub fn key(&mut self, keys: &mut Keys<'a>) -> Result<Option<&'a [u8]>, BencodeError> {
        if self.end()? {
            return Ok(None);
        }
        let key = self.bytes()?;
        self.canonical &= keys.last.is_none_or(|last| last < key);
        keys.last = Some(key);
        Ok(Some(key))
    }

    /// Reads over a value of any kind and returns its bytes as they are.
    ///
    /// # Errors
    /// What stands there is no value.
    pub fn value(&mut self) -> Result<&'a [u8], BencodeError> {
        let start = self.at;
        self.skip(0)?;
        self.input.get(start..self.at).ok_or(BencodeError::Truncated)
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    /// [`BencodeError::Trailing`] if something does.
    pub fn finish(&self) -> Result<(), BencodeError> {
        if self.at == self.input.len() {
            return Ok(());
        }
        Err(BencodeError::Trailing { at: self.at })
    }

    fn skip(&mut self, depth: u32) -> Result<(), BencodeError> {
        if depth > DEPTH_MAX {
            return Err(BencodeError::Depth { at: self.at });
        }
        let deeper = depth.saturating_add(1);
        match self.kind()? {
            Kind::Bytes => self.bytes().map(drop),
            Kind::Integer => self.integer().map(drop),
            Kind::List => {
                self.list()?;
                while !self.end()? {
                    self.skip(deeper)?;
                }
                Ok(())
            }
            Kind::Dictionary => {
                let mut keys = self.dictionary()?;
                while self.key(&mut keys)?.is_some() {
                    self.skip(deeper)?;
                }
                Ok(())
            }
        }
    }

    fn digits(&mut self) -> Result<u64, BencodeError> {
        let start = self.at;
        let bad = BencodeError::Number { at: start };
        let mut number: u64 = 0;
        while let digit @ b'0'..=b'9' = self.peek()? {
            let digit = u64::from(digit.wrapping_sub(b'0'));
            number = number.checked_mul(10).and_then(|ten| ten.checked_add(digit)).ok_or(bad)?;
            self.advance();
        }
        let len = self.at.saturating_sub(start);
        if len == 0 {
            return Err(bad);
        }
        self.canonical &= len == 1 || self.input.get(start) != Some(&b'0');
        Ok(number)
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.input.get(self.at).copied().ok_or(BencodeError::Truncated)
    }

    fn expect(&mut self, byte: u8) -> Result<(), BencodeError> {
        if self.peek()? != byte {
            return Err(self.unexpected());
        }
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn unexpected(&self) -> BencodeError {
        BencodeError::Unexpected { at: self.at }
    }
}

/// The keys read so far of a dictionary.
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    last: Option<&'a [u8]>,
}

/// Writes bencode at the end of a buffer. The caller writes keys in order and closes what it opens.
#[derive(Debug)]
pub struct Writer<'a> {
    output: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Writes behind what `output` holds.
    pub fn new(output: &'a mut Vec<u8>) -> Self {
        Self { output }
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.digits(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.output.push(b':');
        self.output.extend_from_slice(bytes);
        self
    }

    /// Writes an integer.
    pub fn integer(&mut self, value: i64) -> &mut Self {
        self.output.push(b'i');
        if value < 0 {
            self.output.push(b'-');
        }
        self.digits(value.unsigned_abs());
        self.output.push(b'e');
        self
    }

    /// Begins a list.
    pub fn list(&mut self) -> &mut Self {
        self.output.push(b'l');
        self
    }

    /// Begins a dictionary.
    pub fn dictionary(&mut self) -> &mut Self {
        self.output.push(b'd');
        self
    }

    /// Ends a list or dictionary.
    pub fn end(&mut self) -> &mut Self {
        self.output.push(b'e');
        self
    }

    /// Writes a value that is bencode already.
    pub fn value(&mut self, encoded: &[u8]) -> &mut Self {
        self.output.extend_from_slice(encoded);
        self
    }

    fn digits(&mut self, number: u64) {
        // No number of 64 bits has more than 20 digits.
        let mut digits = [0_u8; 20];
        let mut rest = number;
        let mut count: usize = 0;
        for slot in digits.iter_mut().rev() {
            *slot = u8::try_from(rest.checked_rem(10).unwrap_or(0)).unwrap_or(0) | b'0';
            rest = rest.checked_div(10).unwrap_or(0);
            count = count.saturating_add(1);
            if rest == 0 {
                break;
            }
        }
        let start = digits.len().saturating_sub(count);
        self.output.extend_from_slice(digits.get(start..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::as_conversions,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "tests may panic"
    )]

    use super::*;
    use bt_bencode::Value;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn read(input: &[u8]) -> Result<bool, BencodeError> {
        let mut reader = Reader::new(input);
        reader.value()?;
        reader.finish()?;
        Ok(reader.is_canonical())
    }

    #[test]
    fn values_of_all_kinds_are_read() {
        let mut reader = Reader::new(b"d1:ai-7e1:bl0:3:xyzee");
        let mut keys = reader.dictionary().unwrap();
        assert_eq!(reader.key(&mut keys).unwrap(), Some(&b"a"[..]));
        assert_eq!(reader.integer(), Ok(-7));
        assert_eq!(reader.key(&mut keys).unwrap(), Some(&b"b"[..]));
        reader.list().unwrap();
        assert_eq!(reader.bytes(), Ok(&b""[..]));
        assert_eq!(reader.bytes(), Ok(&b"xyz"[..]));
        assert_eq!(reader.end(), Ok(true));
        assert_eq!(reader.key(&mut keys).unwrap(), None);
        assert_eq!(reader.finish(), Ok(()));
        assert!(reader.is_canonical());
    }

    #[test]
    fn what_is_not_canonical_is_noted_and_what_cannot_be_read_refused() {
        for (input, expected) in [
            (&b"i0e"[..], Ok(true)),
            (b"i-0e", Ok(false)),
            (b"i007e", Ok(false)),
            (b"03:abc", Ok(false)),
            (b"d1:ai1e1:bi2ee", Ok(true)),
            (b"d1:bi1e1:ai2ee", Ok(false)),
            (b"d1:ai1e1:ai2ee", Ok(false)),
            (b"i9223372036854775807e", Ok(true)),
            (b"i-9223372036854775808e", Ok(true)),
            (b"i9223372036854775808e", Err(BencodeError::Number { at: 1 })),
            (b"ie", Err(BencodeError::Number { at: 1 })),
            (b"i-e", Err(BencodeError::Number { at: 2 })),
            (b"99999999999999999999:", Err(BencodeError::Number { at: 0 })),
            (b"18446744073709551615:", Err(BencodeError::Number { at: 0 })),
            (b"4:abc", Err(BencodeError::Truncated)),
            (b"", Err(BencodeError::Truncated)),
            (b"l", Err(BencodeError::Truncated)),
            (b"di1ei2ee", Err(BencodeError::Unexpected { at: 1 })),
            (b"d1:ae", Err(BencodeError::Unexpected { at: 4 })),
            (b"x", Err(BencodeError::Unexpected { at: 0 })),
            (b"i1ei2e", Err(BencodeError::Trailing { at: 3 })),
        ] {
            assert_eq!(read(input), expected, "{}", input.escape_ascii());
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: u32| {
            let depth = depth as usize;
            [b"l".repeat(depth), b"e".repeat(depth)].concat()
        };
        assert_eq!(read(&nested(DEPTH_MAX + 1)), Ok(true));
        assert!(matches!(read(&nested(DEPTH_MAX + 2)), Err(BencodeError::Depth { .. })));
        assert!(matches!(read(&b"l".repeat(1 << 20)), Err(BencodeError::Depth { .. })));
    }

    fn values() -> impl Strategy<Value = Value> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            bytes().prop_map(|bytes| Value::ByteStr(bytes.into())),
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            let entries = prop::collection::btree_map(bytes(), inner.clone(), 0..6);
            prop_oneof![
                prop::collection::vec(inner, 0..6).prop_map(Value::List),
                entries.prop_map(|entries| {
                    let entries = entries.into_iter().map(|(key, value)| (key.into(), value));
                    Value::Dict(entries.collect::<BTreeMap<_, _>>())
                }),
            ]
        })
    }

    fn write(value: &Value, writer: &mut Writer<'_>) {
        match value {
            Value::ByteStr(bytes) => {
                writer.bytes(bytes);
            }
            Value::Int(_) => {
                writer.integer(value.as_i64().unwrap());
            }
            Value::List(list) => {
                writer.list();
                list.iter().for_each(|value| write(value, writer));
                writer.end();
            }
            Value::Dict(entries) => {
                writer.dictionary();
                for (key, value) in entries {
                    writer.bytes(key);
                    write(value, writer);
                }
                writer.end();
            }
        }
    }

    proptest! {
        #[test]
        fn we_write_what_the_library_writes_and_read_it_back(value in values()) {
            let mut ours = Vec::new();
            write(&value, &mut Writer::new(&mut ours));
            prop_assert_eq!(&ours, &bt_bencode::to_vec(&value).unwrap());
            prop_assert_eq!(read(&ours), Ok(true));
        }

        #[test]
        fn what_we_call_canonical_the_library_reads_and_writes_back(
            value in values(), flips in prop::collection::vec((any::<u16>(), any::<u8>()), 0..3)
        ) {
            let mut bytes = bt_bencode::to_vec(&value).unwrap();
            for (place, byte) in flips {
                let len = bytes.len();
                bytes[usize::from(place) % len] = byte;
            }
            if read(&bytes) == Ok(true) {
                let value: Value = bt_bencode::from_slice(&bytes).unwrap();
                prop_assert_eq!(bt_bencode::to_vec(&value).unwrap(), bytes);
            }
        }
    }
}
