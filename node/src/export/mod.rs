//! The export file: all keys of a node as commands of the Redis protocol, with checksums.
//!
//! Any Redis server takes such a file by `redis-cli --pipe`; `kadring import` checks it as well.
//!
//! | command | meaning |
//! |---|---|
//! | `ECHO "kadring-export 1"` | the first command: the file's kind and version |
//! | `SET key value [PXAT ms]` | a key, its value, and when it expires (ms since 1970) |
//! | `ECHO "kadring-check keys=N bytes=B crc32=H"` | keys and bytes before this command, and the CRC-32 of these bytes; after every 16 MiB |
//! | `ECHO "kadring-end keys=N bytes=B crc32=H"` | the same, as the last command |
//!
//! Every command is an array of bulk strings; numbers are decimal without leading zeros, `H` is
//! eight lower-case hexadecimal digits. Keys are in no particular order, each at most once.

mod reader;
mod transfer;
mod writer;

pub use reader::{FormatError, Item, Reader};
pub use transfer::{Progress, TransferError, export, import, verify};
pub use writer::{Totals, Writer};

/// The first command's text.
const HEADER: &str = "kadring-export 1";
const HEADER_KIND: &str = "kadring-export ";
const CHECK_KIND: &str = "kadring-check";
const END_KIND: &str = "kadring-end";

/// What was written or read so far.
#[derive(Clone, Debug, Default)]
struct Sum {
    keys: u64,
    bytes: u64,
    crc: crc32fast::Hasher,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc.update(bytes);
    }

    fn text(&self, kind: &str) -> String {
        let crc = self.crc.clone().finalize();
        format!("{kind} keys={} bytes={} crc32={crc:08x}", self.keys, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{FormatError, Item, Reader, Writer};
    use proptest::prelude::*;

    type OwnedKey = (Vec<u8>, Vec<u8>, u64);

    fn written(keys: &[OwnedKey]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        for (key, value, expiry_ms) in keys {
            writer.key(key, value, *expiry_ms).unwrap();
        }
        let (bytes, totals) = writer.finish().unwrap();
        assert_eq!(totals.keys, keys.len() as u64);
        assert_eq!(totals.bytes, bytes.len() as u64);
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<OwnedKey>, FormatError> {
        let (mut reader, mut keys) = (Reader::new(), Vec::new());
        for mut input in bytes.chunks(piece) {
            while let Some(item) = reader.next(&mut input)? {
                if let Item::Key { user_key, value, expiry_ms } = item {
                    keys.push((user_key.to_vec(), value.to_vec(), expiry_ms));
                }
            }
        }
        reader.finish().map(|_| keys)
    }

    fn sample() -> Vec<OwnedKey> {
        vec![
            (b"a".to_vec(), b"1".to_vec(), 0),
            (Vec::new(), Vec::new(), 1_800_000_000_000),
            (b"\r\n*1\r\n".to_vec(), vec![0xFF; 3000], 0),
        ]
    }

    #[test]
    fn empty_file_has_header_and_end() {
        let text = String::from_utf8(written(&[])).unwrap();
        let header = "*2\r\n$4\r\nECHO\r\n$16\r\nkadring-export 1\r\n";
        let crc = crc32fast::hash(header.as_bytes());
        let end = format!("kadring-end keys=0 bytes={} crc32={crc:08x}", header.len());
        assert_eq!(text, format!("{header}*2\r\n$4\r\nECHO\r\n${}\r\n{end}\r\n", end.len()));
    }

    #[test]
    fn long_files_are_checked_on_the_way() {
        let keys: Vec<OwnedKey> = (0u8..20).map(|key| (vec![key], vec![key; 1 << 20], 0)).collect();
        let bytes = written(&keys);
        let (mut reader, mut input, mut checks) = (Reader::new(), &bytes[..], 0);
        while let Some(item) = reader.next(&mut input).unwrap() {
            checks += u32::from(matches!(item, Item::Checked { .. }));
        }
        assert_eq!(checks, 3, "header, 16 MiB, end");
        assert_eq!(reader.finish().unwrap().keys, 20);
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let bytes = written(&sample());
        let end = bytes.windows(4).rposition(|window| window == b"*2\r\n").unwrap();
        for position in 0..bytes.len() {
            for flip in [1, 0x20, 0x80] {
                let mut damaged = bytes.clone();
                damaged[position] ^= flip;
                // Line ends of the last command are covered by nothing and carry nothing.
                if let Ok(keys) = read(&damaged, 512) {
                    assert!(position >= end && keys == sample(), "flip {flip} at {position}");
                }
            }
            assert!(read(&bytes[..position], 512).is_err(), "cut at {position}");
        }
        let more = [&bytes[..], b"PING\r\n"].concat();
        assert!(matches!(read(&more, 512), Err(FormatError::AfterEnd { .. })));
    }

    #[test]
    fn other_files_and_newer_versions_are_told_apart() {
        let newer = b"*2\r\n$4\r\nECHO\r\n$16\r\nkadring-export 2\r\n";
        assert!(matches!(read(newer, 9), Err(FormatError::Version { .. })));
        for other in [&b"REDIS0011\xfa\r\n"[..], b"*1\r\n$4\r\nPING\r\n", b"{}\n"] {
            assert!(matches!(read(other, 4), Err(FormatError::NotAnExport)));
        }
    }

    proptest! {
        #[test]
        fn any_keys_round_trip_in_pieces_of_any_size(
            keys in proptest::collection::vec(
                (
                    proptest::collection::vec(any::<u8>(), 0..20),
                    proptest::collection::vec(any::<u8>(), 0..300),
                    0u64..3,
                ),
                0..20,
            ),
            piece in 1usize..400,
        ) {
            prop_assert_eq!(read(&written(&keys), piece).unwrap(), keys);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(read(&bytes, 50));
            let start = written(&[]);
            drop(read(&[&start[..40], &bytes].concat(), 50));
        }
    }
}
