//! The admin door: /metrics, /healthz and /readyz over HTTP, on the first thread's ring.
//!
//! Sans-I/O: it is fed what the driver reports of its connections; [`AdminDoor::poll_request`]
//! yields what the driver is to do. A request for a page that exists becomes a question
//! ([`AdminDoor::poll_question`]) that somebody answers with [`AdminDoor::answer`] once all threads
//! have told what they know. A thread that does not answer any more makes no healthy node: the
//! connection is closed when its time is over.
//!
//! ```text
//! Reading --head--> Asking --answer--> Sending --sent--> Reading
//!    |  \--refused head--------------/     |
//!    |                                     | last answer of the connection
//!    +-- idle, slow, gone -----> Closing <-+-- Lingering: after a refusal, what still comes
//!                                              is thrown away, so that the client reads why
//! ```
//!
//! Invariants:
//! * requests of a connection are answered in order, one at a time, however their bytes are cut;
//! * a connection holds at most [`HEAD_BYTES_MAX`] and one receive buffer of input, and one answer;
//! * every state but `Closing` has a deadline.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::io::{ConnectionId, Monotonic, ReceiveBuffer, Request};

pub mod metrics;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use request::TextFormat;

use metrics::Family;
use request::{Asked, Method, Parsed, Refusal};
use response::{Response, Status};

/// Connections at the same time; a further one is closed.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// From the first byte of a request to the end of its head, in milliseconds.
pub const HEAD_MS: u64 = 10_000;
/// Between requests of a connection, in milliseconds: longer than scrapers wait.
pub const IDLE_MS: u64 = 180_000;
/// For the threads to tell what they know, in milliseconds.
pub const ANSWER_MS: u64 = 10_000;
/// For a client to take an answer, in milliseconds.
pub const SEND_MS: u64 = 10_000;
/// For a client to take the last answer before what it still sends makes the kernel drop that, in
/// milliseconds.
pub const LINGER_MS: u64 = 2_000;
/// Bytes that are thrown away meanwhile.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// What the admin door tells of a node.
#[derive(Clone, Debug, Default)]
pub struct NodeReport {
    /// For /metrics.
    pub families: Vec<Family>,
    /// Why the node is not healthy, a line for each reason.
    pub ills: Vec<String>,
    /// Why it does not serve clients now, a line for each reason.
    pub waits_for: Vec<String>,
}

/// What the admin door tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminCounters {
    /// Connections accepted.
    pub connections: u64,
    /// Of these, closed at once because there were too many.
    pub connections_refused: u64,
    /// Connections closed because their client was too slow.
    pub connections_late: u64,
    /// Requests answered or refused.
    pub requests: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Metrics(TextFormat),
    Health,
    Readiness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    /// Somebody has been asked.
    Asking(Page, Method, After),
    Sending(After),
    /// Bytes may still come that would undo the last answer; so many have.
    Lingering(usize),
    Closing,
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Another request.
    Request,
    /// The end, as the client has asked.
    End,
    /// The end of a connection whose client may still be sending.
    Refusal,
}

impl After {
    fn of(keep_alive: bool) -> Self {
        if keep_alive { Self::Request } else { Self::End }
    }
}

#[derive(Debug)]
struct Connection {
    phase: Phase,
    input: Vec<u8>,
    receiving: bool,
    /// Whether the client has finished sending.
    ended: bool,
    /// When the present phase is over.
    deadline: Monotonic,
}

/// The admin door.
#[derive(Debug, Default)]
pub struct AdminDoor {
    connections: BTreeMap<ConnectionId, Connection>,
    requests: VecDeque<Request>,
    questions: VecDeque<ConnectionId>,
    counters: AdminCounters,
    closing: bool,
}

impl AdminDoor {
    /// Whether a connection is one of its own.
    #[must_use]
    pub fn owns(&self, id: ConnectionId) -> bool {
        self.connections.contains_key(&id)
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// What it has done since the start.
    #[must_use]
    pub fn counters(&self) -> AdminCounters {
        self.counters
    }

    /// Takes the next request for the driver.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Takes a connection that waits for [`AdminDoor::answer`].
    pub fn poll_question(&mut self) -> Option<ConnectionId> {
        self.questions.pop_front()
    }

    /// When [`AdminDoor::handle_time`] is wanted next.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        let open = self.connections.values().filter(|one| one.phase != Phase::Closing);
        open.map(|one| one.deadline).min()
    }

