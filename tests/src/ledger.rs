//! The oracle of the crash loop: which states may a key be in?
//!
//! A [`KeyLedger`] keeps every state that one key may have, given what was acknowledged and what
//! was merely attempted. One connection owns the key, so the order of its commands is known:
//!
//! ```text
//! acknowledged   states that contradict the reply are struck out, the rest move on
//! error reply    outcome unknown: a state may have moved on or stayed
//! no reply       the connection died: any prefix of the commands sent may have happened
//! observed       states that contradict what was read are struck out
//! ```
//!
//! Nothing left after striking out is a [`Violation`]: a lost acknowledgement, a resurrected
//! delete, a stale or a phantom value. Expiry times are ranges, because the node reads its clock
//! somewhere between our sending and receiving; [`EXPIRY_SLACK_MS`] widens each comparison.
//!
//! Values describe themselves ([`Piece`]), so that wrong bytes can be told from an old version.

use std::fmt;

/// Tolerance between our clock readings and the node's, in ms: it may read its clock once per
/// turn of its loop and rounds to whole milliseconds.
pub const EXPIRY_SLACK_MS: u64 = 100;

/// More possible states than this for one key means that the ledger, not the node, is wrong.
const POSSIBLE_MAX: usize = 4_096;

/// Who wrote a value: enters every byte of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// The seed of the run.
    pub seed: u64,
    /// The connection that owns the key.
    pub connection: u32,
    /// The key's number within the connection.
    pub key: u32,
}

/// One written value, or one appended part: derived wholly from author, version and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Counts the writes of the connection; never used twice in a run.
    pub version: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Piece {
    /// Appends the bytes of the piece to `out`: a readable header with a checksum, then noise; cut
    /// to the length.
    pub fn write_to(self, author: Author, out: &mut Vec<u8>) {
        let end = out.len() + self.len as usize;
        let mut noise = fastrand::Rng::with_seed(
            author.seed
                ^ (u64::from(author.connection) << 48)
                ^ (u64::from(author.key) << 32)
                ^ self.version.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        let fields = format!(
            "{{{:016x} {} {} v{} {}",
            author.seed, author.connection, author.key, self.version, self.len
        );
        // A short value keeps noise alone, so that two short ones differ from their first byte.
        if self.len as usize > fields.len() + 20 {
            let filler_len = end - out.len() - fields.len() - 19;
            let mut filler = vec![0; filler_len];
            noise.fill(&mut filler);
            out.extend_from_slice(fields.as_bytes());
            out.extend_from_slice(format!(" {:016x}}}", checksum(&filler)).as_bytes());
            out.extend_from_slice(&filler);
        }
        let len = out.len();
        out.resize(end, 0);
        noise.fill(&mut out[len..]);
    }
}

/// FNV-1a, 64 bits, over words of 8 bytes where there are any.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let all = words.chain(rest.iter().map(|&byte| u64::from(byte)));
    all.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// Says what a value claims to be, for the account of a violation.
#[must_use]
pub fn describe_value(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(80)];
    let claim = head.first().filter(|&&byte| byte == b'{').and_then(|_| {
        let end = head.iter().position(|&byte| byte == b'}')?;
        std::str::from_utf8(&head[1..end]).ok()
    });
    match claim {
        Some(claim) => {
            format!("{} B, claims seed/connection/key/version/len/sum {claim}", bytes.len())
        }
        None => {
            format!("{} B, starts \"{}\"", bytes.len(), head[..head.len().min(32)].escape_ascii())
        }
    }
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A decimal number, as INCR leaves it.
    Integer(i64),
    /// A first piece and what was appended to it.
    Pieces(Vec<Piece>),
}

