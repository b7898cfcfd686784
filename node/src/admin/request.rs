//! The head of an HTTP request, as far as the admin door wants to know it (RFC 9110, RFC 9112).

use httparse::{EMPTY_HEADER, Header, Status};

/// Header fields of a request; one with more is refused.
const HEADERS_MAX: usize = 64;

/// The two methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// The head and the body.
    Get,
    /// The head that GET would get.
    Head,
}

/// Which of the two text formats a scraper wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// The target without its query.
    pub(super) path: String,
    pub(super) format: TextFormat,
    /// Whether another request may follow.
    pub(super) keep_alive: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no HTTP request, or has a body. What follows it cannot be made out.
    Malformed,
    /// Its method is not served. `true` if another request may follow.
    Method(bool),
    /// Its head has too many fields or bytes.
    TooLarge,
}

/// What the bytes begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Part of a head.
    Incomplete,
    /// A whole head of that many bytes.
    Whole(usize, Result<Asked, Refusal>),
    /// Nothing that can be told apart from what follows.
    Broken(Refusal),
}

/// Reads the head that `input` begins with, of at most `bytes_max` bytes.
pub(super) fn parse(input: &[u8], bytes_max: usize) -> Parsed {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(input) {
        Ok(Status::Complete(len)) if len > bytes_max => Parsed::Broken(Refusal::TooLarge),
        Ok(Status::Complete(len)) => Parsed::Whole(len, understand(&request)),
        Ok(Status::Partial) if input.len() >= bytes_max => Parsed::Broken(Refusal::TooLarge),
        Ok(Status::Partial) => Parsed::Incomplete,
        Err(httparse::Error::TooManyHeaders) => Parsed::Broken(Refusal::TooLarge),
        Err(_) => Parsed::Broken(Refusal::Malformed),
    }
}

fn understand(request: &httparse::Request<'_, '_>) -> Result<Asked, Refusal> {
    let is_one_one = request.version == Some(1);
    let hosts = fields(request.headers, "host").count();
    if hosts > 1 || (hosts == 0 && is_one_one) {
        return Err(Refusal::Malformed);
    }
    let has_body = fields(request.headers, "transfer-encoding").next().is_some()
        || fields(request.headers, "content-length").any(|value| value.trim_ascii() != b"0");
    let keep_alive = !has_body && is_kept_alive(request.headers, is_one_one);
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => return Err(Refusal::Method(keep_alive)),
    };
    if has_body {
        return Err(Refusal::Malformed);
    }
    let path = path_of(request.path.unwrap_or_default()).ok_or(Refusal::Malformed)?;
    let format = format_of(request.headers);
    Ok(Asked { method, path: path.to_owned(), format, keep_alive })
}

/// The values of all fields of that name, which is in lower case.
fn fields<'a>(headers: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).map(|one| one.value)
}

/// The words of a field that is a list, in lower case and without parameters.
fn words<'a>(headers: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = String> {
    let items = fields(headers, name).flat_map(|value| value.split(|byte| *byte == b','));
    items.map(|item| {
        let word = item.split(|byte| *byte == b';').next().unwrap_or_default();
        String::from_utf8_lossy(word.trim_ascii()).to_ascii_lowercase()
    })
}

