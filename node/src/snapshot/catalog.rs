//! A snapshot's catalog: a TOML file that names its files, their lengths and checksums.

use std::fmt::Write as _;

use storage::{FileContent, FileTail};
use wal::disk::BLOCK_SIZE;

/// Its name in the snapshot's directory.
pub const CATALOG_FILE: &str = "catalog.toml";
/// The version of its format.
const FORMAT: i64 = 1;
/// Starts the last line, which checks all lines before it.
const CHECK_KIND: &str = "# crc32 ";
/// Longest id in bytes.
const SNAPSHOT_ID_LEN_MAX: usize = 64;

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogFile {
    /// Its path in the snapshot's directory.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
    /// What of these means something; the rest is unused space.
    pub content: FileContent,
}

impl CatalogFile {
    /// Bytes that mean something.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let tail = self.content.tail.map_or(0, |tail| self.len.saturating_sub(tail.offset));
        self.content.used.saturating_add(tail)
    }
}

/// What belongs to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// The snapshot's name.
    pub id: String,
    /// When it was taken, in ms since 1970.
    pub created_ms: u64,
    /// The store's uuid.
    pub store: [u8; 16],
    /// Its files, catalog not included.
    pub files: Vec<CatalogFile>,
}

/// Why a catalog cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The last line does not match the lines before.
    #[error("damaged or cut off: its checksum does not match")]
    Checksum,
    /// It is whole, but says something else than a catalog does.
    #[error("{what} is missing or malformed")]
    Malformed {
        /// What is.
        what: &'static str,
    },
    /// A version this program does not know.
    #[error("of format {found}, this program knows format {FORMAT}")]
    Version {
        /// The version found.
        found: i64,
    },
}

/// Whether a snapshot may be called so: up to 64 letters, digits, `-`, `_` and `.`, no `.` first.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=SNAPSHOT_ID_LEN_MAX).contains(&id.len()) && id.bytes().all(plain) && !id.starts_with('.')
}

impl Catalog {
    /// Writes the catalog as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let store =
            self.store.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let Self { id, created_ms, .. } = self;
        let mut line = |line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("writing to a string does not fail");
        };
        line(format_args!("format = {FORMAT}\nid = \"{id}\"\ncreated_ms = {created_ms}\n"));
        line(format_args!("store = \"{store}\"\n"));
        for CatalogFile { name, len, content } in &self.files {
            let FileContent { used, crc32, tail } = content;
            line(format_args!("\n[[file]]\nname = \"{name}\"\nlen = {len}\nused = {used}\n"));
            line(format_args!("crc32 = \"{crc32:08x}\"\n"));
            if let Some(FileTail { offset, crc32 }) = tail {
                line(format_args!("tail = {offset}\ntail_crc32 = \"{crc32:08x}\"\n"));
            }
        }
        sealed(text)
    }

    /// As [`Catalog::encode`], with a comment that makes it as long as whole blocks of the disk.
    #[must_use]
    pub fn encode_blocks(&self) -> String {
        let text = self.encode();
        let missing = text.len().next_multiple_of(BLOCK_SIZE) - text.len();
        let Some((body, _)) = text.rsplit_once(CHECK_KIND) else { return text };
        let filler = match missing {
            0 => String::new(),
            1 => "\n".to_owned(),
            _ => format!("#{:1$}\n", "", missing - 2),
        };
        sealed(body.to_owned() + &filler)
    }

    /// Reads a catalog.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn decode(text: &str) -> Result<Self, CatalogError> {
        let (body, check) = text.rsplit_once(CHECK_KIND).ok_or(CatalogError::Checksum)?;
        if check != format!("{:08x}\n", crc32fast::hash(body.as_bytes())) {
            return Err(CatalogError::Checksum);
        }
        let malformed = |what| CatalogError::Malformed { what };
        let table: toml::Table = body.parse().map_err(|_| malformed("the text"))?;
        match table.get("format").and_then(toml::Value::as_integer) {
            Some(FORMAT) => {}
            Some(found) => return Err(CatalogError::Version { found }),
            None => return Err(malformed("format")),
        }
        let id =
            text_of(&table, "id").filter(|id| is_valid_id(id)).ok_or_else(|| malformed("id"))?;
        let created_ms = number_of(&table, "created_ms").ok_or_else(|| malformed("created_ms"))?;
        let store = text_of(&table, "store").and_then(hex).ok_or_else(|| malformed("store"))?;
        let none = Vec::new();
        let files = table.get("file").map_or(Some(&none), toml::Value::as_array);
        let files = files.ok_or_else(|| malformed("file"))?.iter();
        let files: Option<Vec<CatalogFile>> = files.map(|file| file_of(file.as_table()?)).collect();
        let files = files.ok_or_else(|| malformed("a file"))?;
        Ok(Self { id: id.to_owned(), created_ms, store, files })
    }
}