    /// Closes connections whose time is over.
    pub fn handle_time(&mut self, now: Monotonic) {
        for (id, connection) in &mut self.connections {
            if connection.phase != Phase::Closing && connection.deadline <= now {
                let is_idle = connection.phase == Phase::Reading && connection.input.is_empty();
                self.counters.connections_late += u64::from(!is_idle);
                connection.phase = Phase::Closing;
                self.requests.push_back(Request::Close(*id));
            }
        }
    }

    /// A client has connected.
    pub fn handle_accepted(&mut self, now: Monotonic, id: ConnectionId) {
        self.counters.connections += 1;
        let mut connection = Connection {
            phase: Phase::Reading,
            input: Vec::new(),
            receiving: false,
            ended: false,
            deadline: now.plus_millis(HEAD_MS),
        };
        if self.closing || self.connections.len() >= ADMIN_CONNECTIONS_MAX {
            self.counters.connections_refused += u64::from(!self.closing);
            connection.phase = Phase::Closing;
            self.requests.push_back(Request::Close(id));
        } else {
            self.receive(id, &mut connection);
        }
        self.connections.insert(id, connection);
    }

    /// Bytes have come, or the client has finished (no bytes), or the connection is broken. Returns
    /// the buffer for the driver.
    pub fn handle_received(
        &mut self,
        now: Monotonic,
        id: ConnectionId,
        result: io::Result<ReceiveBuffer>,
    ) -> Option<ReceiveBuffer> {
        let Some(mut connection) = self.connections.remove(&id) else { return result.ok() };
        connection.receiving = false;
        match (&result, connection.phase) {
            (_, Phase::Closing) => {}
            (Err(_), _) => self.close_one(id, &mut connection),
            (Ok(buffer), Phase::Lingering(taken)) => {
                let taken = taken + buffer.len();
                connection.phase = Phase::Lingering(taken);
                if buffer.is_empty() || taken > LINGER_BYTES_MAX {
                    self.close_one(id, &mut connection);
                } else {
                    self.receive(id, &mut connection);
                }
            }
            (Ok(buffer), _) => {
                if connection.input.is_empty() && connection.phase == Phase::Reading {
                    connection.deadline = connection.deadline.min(now.plus_millis(HEAD_MS));
                }
                connection.ended = buffer.is_empty();
                connection.input.extend_from_slice(buffer);
                self.go_on(now, id, &mut connection);
            }
        }
        self.connections.insert(id, connection);
        result.ok()
    }