fn is_kept_alive(headers: &[Header<'_>], is_one_one: bool) -> bool {
    let has = |wanted| words(headers, "connection").any(|word| word == wanted);
    if is_one_one { !has("close") } else { has("keep-alive") && !has("close") }
}

fn format_of(headers: &[Header<'_>]) -> TextFormat {
    let is_open = words(headers, "accept").any(|word| word == "application/openmetrics-text");
    if is_open { TextFormat::OpenMetrics } else { TextFormat::Prometheus }
}

/// The path of a target in origin form or, as proxies send it, absolute form.
fn path_of(target: &str) -> Option<&str> {
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find('/').map_or("/", |slash| rest.get(slash..).unwrap_or("/"))
        }
        _ => target,
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Asked {
        Asked {
            method: Method::Get,
            path: path.to_owned(),
            format: TextFormat::Prometheus,
            keep_alive: true,
        }
    }

    #[track_caller]
    fn check(input: &str, expected: Result<Asked, Refusal>) {
        let parsed = parse(input.as_bytes(), 4096);
        assert_eq!(parsed, Parsed::Whole(input.len(), expected), "{input:?}");
        // However it is cut, nothing is made of a part of it.
        for len in 0..input.len() {
            assert_eq!(parse(&input.as_bytes()[..len], 4096), Parsed::Incomplete, "{len}");
        }
    }

    #[test]
    fn targets_are_paths_without_their_query() {
        check("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Ok(get("/metrics")));
        check("GET /metrics?x=1&y HTTP/1.1\r\nHost: a\r\n\r\n", Ok(get("/metrics")));
        check("GET http://h:1/healthz HTTP/1.1\r\nHost: a\r\n\r\n", Ok(get("/healthz")));
        check("GET http://h HTTP/1.1\r\nHost: a\r\n\r\n", Ok(get("/")));
        check("GET /a://b/c HTTP/1.1\r\nHost: a\r\n\r\n", Ok(get("/a://b/c")));
        check("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Malformed));
    }

    #[test]
    fn connections_stay_open_as_the_version_and_the_client_say() {
        let closed = || Asked { keep_alive: false, ..get("/") };
        check("GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", Ok(closed()));
        check("GET / HTTP/1.1\r\nHost: a\r\nconnection: te, close\r\n\r\n", Ok(closed()));
        check("GET / HTTP/1.0\r\n\r\n", Ok(closed()));
        check("GET / HTTP/1.0\r\nHost: a\r\n\r\n", Ok(closed()));
        check("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Ok(get("/")));
    }

    #[test]
    fn open_metrics_is_given_to_who_accepts_it() {
        let open = Asked { format: TextFormat::OpenMetrics, ..get("/") };
        let accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                      version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        check(&format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"), Ok(open));
        check("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html, */*\r\n\r\n", Ok(get("/")));
    }

    #[test]
    fn only_get_and_head_without_a_body_are_served() {
        let head = Asked { method: Method::Head, ..get("/x") };
        check("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n", Ok(head));
        check("POST / HTTP/1.1\r\nHost: a\r\n\r\n", Err(Refusal::Method(true)));
        check(
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
            Err(Refusal::Method(false)),
        );
        check("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Ok(get("/")));
        for field in ["Content-Length: 1", "Content-Length: -0", "Transfer-Encoding: chunked"] {
            let input = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            check(&input, Err(Refusal::Malformed));
        }
    }

    #[test]
    fn requests_of_version_1_1_name_one_host() {
        check("GET / HTTP/1.1\r\n\r\n", Err(Refusal::Malformed));
        check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Err(Refusal::Malformed));
        check("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", Err(Refusal::Malformed));
    }

    #[test]
    fn what_is_no_request_is_told_from_what_is_not_whole() {
        let broken = Parsed::Broken(Refusal::Malformed);
        for input in ["*1\r\n$4\r\nPING\r\n", "\x16\x03\x01", "GET / HTTP/2.0\r\n", "GET\r\n\r\n"] {
            assert_eq!(parse(input.as_bytes(), 4096), broken, "{input:?}");
        }
        let fields = |count| "a: b\r\n".repeat(count);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(HEADERS_MAX));
        assert_eq!(parse(many.as_bytes(), 4096), Parsed::Broken(Refusal::TooLarge));
        check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(63)), Ok(get("/")));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(5000));
        assert_eq!(parse(long.as_bytes(), 4096), Parsed::Broken(Refusal::TooLarge));
        let whole = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(5000));
        assert_eq!(parse(whole.as_bytes(), 4096), Parsed::Broken(Refusal::TooLarge));
    }
}