/// Adds the line that checks the others.
fn sealed(body: String) -> String {
    let crc = crc32fast::hash(body.as_bytes());
    body + &format!("{CHECK_KIND}{crc:08x}\n")
}

fn file_of(table: &toml::Table) -> Option<CatalogFile> {
    let name = text_of(table, "name")?;
    let below = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !name.split('/').all(below) {
        return None;
    }
    let (len, used) = (number_of(table, "len")?, number_of(table, "used")?);
    let sum = |key| u32::from_str_radix(text_of(table, key)?, 16).ok();
    let tail = match table.get("tail") {
        None => None,
        Some(_) => Some(FileTail { offset: number_of(table, "tail")?, crc32: sum("tail_crc32")? }),
    };
    let within = tail.is_none_or(|tail| (used..=len).contains(&tail.offset));
    let content = FileContent { used, crc32: sum("crc32")?, tail };
    (used <= len && within).then(|| CatalogFile { name: name.to_owned(), len, content })
}

fn text_of<'a>(table: &'a toml::Table, key: &str) -> Option<&'a str> {
    table.get(key)?.as_str()
}

fn number_of(table: &toml::Table, key: &str) -> Option<u64> {
    u64::try_from(table.get(key)?.as_integer()?).ok()
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, index) in out.iter_mut().zip(0..) {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_SIZE, Catalog, CatalogError, CatalogFile, is_valid_id};
    use super::{FileContent, FileTail};

    fn catalog() -> Catalog {
        let file = |name: &str, used| CatalogFile {
            name: name.to_owned(),
            len: 4 << 20,
            content: FileContent { used, crc32: 0x00AB_CDEF, tail: None },
        };
        let tail = Some(FileTail { offset: 1 << 20, crc32: 7 });
        Catalog {
            id: "2026-11-21".to_owned(),
            created_ms: 1_763_700_000_000,
            store: [0x1F; 16],
            files: vec![
                file("shard-00/manifest-0", 4096),
                file("shard-00/1.segment", 0),
                CatalogFile { content: FileContent { used: 9, crc32: 1, tail }, ..file("2", 0) },
            ],
        }
    }

    #[test]
    fn catalog_round_trips() {
        assert_eq!(Catalog::decode(&catalog().encode()), Ok(catalog()));
        let empty = Catalog { files: Vec::new(), ..catalog() };
        assert_eq!(Catalog::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn blocks_are_filled_whatever_is_missing() {
        for len in 0..=BLOCK_SIZE {
            let mut catalog = catalog();
            catalog.files[0].name = "x".repeat(len + 1);
            let text = catalog.encode_blocks();
            assert_eq!(text.len() % BLOCK_SIZE, 0, "{len}");
            assert_eq!(Catalog::decode(&text), Ok(catalog), "{len}");
        }
    }

    #[test]
    fn every_damaged_or_missing_byte_is_noticed() {
        let text = catalog().encode();
        for position in 0..text.len() {
            assert!(Catalog::decode(&text[..position]).is_err(), "cut at {position}");
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 1;
            if let Ok(damaged) = String::from_utf8(bytes) {
                assert_eq!(Catalog::decode(&damaged), Err(CatalogError::Checksum), "{position}");
            }
        }
    }

    fn resealed(text: &str, from: &str, to: &str) -> Result<Catalog, CatalogError> {
        let body = text.rsplit_once("# crc32").unwrap().0.replace(from, to);
        let crc = crc32fast::hash(body.as_bytes());
        Catalog::decode(&format!("{body}# crc32 {crc:08x}\n"))
    }

    #[test]
    fn whole_but_wrong_catalogs_are_refused() {
        let text = catalog().encode();
        let newer = resealed(&text, "format = 1", "format = 2");
        assert_eq!(newer, Err(CatalogError::Version { found: 2 }));
        for (from, to) in [
            ("shard-00/manifest-0", "../outside"),
            ("shard-00/manifest-0", "/outside"),
            ("used = 4096", "used = 40960000"),
            ("used = 4096", "used = -1"),
            ("tail = 1048576", "tail = 8"),
            ("tail = 1048576", "tail = 4194305"),
            ("tail_crc32", "other"),
            ("crc32 = \"", "crc32 = \"x"),
            ("store = \"1f", "store = \""),
            ("id = \"2026", "id = \"../2026"),
            ("[[file]]", "[file]"),
        ] {
            let found = resealed(&text, from, to);
            assert!(matches!(found, Err(CatalogError::Malformed { .. })), "{to}: {found:?}");
        }
    }

    #[test]
    fn ids_are_plain_file_names() {
        for good in ["a", "2026-11-21_07.30", &"x".repeat(64)] {
            assert!(is_valid_id(good), "{good}");
        }
        for bad in ["", ".", "..", ".x", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }
}