impl Content {
    /// Returns the bytes that a GET has to give.
    #[must_use]
    pub fn bytes(&self, author: Author) -> Vec<u8> {
        match self {
            Self::Integer(number) => number.to_string().into_bytes(),
            Self::Pieces(pieces) => {
                let mut bytes = Vec::with_capacity(self.len());
                for piece in pieces {
                    piece.write_to(author, &mut bytes);
                }
                bytes
            }
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Integer(number) => number.to_string().len(),
            Self::Pieces(pieces) => pieces.iter().map(|piece| piece.len as usize).sum(),
        }
    }

    /// Tells whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// When a key expires: at some moment of a range, in ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The node's clock cannot have been earlier than this.
    pub earliest: u64,
    /// Nor later than this.
    pub latest: u64,
}

impl Expiry {
    fn after(ms: u64, window: Window) -> Self {
        Self { earliest: window.sent + ms, latest: window.received + ms }
    }

    fn certainly_past(self, window: Window) -> bool {
        self.latest + EXPIRY_SLACK_MS < window.sent
    }

    fn possibly_past(self, window: Window) -> bool {
        self.earliest <= window.received + EXPIRY_SLACK_MS
    }
}

/// One state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    /// The key does not exist.
    Absent,
    /// The key holds a value.
    Present {
        /// The value.
        content: Content,
        /// When it goes away by itself.
        expiry: Option<Expiry>,
    },
}

/// When a command was sent and when its reply, or the lack of one, was noticed: ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Before the command was sent.
    pub sent: u64,
    /// After the reply was read.
    pub received: u64,
}

/// When a SET takes place at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetCondition {
    /// Always.
    Always,
    /// NX
    IfAbsent,
    /// XX
    IfPresent,
}

/// One command as it concerns one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOperation {
    /// SET, and each pair of MSET.
    Set {
        /// The new value.
        content: Content,
        /// The argument of PX.
        px: Option<u64>,
        /// NX or XX.
        condition: SetCondition,
    },
    /// DEL with this key alone.
    Delete,
    /// DEL with other keys: the count replied says nothing about this one.
    DeleteAmongOthers,
    /// INCR
    Increment,
    /// APPEND
    Append(Piece),
    /// PEXPIRE with so many ms.
    ExpireIn(u64),
    /// PERSIST
    Persist,
    /// GET
    Get,
}

/// What the node replied, as far as the ledger cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyReply {
    /// `+OK`
    Done,
    /// nil
    Nil,
    /// An integer.
    Integer(i64),
    /// A value.
    Value(Vec<u8>),
}

/// What was read of a key: value and PTTL, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The reply to GET.
    pub value: Option<Vec<u8>>,
    /// The reply to PTTL: -2 absent, -1 without expiry, else ms.
    pub pttl: i64,
}

/// The node broke its promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The full account.
    pub account: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.account)
    }
}

impl std::error::Error for Violation {}

/// Every state one key may be in.
#[derive(Debug, Clone)]
pub struct KeyLedger {
    author: Author,
    possible: Vec<KeyState>,
    /// While a cut is being made: every state that was possible since it began.
    since_cut: Option<Vec<KeyState>>,
}

impl KeyLedger {
    /// A key that was never written.
    #[must_use]
    pub fn new(author: Author) -> Self {
        Self { author, possible: vec![KeyState::Absent], since_cut: None }
    }

    /// A snapshot is ordered, and no command is under way: what is possible now may be in it, and
    /// what becomes so until [`KeyLedger::end_cut`].
    pub fn begin_cut(&mut self) {
        self.since_cut = Some(self.possible.clone());
    }

    /// The snapshot was answered, and no command is under way: returns what the key may be in it.
    /// Without a cut, what it may be now.
    pub fn end_cut(&mut self) -> Self {
        let since_cut = self.since_cut.take();
        let possible = since_cut.unwrap_or_else(|| self.possible.clone());
        Self { author: self.author, possible, since_cut: None }
    }

    fn note_cut(&mut self) {
        let Some(seen) = &mut self.since_cut else { return };
        for state in &self.possible {
            add(seen, state.clone());
        }
    }

