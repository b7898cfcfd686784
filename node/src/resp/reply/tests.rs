//! Golden bytes of every reply kind in both versions.

use super::*;

fn check(write: impl Fn(&mut ReplyWriter<'_>), resp2: &[u8], resp3: &[u8]) {
    for (protocol, expected) in [(Protocol::Resp2, resp2), (Protocol::Resp3, resp3)] {
        let mut output = BytesMut::new();
        write(&mut ReplyWriter::new(&mut output, protocol));
        assert_eq!(output.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}

fn check_same(write: impl Fn(&mut ReplyWriter<'_>), expected: &[u8]) {
    check(write, expected, expected);
}

#[test]
fn kinds_that_both_versions_share_are_equal() {
    check_same(|w| w.ok(), b"+OK\r\n");
    check_same(|w| w.pong(), b"+PONG\r\n");
    check_same(|w| w.simple("string"), b"+string\r\n");
    check_same(|w| w.error(b"ERR syntax error"), b"-ERR syntax error\r\n");
    check_same(|w| w.bulk(b""), b"$0\r\n\r\n");
    check_same(|w| w.bulk(b"a\r\nb"), b"$4\r\na\r\nb\r\n");
    check_same(|w| w.bulk_header(16_777_216), b"$16777216\r\n");
    check_same(|w| w.array_header(0), b"*0\r\n");
    check_same(|w| w.array_header(100_000), b"*100000\r\n");
    check_same(|w| w.raw(b"+x\r\n"), b"+x\r\n");
}

#[test]
fn kinds_that_only_resp3_knows_have_stand_ins() {
    check(|w| w.null(), b"$-1\r\n", b"_\r\n");
    check(|w| w.null_array(), b"*-1\r\n", b"_\r\n");
    check(|w| w.map_header(7), b"*14\r\n", b"%7\r\n");
    check(|w| w.set_header(3), b"*3\r\n", b"~3\r\n");
    check(|w| w.boolean(true), b":1\r\n", b"#t\r\n");
    check(|w| w.boolean(false), b":0\r\n", b"#f\r\n");
    check(|w| w.double(1.5), b"$3\r\n1.5\r\n", b",1.5\r\n");
    check(|w| w.double(-0.1), b"$4\r\n-0.1\r\n", b",-0.1\r\n");
    check(|w| w.double(10.0), b"$2\r\n10\r\n", b",10\r\n");
    check(|w| w.double(f64::INFINITY), b"$3\r\ninf\r\n", b",inf\r\n");
    check(|w| w.double(f64::NEG_INFINITY), b"$4\r\n-inf\r\n", b",-inf\r\n");
    check(|w| w.double(f64::NAN), b"$3\r\nnan\r\n", b",nan\r\n");
    check(|w| w.verbatim(b"a:1\r\n"), b"$5\r\na:1\r\n\r\n", b"=9\r\ntxt:a:1\r\n\r\n");
}

#[test]
fn errors_and_simple_strings_stay_on_one_line() {
    check_same(|w| w.error(b"ERR a\r\n+OK\n"), b"-ERR a  +OK \r\n");
    check_same(|w| w.simple("a\r\nb"), b"+a  b\r\n");
}

#[test]
fn integers_are_written_like_the_standard_library_does() {
    let mut samples = vec![0, 1, -1, 9, 10, 99, 100, i64::MAX, i64::MIN, i64::MIN + 1];
    samples.extend((0..63).flat_map(|shift| [1_i64 << shift, -(1_i64 << shift)]));
    for value in samples {
        check_same(|w| w.integer(value), format!(":{value}\r\n").as_bytes());
        let mut digits = BytesMut::new();
        push_decimal(&mut digits, value);
        assert_eq!(digits, value.to_string().as_bytes());
    }
}

#[test]
fn replies_follow_each_other() {
    check(
        |w| {
            w.map_header(1);
            w.bulk(b"proto");
            w.integer(3);
            w.ok();
        },
        b"*2\r\n$5\r\nproto\r\n:3\r\n+OK\r\n",
        b"%1\r\n$5\r\nproto\r\n:3\r\n+OK\r\n",
    );
}
