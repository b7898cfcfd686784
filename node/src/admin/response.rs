//! Answers of the admin door as HTTP/1.1.

use std::fmt::Write as _;

use bytes::Bytes;

use super::request::Method;

/// What is answered to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: Status,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Fine,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLarge,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Fine => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

impl Response {
    /// A line for people.
    pub(super) fn text(status: Status, line: &str) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self { status, content_type, body: format!("{line}\n") }
    }

    /// The parts to send; without the body, if only the head was asked for.
    pub(super) fn into_parts(self, method: Method, keep_alive: bool) -> Vec<Bytes> {
        let Self { status, content_type, body } = self;
        let mut head = format!("HTTP/1.1 {}\r\n", status.line());
        let len = body.len();
        let _ = write!(head, "Content-Type: {content_type}\r\nContent-Length: {len}\r\n");
        head.push_str("Cache-Control: no-store\r\n");
        if status == Status::MethodNotAllowed {
            head.push_str("Allow: GET, HEAD\r\n");
        }
        // Said in both cases: clients of HTTP/1.0 have to hear it.
        head.push_str(if keep_alive {
            "Connection: keep-alive\r\n"
        } else {
            "Connection: close\r\n"
        });
        head.push_str("\r\n");
        let mut parts = vec![Bytes::from(head)];
        if method == Method::Get {
            parts.push(Bytes::from(body));
        }
        parts
    }
}
