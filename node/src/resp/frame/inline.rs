//! Splits an inline command into arguments, with the quoting rules of Redis.
//!
//! Blanks separate. `"..."` knows the escapes `\n \r \t \b \a`, `\xHH` and `\` before any other
//! byte; `'...'` knows `\'` alone. A closing quote must be followed by a blank or the end.

use super::ProtocolError;
use super::request::Span;
use std::slice::Iter;

/// Writes the arguments of `text` into `output` and their positions into `spans`.
///
/// # Errors
/// `UnbalancedQuotes` if a quote is left open or followed by something other than a blank.
pub(super) fn split(
    text: &[u8],
    output: &mut Vec<u8>,
    spans: &mut Vec<Span>,
) -> Result<(), ProtocolError> {
    let mut rest = text.iter();
    loop {
        let Some(first) = rest.by_ref().find(|&&byte| !is_blank(byte)) else {
            return Ok(());
        };
        let start = output.len();
        argument(*first, &mut rest, output)?;
        spans.push(Span { start, end: output.len() });
    }
}

/// Copies one argument up to the blank behind it.
fn argument(first: u8, rest: &mut Iter<'_, u8>, output: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let mut next = Some(first);
    while let Some(byte) = next {
        match byte {
            b'"' => return double_quoted(rest, output),
            b'\'' => return single_quoted(rest, output),
            b' ' | b'\t' | b'\r' | b'\n' => return Ok(()),
            _ => output.push(byte),
        }
        next = rest.next().copied();
    }
    Ok(())
}

fn double_quoted(rest: &mut Iter<'_, u8>, output: &mut Vec<u8>) -> Result<(), ProtocolError> {
    loop {
        match *rest.next().ok_or(ProtocolError::UnbalancedQuotes)? {
            b'"' => return closed(rest),
            b'\\' => {
                if let [b'x', high, low, ..] = *rest.as_slice()
                    && let (Some(high), Some(low)) = (hex_digit(high), hex_digit(low))
                {
                    output.push((high << 4) | low);
                    rest.nth(2);
                    continue;
                }
                let escaped = *rest.next().ok_or(ProtocolError::UnbalancedQuotes)?;
                output.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
            }
            byte => output.push(byte),
        }
    }
}

fn single_quoted(rest: &mut Iter<'_, u8>, output: &mut Vec<u8>) -> Result<(), ProtocolError> {
    loop {
        match *rest.next().ok_or(ProtocolError::UnbalancedQuotes)? {
            b'\'' => return closed(rest),
            b'\\' if rest.as_slice().first() == Some(&b'\'') => {
                rest.next();
                output.push(b'\'');
            }
            byte => output.push(byte),
        }
    }
}

/// Checks what follows a closing quote.
fn closed(rest: &Iter<'_, u8>) -> Result<(), ProtocolError> {
    match rest.as_slice().first() {
        Some(&byte) if !is_blank(byte) => Err(ProtocolError::UnbalancedQuotes),
        _ => Ok(()),
    }
}

/// Tells the bytes that C's `isspace` accepts; only some of them end an unquoted argument.
const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