    /// The driver has taken an answer, or could not.
    pub fn handle_sent(&mut self, now: Monotonic, id: ConnectionId, result: &io::Result<()>) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        if let Phase::Sending(after) = connection.phase {
            match after {
                _ if result.is_err() => self.close_one(id, &mut connection),
                After::Request => {
                    connection.phase = Phase::Reading;
                    let patience_ms = if connection.input.is_empty() { IDLE_MS } else { HEAD_MS };
                    connection.deadline = now.plus_millis(patience_ms);
                    self.go_on(now, id, &mut connection);
                }
                After::Refusal if !connection.ended => {
                    connection.input = Vec::new();
                    connection.phase = Phase::Lingering(0);
                    connection.deadline = now.plus_millis(LINGER_MS);
                    self.receive(id, &mut connection);
                }
                After::End | After::Refusal => self.close_one(id, &mut connection),
            }
        }
        self.connections.insert(id, connection);
    }

    /// The connection is gone.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    /// Answers what a connection has asked, if it is still there.
    pub fn answer(&mut self, now: Monotonic, id: ConnectionId, report: &NodeReport) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        if let Phase::Asking(page, method, after) = connection.phase {
            let response = page_of(page, report);
            self.send(now, (id, &mut connection), response, (method, after));
        }
        self.connections.insert(id, connection);
    }

    /// Closes all connections, and those that come.
    pub fn close(&mut self) {
        self.closing = true;
        self.questions.clear();
        for (id, connection) in &mut self.connections {
            if connection.phase != Phase::Closing {
                connection.phase = Phase::Closing;
                self.requests.push_back(Request::Close(*id));
            }
        }
    }

    fn close_one(&mut self, id: ConnectionId, connection: &mut Connection) {
        connection.phase = Phase::Closing;
        connection.input = Vec::new();
        self.requests.push_back(Request::Close(id));
    }

    fn receive(&mut self, id: ConnectionId, connection: &mut Connection) {
        if !connection.receiving {
            connection.receiving = true;
            self.requests.push_back(Request::Receive(id));
        }
    }

    /// Takes the next request out of the input, or asks for more of that.
    fn go_on(&mut self, now: Monotonic, id: ConnectionId, connection: &mut Connection) {
        if connection.phase != Phase::Reading {
            return;
        }
        // Between requests, line ends are passed over (RFC 9112, 2.2).
        let blank = connection.input.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        connection.input.drain(..blank);
        let input = connection.input.as_slice();
        let (len, result) = match request::parse(input, HEAD_BYTES_MAX) {
            Parsed::Incomplete if connection.ended => {
                return self.close_one(id, connection);
            }
            Parsed::Incomplete => return self.receive(id, connection),
            Parsed::Whole(len, result) => (len, result),
            Parsed::Broken(refusal) => (input.len(), Err(refusal)),
        };
        connection.input.drain(..len);
        self.counters.requests += 1;
        let (response, method, after) = match result {
            Ok(Asked { method, path, format, keep_alive }) => {
                let after = After::of(keep_alive);
                let page = match path.as_str() {
                    "/metrics" => Some(Page::Metrics(format)),
                    "/healthz" => Some(Page::Health),
                    "/readyz" => Some(Page::Readiness),
                    _ => None,
                };
                if let Some(page) = page {
                    connection.phase = Phase::Asking(page, method, after);
                    connection.deadline = now.plus_millis(ANSWER_MS);
                    return self.questions.push_back(id);
                }
                let text = "there are /metrics, /healthz and /readyz";
                (Response::text(Status::NotFound, text), method, after)
            }
            Err(refusal) => {
                let (response, after) = refuse(refusal);
                (response, Method::Get, after)
            }
        };
        self.send(now, (id, connection), response, (method, after));
    }

    fn send(
        &mut self,
        now: Monotonic,
        (id, connection): (ConnectionId, &mut Connection),
        response: Response,
        (method, after): (Method, After),
    ) {
        connection.phase = Phase::Sending(after);
        connection.deadline = now.plus_millis(SEND_MS);
        let keep_alive = after == After::Request;
        self.requests.push_back(Request::Send(id, response.into_parts(method, keep_alive)));
    }
}

fn refuse(refusal: Refusal) -> (Response, After) {
    match refusal {
        Refusal::Malformed => {
            (Response::text(Status::BadRequest, "no request that can be answered"), After::Refusal)
        }
        Refusal::Method(keep_alive) => {
            let after = if keep_alive { After::Request } else { After::Refusal };
            (Response::text(Status::MethodNotAllowed, "GET and HEAD are served"), after)
        }
        Refusal::TooLarge => {
            (Response::text(Status::HeadTooLarge, "the head is too large"), After::Refusal)
        }
    }
}

fn page_of(page: Page, report: &NodeReport) -> Response {
    let verdict = |reasons: &[String]| match reasons {
        [] => Response::text(Status::Fine, "ok"),
        some => Response::text(Status::Unavailable, &some.join("\n")),
    };
    match page {
        Page::Metrics(format) => Response {
            status: Status::Fine,
            content_type: metrics::content_type(format),
            body: metrics::encode_families(&report.families, format),
        },
        Page::Health => verdict(&report.ills),
        Page::Readiness => {
            let all: Vec<String> = report.ills.iter().chain(&report.waits_for).cloned().collect();
            verdict(&all)
        }
    }
}