    /// Tells whether the key was there, and its time ran out before the window.
    #[must_use]
    pub fn has_expired(&self, window: Window) -> bool {
        !self.possible.contains(&KeyState::Absent)
            && self.at(window).iter().all(|state| *state == KeyState::Absent)
    }

    /// Returns the states the key may be in.
    #[must_use]
    pub fn possible(&self) -> &[KeyState] {
        &self.possible
    }

    /// Returns who writes the key.
    #[must_use]
    pub fn author(&self) -> Author {
        self.author
    }

    /// Takes note of a command with its reply.
    ///
    /// # Errors
    /// When no possible state explains the reply.
    pub fn acknowledge(
        &mut self,
        operation: &KeyOperation,
        reply: &KeyReply,
        window: Window,
    ) -> Result<(), Violation> {
        let mut next = Vec::new();
        for state in self.at(window) {
            let (after, due) = apply(&state, operation, window);
            if due.explains(reply, self.author) {
                add(&mut next, after);
            }
        }
        if next.is_empty() {
            let reply = match reply {
                KeyReply::Value(bytes) => describe_value(bytes),
                other => format!("{other:?}"),
            };
            return Err(self.violation(&format!("{operation:?} was answered {reply}"), window));
        }
        self.possible = next;
        self.note_cut();
        Ok(())
    }

    /// Takes note of a command that was answered with an error: it may have happened or not.
    pub fn fail(&mut self, operation: &KeyOperation, window: Window) {
        let mut next = Vec::new();
        for state in self.at(window) {
            let (after, _) = apply(&state, operation, window);
            add(&mut next, state);
            add(&mut next, after);
        }
        self.possible = next;
        self.note_cut();
    }

    /// Takes note of commands, in the order sent, whose replies never came.
    ///
    /// Any prefix may have happened. None can be left out in the middle: a record holds the whole
    /// value, computed from the newest state, so later ones stand on all earlier ones.
    pub fn abandon(&mut self, operations: &[(KeyOperation, Window)]) {
        let mut current = self.possible.clone();
        for (operation, window) in operations {
            let mut next = Vec::new();
            for state in normalise(&current, *window) {
                add(&mut next, apply(&state, operation, *window).0);
            }
            for state in &next {
                add(&mut self.possible, state.clone());
            }
            current = next;
        }
        self.note_cut();
    }

    /// Takes note that everything was flushed, or may have been.
    pub fn flush(&mut self, outcome: FlushOutcome) {
        match outcome {
            FlushOutcome::Acknowledged => self.possible = vec![KeyState::Absent],
            FlushOutcome::Unknown => add(&mut self.possible, KeyState::Absent),
        }
        self.note_cut();
    }

    /// Compares with what was read; what agrees becomes the new base.
    ///
    /// # Errors
    /// When no possible state agrees.
    pub fn observe(&mut self, seen: &Observation, window: Window) -> Result<(), Violation> {
        let mut agreeing = Vec::new();
        for state in self.at(window) {
            if self.agrees(&state, seen, window) {
                add(&mut agreeing, state);
            }
        }
        if agreeing.is_empty() {
            let value = seen.value.as_deref().map_or_else(|| "nil".to_owned(), describe_value);
            let what = format!("read {value}, PTTL {}", seen.pttl);
            return Err(self.violation(&what, window));
        }
        self.possible = agreeing;
        Ok(())
    }

    /// Tells whether the key may exist at that time.
    #[must_use]
    pub fn may_exist(&self, window: Window) -> bool {
        self.at(window).iter().any(|state| *state != KeyState::Absent)
    }

    /// Tells whether the key must exist at that time.
    #[must_use]
    pub fn must_exist(&self, window: Window) -> bool {
        self.at(window).iter().all(|state| *state != KeyState::Absent)
    }

    fn at(&self, window: Window) -> Vec<KeyState> {
        normalise(&self.possible, window)
    }

