//! Glob patterns of KEYS, SCAN and CONFIG GET, on bytes.
//!
//! `*` is any run of bytes, `?` any one byte, `[abc]` and `[a-z]` one of a class, `[^a]` one
//! outside it, and `\` takes the next byte as it is. As in Redis, a class may be left open at the
//! end of the pattern, `[]` matches nothing and `[^]` anything. Bytes compare unsigned, and
//! any run of `*` matches the empty text.
//!
//! Only the latest `*` is ever retried, so the work is at most pattern length times text length.

#[cfg(test)]
mod tests;

/// One pattern element and what follows it.
enum Element<'a> {
    Any,
    Literal(u8),
    Class { is_negated: bool, members: &'a [u8] },
}

/// Tells whether `text` as a whole matches `pattern`.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where to go on if the rest does not match: behind the latest star, one byte further.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', behind)) = pattern.split_first() {
            pattern = behind;
            if pattern.is_empty() {
                return true;
            }
            retry = Some((pattern, text));
            continue;
        }
        let advanced = match (next_element(pattern), text.split_first()) {
            (None, None) => return true,
            (Some((element, behind)), Some((&byte, rest))) if element.contains(byte) => {
                Some((behind, rest))
            }
            _ => None,
        };
        if let Some((behind, rest)) = advanced {
            (pattern, text) = (behind, rest);
            continue;
        }
        let Some((behind_star, start)) = retry else {
            return false;
        };
        let Some((_, later)) = start.split_first() else {
            return false;
        };
        retry = Some((behind_star, later));
        (pattern, text) = (behind_star, later);
    }
}

/// Takes one element that matches exactly one byte; the caller has dealt with `*`.
fn next_element(pattern: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&first, rest) = pattern.split_first()?;
    Some(match (first, rest) {
        (b'?', _) => (Element::Any, rest),
        (b'\\', [escaped, behind @ ..]) => (Element::Literal(*escaped), behind),
        (b'[', _) => {
            let is_negated = rest.first() == Some(&b'^');
            let members = if is_negated { &rest[1..] } else { rest };
            let len = class_len(members);
            let behind = members.get(len + 1..).unwrap_or_default();
            (Element::Class { is_negated, members: &members[..len] }, behind)
        }
        _ => (Element::Literal(first), rest),
    })
}

/// Takes one member off a class: a range of bytes, first and last.
fn next_member(class: &[u8]) -> Option<(u8, u8, &[u8])> {
    Some(match *class {
        [] => return None,
        [b'\\', escaped, ref behind @ ..] => (escaped, escaped, behind),
        [b']', ..] => return None,
        [first, b'-', last, ref behind @ ..] => (first.min(last), first.max(last), behind),
        [byte, ref behind @ ..] => (byte, byte, behind),
    })
}

/// Returns how many bytes come before the `]` that closes the class, or the end.
fn class_len(class: &[u8]) -> usize {
    let mut rest = class;
    while let Some((_, _, behind)) = next_member(rest) {
        rest = behind;
    }
    class.len() - rest.len()
}

impl Element<'_> {
    fn contains(&self, byte: u8) -> bool {
        match *self {
            Element::Any => true,
            Element::Literal(literal) => literal == byte,
            Element::Class { is_negated, mut members } => {
                while let Some((first, last, behind)) = next_member(members) {
                    if (first..=last).contains(&byte) {
                        return !is_negated;
                    }
                    members = behind;
                }
                is_negated
            }
        }
    }
}