    fn agrees(&self, state: &KeyState, seen: &Observation, window: Window) -> bool {
        match (state, &seen.value) {
            (KeyState::Absent, None) => seen.pttl == -2,
            (KeyState::Present { content, expiry }, Some(value)) => {
                content.len() == value.len()
                    && content.bytes(self.author) == *value
                    && ttl_agrees(*expiry, seen.pttl, window)
            }
            // The key may expire between GET and PTTL, which is "absent" from then on; a value
            // that appears between the two cannot be.
            (KeyState::Absent, Some(_)) | (KeyState::Present { .. }, None) => false,
        }
    }

    fn violation(&self, what: &str, window: Window) -> Violation {
        let mut account = format!(
            "key {} of connection {}: {what} between {} and {}, but possible were:",
            self.author.key, self.author.connection, window.sent, window.received
        );
        for state in self.possible.iter().take(20) {
            account.push_str(&format!("\n    {state:?}"));
        }
        if self.possible.len() > 20 {
            account.push_str(&format!("\n    and {} more", self.possible.len() - 20));
        }
        Violation { account }
    }
}

/// What is known about a FLUSHALL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushOutcome {
    /// It was answered `+OK`.
    Acknowledged,
    /// It was answered with an error or not at all.
    Unknown,
}

fn add(states: &mut Vec<KeyState>, state: KeyState) {
    if !states.contains(&state) {
        states.push(state);
        assert!(states.len() <= POSSIBLE_MAX, "the ledger lost its grip on a key");
    }
}

/// Lets expiries happen: a state certainly past its time is absent, one possibly past may be.
fn normalise(states: &[KeyState], window: Window) -> Vec<KeyState> {
    let mut result = Vec::new();
    for state in states {
        let expiry = match state {
            KeyState::Present { expiry: Some(expiry), .. } => Some(*expiry),
            _ => None,
        };
        if expiry.is_none_or(|expiry| !expiry.certainly_past(window)) {
            add(&mut result, state.clone());
        }
        if expiry.is_some_and(|expiry| expiry.possibly_past(window)) {
            add(&mut result, KeyState::Absent);
        }
    }
    result
}

fn ttl_agrees(expiry: Option<Expiry>, pttl: i64, window: Window) -> bool {
    match (expiry, u64::try_from(pttl)) {
        (None, Err(_)) => pttl == -1,
        (Some(expiry), Ok(pttl)) => {
            let (from, to) = (window.sent + pttl, window.received + pttl);
            from <= expiry.latest + EXPIRY_SLACK_MS && expiry.earliest <= to + EXPIRY_SLACK_MS
        }
        // It expired between GET and PTTL.
        (Some(expiry), Err(_)) => pttl == -2 && expiry.possibly_past(window),
        (None, Ok(_)) => false,
    }
}

/// The reply a state demands.
enum Due {
    Exactly(KeyReply),
    Content(Content),
    Any,
}

impl Due {
    fn explains(&self, reply: &KeyReply, author: Author) -> bool {
        match self {
            Self::Exactly(due) => due == reply,
            Self::Any => true,
            Self::Content(content) => match reply {
                KeyReply::Value(bytes) => {
                    content.len() == bytes.len() && content.bytes(author) == *bytes
                }
                _ => false,
            },
        }
    }
}

/// What a command makes of a state, and what it has to reply.
fn apply(state: &KeyState, operation: &KeyOperation, window: Window) -> (KeyState, Due) {
    let present = *state != KeyState::Absent;
    let flag = |yes: bool| Due::Exactly(KeyReply::Integer(i64::from(yes)));
    match operation {
        KeyOperation::Set { content, px, condition } => {
            let refused = match condition {
                SetCondition::Always => false,
                SetCondition::IfAbsent => present,
                SetCondition::IfPresent => !present,
            };
            if refused {
                return (state.clone(), Due::Exactly(KeyReply::Nil));
            }
            let expiry = px.map(|ms| Expiry::after(ms, window));
            (KeyState::Present { content: content.clone(), expiry }, Due::Exactly(KeyReply::Done))
        }
        KeyOperation::Delete => (KeyState::Absent, flag(present)),
        KeyOperation::DeleteAmongOthers => (KeyState::Absent, Due::Any),
        KeyOperation::Increment => increment(state),
        KeyOperation::Append(piece) => append(state, *piece),
        KeyOperation::ExpireIn(ms) => match state {
            KeyState::Absent => (KeyState::Absent, flag(false)),
            KeyState::Present { content, .. } => {
                let expiry = Some(Expiry::after(*ms, window));
                (KeyState::Present { content: content.clone(), expiry }, flag(true))
            }
        },
        KeyOperation::Persist => match state {
            KeyState::Present { content, expiry: Some(_) } => {
                (KeyState::Present { content: content.clone(), expiry: None }, flag(true))
            }
            other => (other.clone(), flag(false)),
        },
        KeyOperation::Get => match state {
            KeyState::Absent => (KeyState::Absent, Due::Exactly(KeyReply::Nil)),
            KeyState::Present { content, .. } => (state.clone(), Due::Content(content.clone())),
        },
    }
}

fn increment(state: &KeyState) -> (KeyState, Due) {
    let (number, expiry) = match state {
        KeyState::Present { content: Content::Integer(number), expiry } => (*number, *expiry),
        // The workload never increments anything but numbers: the state cannot be.
        KeyState::Present { .. } => return (state.clone(), Due::Exactly(KeyReply::Nil)),
        KeyState::Absent => (0, None),
    };
    let content = Content::Integer(number + 1);
    (KeyState::Present { content, expiry }, Due::Exactly(KeyReply::Integer(number + 1)))
}

fn append(state: &KeyState, piece: Piece) -> (KeyState, Due) {
    let (mut pieces, expiry) = match state {
        KeyState::Present { content: Content::Pieces(pieces), expiry } => (pieces.clone(), *expiry),
        // The workload never appends to numbers: the state cannot be.
        KeyState::Present { .. } => return (state.clone(), Due::Exactly(KeyReply::Nil)),
        KeyState::Absent => (Vec::new(), None),
    };
    pieces.push(piece);
    let content = Content::Pieces(pieces);
    let len = i64::try_from(content.len()).unwrap_or(i64::MAX);
    (KeyState::Present { content, expiry }, Due::Exactly(KeyReply::Integer(len)))
}

/// A counter that every connection increments: order is unknown, bounds are not.
#[derive(Debug, Clone, Default)]
pub struct SharedCounter {
    low: i64,
    high: i64,
    replies: std::collections::BTreeSet<i64>,
}

impl SharedCounter {
    /// Takes note that an INCR is about to be sent.
    pub fn attempt(&mut self) {
        self.high += 1;
    }

    /// Takes note of the reply to an INCR.
    ///
    /// # Errors
    /// When the number was given before, or lies outside what the attempts explain.
    pub fn acknowledge(&mut self, number: i64) -> Result<(), Violation> {
        self.low += 1;
        // Each number below the one replied takes an attempt; acknowledged ones may come later.
        if number > self.high || !self.replies.insert(number) {
            let account = format!("shared counter: INCR was answered {number}, now {self:?}");
            return Err(Violation { account });
        }
        Ok(())
    }

    /// Takes note that everything was flushed, or may have been.
    pub fn flush(&mut self, outcome: FlushOutcome) {
        self.low = 0;
        self.replies.clear();
        if outcome == FlushOutcome::Acknowledged {
            self.high = 0;
        }
    }

    /// Compares with the number read after a restart, which becomes the new base.
    ///
    /// # Errors
    /// When it is below what was acknowledged or above what was attempted.
    pub fn observe(&mut self, number: i64) -> Result<(), Violation> {
        let low = self.low.max(self.replies.last().copied().unwrap_or(0));
        if number < low || number > self.high {
            let account =
                format!("shared counter: read {number}, possible were {low} to {}", self.high);
            return Err(Violation { account });
        }
        *self = Self { low: number, high: number, replies: Default::default() };
        Ok(())
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
