//! Redis's own answers to wrong commands, what right ones parse to, and the table's consistency.

use super::*;
use crate::resp::frame::{Parsed, Parser, ParserLimits};
use crate::resp::reply::{Protocol, ReplyWriter};
use bytes::BytesMut;

/// Request, as an inline command, and the error of redis-server 7.0.15; empty means none.
#[rustfmt::skip]
const GOLDEN: &[(&str, &str)] = &[
    ("GET", "ERR wrong number of arguments for 'get' command"),
    ("GET a b", "ERR wrong number of arguments for 'get' command"),
    ("get", "ERR wrong number of arguments for 'get' command"),
    ("FOO a b", "ERR unknown command 'FOO', with args beginning with: 'a' 'b' "),
    ("foo", "ERR unknown command 'foo', with args beginning with: "),
    ("SET k", "ERR wrong number of arguments for 'set' command"),
    ("SET k v EX", "ERR syntax error"),
    ("SET k v EX abc", "ERR value is not an integer or out of range"),
    ("SET k v EX 0", "ERR invalid expire time in 'set' command"),
    ("SET k v EX -1", "ERR invalid expire time in 'set' command"),
    ("SET k v EX 9223372036854775807", "ERR invalid expire time in 'set' command"),
    ("SET k v PX 0", "ERR invalid expire time in 'set' command"),
    ("SET k v EXAT 1", ""),
    ("SET k v EXAT 0", "ERR invalid expire time in 'set' command"),
    ("SET k v EXAT 9223372036854775807", "ERR invalid expire time in 'set' command"),
    ("SET k v PXAT 9223372036854775807", ""),
    ("SET k v PXAT 1", ""),
    ("SET k v EX 10 PX 10", "ERR syntax error"),
    ("SET k v EX 10 KEEPTTL", "ERR syntax error"),
    ("SET k v KEEPTTL KEEPTTL", ""),
    ("SET k v NX XX", "ERR syntax error"),
    ("SET k v NX NX", ""),
    ("SET k v XX GET", ""),
    ("SET k v NX GET", ""),
    ("SET k v GET GET", ""),
    ("SET k v EX 10 EX 20", ""),
    ("SET k v IFEQ 1", "ERR syntax error"),
    ("SET k v EX abc FOO", "ERR syntax error"),
    ("SET k v EX 01", "ERR value is not an integer or out of range"),
    ("SET k v ex +1", "ERR value is not an integer or out of range"),
    ("SELECT 0", ""),
    ("SELECT 16", "ERR DB index is out of range"),
    ("SELECT -1", "ERR DB index is out of range"),
    ("SELECT abc", "ERR value is not an integer or out of range"),
    ("SELECT 9999999999",
     "ERR value is out of range, value must between -2147483648 and 2147483647"),
    ("SELECT 99999999999999999999", "ERR value is not an integer or out of range"),
    ("EXPIRE k abc", "ERR value is not an integer or out of range"),
    ("EXPIRE k 9223372036854775807", "ERR invalid expire time in 'expire' command"),
    ("EXPIRE k -9223372036854775807", "ERR invalid expire time in 'expire' command"),
    ("EXPIRE k -1", ""),
    ("SET k v", ""),
    ("EXPIRE k -9223372036854775808", "ERR invalid expire time in 'expire' command"),
    ("PEXPIRE k -9223372036854775808", ""),
    ("EXPIRE k 10 FOO", "ERR Unsupported option FOO"),
    ("EXPIRE k 10 NX XX", "ERR NX and XX, GT or LT options at the same time are not compatible"),
    ("EXPIRE k 10 NX GT", "ERR NX and XX, GT or LT options at the same time are not compatible"),
    ("EXPIRE k 10 GT LT", "ERR GT and LT options at the same time are not compatible"),
    ("EXPIRE k 10 XX GT", ""),
    ("EXPIRE k 10 XX LT", ""),
    ("EXPIRE k 10 GT GT", ""),
    ("EXPIRE k abc FOO", "ERR Unsupported option FOO"),
    ("MSET a", "ERR wrong number of arguments for 'mset' command"),
    ("MSET a b c", "ERR wrong number of arguments for 'mset' command"),
    ("MGET", "ERR wrong number of arguments for 'mget' command"),
    ("SCAN abc", "ERR invalid cursor"),
    ("SCAN 0x0", "ERR invalid cursor"),
    ("SCAN 18446744073709551615", ""),
    ("SCAN 18446744073709551616", "ERR invalid cursor"),
    ("SCAN 0 COUNT 0", "ERR syntax error"),
    ("SCAN 0 COUNT -1", "ERR syntax error"),
    ("SCAN 0 COUNT abc", "ERR value is not an integer or out of range"),
    ("SCAN 0 COUNT", "ERR syntax error"),
    ("SCAN 0 MATCH", "ERR syntax error"),
    ("SCAN 0 TYPE foo", ""),
    ("SCAN 0 FOO bar", "ERR syntax error"),
    ("SCAN abc COUNT abc", "ERR invalid cursor"),
    ("SCAN 0 COUNT 9223372036854775807", ""),
    ("SCAN 0 COUNT 9223372036854775808", "ERR value is not an integer or out of range"),
    ("KEYS", "ERR wrong number of arguments for 'keys' command"),
    ("FLUSHALL FOO", "ERR syntax error"),
    ("FLUSHALL ASYNC SYNC", "ERR syntax error"),
    ("FLUSHALL sync", ""),
    ("FLUSHDB FOO", "ERR syntax error"),
    ("INCRBY n abc", "ERR value is not an integer or out of range"),
    ("INCRBY n 9223372036854775808", "ERR value is not an integer or out of range"),
    ("DECRBY n -9223372036854775808", "ERR decrement would overflow"),
    ("DECRBY n abc", "ERR value is not an integer or out of range"),
    ("INCRBY n 01", "ERR value is not an integer or out of range"),
    ("INCR n m", "ERR wrong number of arguments for 'incr' command"),
    ("CLIENT", "ERR wrong number of arguments for 'client' command"),
    ("CLIENT FOO", "ERR unknown subcommand 'FOO'. Try CLIENT HELP."),
    ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
    ("CLIENT setname \"a b\"",
     "ERR Client names cannot contain spaces, newlines or special characters."),
    ("CLIENT SETNAME \"\"", ""),
    ("CLIENT SETNAME a b", "ERR wrong number of arguments for 'client|setname' command"),
    ("CLIENT GETNAME x", "ERR wrong number of arguments for 'client|getname' command"),
    ("CLIENT ID x", "ERR wrong number of arguments for 'client|id' command"),
    ("CLIENT LIST FOO", "ERR syntax error"),
    ("CLIENT LIST TYPE foo", "ERR Unknown client type 'foo'"),
    ("CLIENT LIST TYPE", "ERR syntax error"),
    ("CLIENT LIST TYPE normal", ""),
    ("CLIENT LIST ID", "ERR syntax error"),
    ("CLIENT LIST ID abc", "ERR Invalid client ID"),
    ("CLIENT LIST ID 0", ""),
    ("CLIENT LIST ID -1", ""),
    ("CLIENT LIST ID 999999", ""),
    ("CLIENT LIST ID 1 abc", "ERR Invalid client ID"),
    ("CLIENT LIST TYPE pubsub ID", "ERR syntax error"),
    ("CLIENT LIST FOO BAR", "ERR syntax error"),
    ("CLIENT \"a\\nb\"", "ERR unknown subcommand 'a b'. Try CLIENT HELP."),
    ("CONFIG", "ERR wrong number of arguments for 'config' command"),
    ("CONFIG GET", "ERR wrong number of arguments for 'config|get' command"),
    ("CONFIG FOO", "ERR unknown subcommand 'FOO'. Try CONFIG HELP."),
    ("CONFIG SETX a b", "ERR unknown subcommand 'SETX'. Try CONFIG HELP."),
    ("CONFIG GET nosuch", ""),
    ("COMMAND FOO", "ERR unknown subcommand 'FOO'. Try COMMAND HELP."),
    ("COMMAND COUNT x", "ERR wrong number of arguments for 'command|count' command"),
    ("COMMAND DOCS nosuch", ""),
    ("HELLO 1", "NOPROTO unsupported protocol version"),
    ("HELLO 4", "NOPROTO unsupported protocol version"),
    ("HELLO abc", "ERR Protocol version is not an integer or out of range"),
    ("HELLO 2 FOO", "ERR Syntax error in HELLO option 'FOO'"),
    ("HELLO 2 AUTH", "ERR Syntax error in HELLO option 'AUTH'"),
    ("HELLO 2 AUTH a", "ERR Syntax error in HELLO option 'AUTH'"),
    ("HELLO 2 AUTH default x", ""),
    ("HELLO 2 SETNAME", "ERR Syntax error in HELLO option 'SETNAME'"),
    ("HELLO 2 SETNAME \"a b\"",
     "ERR Client names cannot contain spaces, newlines or special characters."),
    ("HELLO FOO", "ERR Protocol version is not an integer or out of range"),
    ("HELLO 02", "ERR Protocol version is not an integer or out of range"),
    ("HELLO 99999999999999999999", "ERR Protocol version is not an integer or out of range"),
    ("HELLO 3 SETNAME foo FOO", "ERR Syntax error in HELLO option 'FOO'"),
    ("AUTH", "ERR wrong number of arguments for 'auth' command"),
    ("AUTH a b c", "ERR syntax error"),
    ("PING a b", "ERR wrong number of arguments for 'ping' command"),
    ("PING a", ""),
    ("ECHO", "ERR wrong number of arguments for 'echo' command"),
    ("ECHO a b", "ERR wrong number of arguments for 'echo' command"),
    ("INFO a b", ""),
    ("INFO nosuch", ""),
    ("QUIT a b", ""),
    ("RESET a", "ERR wrong number of arguments for 'reset' command"),
    ("TIME a", "ERR wrong number of arguments for 'time' command"),
    ("DBSIZE a", "ERR wrong number of arguments for 'dbsize' command"),
    ("RANDOMKEY a", "ERR wrong number of arguments for 'randomkey' command"),
    ("SHUTDOWN FOO", "ERR syntax error"),
    ("SHUTDOWN NOSAVE SAVE", "ERR syntax error"),
    ("SHUTDOWN ABORT NOW", "ERR syntax error"),
    ("TTL", "ERR wrong number of arguments for 'ttl' command"),
    ("TYPE a b", "ERR wrong number of arguments for 'type' command"),
    ("PERSIST a b", "ERR wrong number of arguments for 'persist' command"),
    ("STRLEN", "ERR wrong number of arguments for 'strlen' command"),
    ("APPEND a", "ERR wrong number of arguments for 'append' command"),
    ("EXISTS", "ERR wrong number of arguments for 'exists' command"),
    ("DEL", "ERR wrong number of arguments for 'del' command"),
    ("UNLINK", "ERR wrong number of arguments for 'unlink' command"),
    ("\"f\\x00oo\" a", "ERR unknown command 'f', with args beginning with: 'a' "),
    ("\"foo\\nbar\" \"x\\r\\ny\"",
     "ERR unknown command 'foo bar', with args beginning with: 'x  y' "),
    ("foo \"a\\x00b\" c", "ERR unknown command 'foo', with args beginning with: 'a' 'c' "),
    ("SET k v EX 10 NX FOO", "ERR syntax error"),
    ("SET k v PX", "ERR syntax error"),
    ("SET k v PXAT -5", "ERR invalid expire time in 'set' command"),
    ("SET k v KEEPTTL EX 10", "ERR syntax error"),
    ("SET k v GET NX XX", "ERR syntax error"),
    ("HELLO 3 AUTH", "ERR Syntax error in HELLO option 'AUTH'"),
    ("HELLO 3 setname \"\\x01\"",
     "ERR Client names cannot contain spaces, newlines or special characters."),
    ("PEXPIRE k x", "ERR value is not an integer or out of range"),
    ("EXPIRE k 10 lt gt", "ERR GT and LT options at the same time are not compatible"),
    ("EXPIRE k 10 xx nx", "ERR NX and XX, GT or LT options at the same time are not compatible"),
    ("SCAN 1x", "ERR invalid cursor"),
    ("SCAN \" 1\"", "ERR invalid cursor"),
    ("FLUSHDB ASYNC ASYNC", "ERR syntax error"),
    ("CLIENT LIST id", "ERR syntax error"),
    ("INCRBY k", "ERR wrong number of arguments for 'incrby' command"),
    ("DECR", "ERR wrong number of arguments for 'decr' command"),
    ("COMMAND DOCSX", "ERR unknown subcommand 'DOCSX'. Try COMMAND HELP."),
    ("SHUTDOWN SAVE NOSAVE", "ERR syntax error"),
    ("MSET a b c d e", "ERR wrong number of arguments for 'mset' command"),
    ("SELECT 1a", "ERR value is not an integer or out of range"),
    ("SELECT \"\"", "ERR value is not an integer or out of range"),
    ("INCRBY n \"\"", "ERR value is not an integer or out of range"),
    ("PING a b c", "ERR wrong number of arguments for 'ping' command"),
    ("SCAN 0 MATCH a COUNT", "ERR syntax error"),
    ("CLIENT setname \"\\x80\"",
     "ERR Client names cannot contain spaces, newlines or special characters."),
];

/// Parses one request, given as wire bytes, and shows the result to `look`.
fn with_bytes<R>(bytes: &[u8], look: impl FnOnce(Result<Command<'_>, CommandError<'_>>) -> R) -> R {
    let mut parser = Parser::new(ParserLimits::default());
    parser.set_authenticated(true);
    let mut input = bytes;
    match parser.next(&mut input) {
        Parsed::Command(arguments) => look(Command::parse(&arguments)),
        other => panic!("{other:?}"),
    }
}

fn with<R>(line: &str, look: impl FnOnce(Result<Command<'_>, CommandError<'_>>) -> R) -> R {
    with_bytes(format!("{line}\r\n").as_bytes(), look)
}

/// Expects what the request parses to, by its debug text.
fn check(line: &str, expected: &str) {
    with(line, |found| {
        let found = format!("{:?}", found.expect(line));
        assert_eq!(found, expected, "{line}");
    });
}

fn check_error(line: &str, expected: &str) {
    with(line, |found| {
        let text = found.map_or_else(|error| error.to_string(), |_| String::new());
        assert_eq!(text, expected, "{line}");
    });
}

fn set(line: &str) -> (SetExpiry, SetCondition, bool) {
    with(line, |found| match found.expect(line) {
        Command::Set(set) => {
            assert_eq!((set.key, set.value), (&b"k"[..], &b"v"[..]));
            (set.expiry, set.condition, set.answer == SetAnswer::Old)
        }
        other => panic!("{other:?}"),
    })
}

fn expire(line: &str) -> (i64, ExpireCondition) {
    with(line, |found| match found.expect(line) {
        Command::Expire(expire) => (expire.ms, expire.condition),
        other => panic!("{other:?}"),
    })
}

#[test]
fn errors_are_those_of_redis() {
    for (line, expected) in GOLDEN {
        check_error(line, expected);
    }
}

#[test]
fn long_words_are_cut_in_errors_as_redis_does() {
    let with_arguments = |beginning: &str| {
        format!("ERR unknown command 'foo', with args beginning with: {beginning}")
    };
    let a = |count| "a".repeat(count);
    check_error(
        &format!("foo {} b c d e f g", a(122)),
        &with_arguments(&format!("'{}' 'b' ", a(122))),
    );
    check_error(&format!("foo {} b c d", a(200)), &with_arguments(&format!("'{}' ", a(128))));
    check_error(&a(170), &format!("ERR unknown command '{}', with args beginning with: ", a(128)));
    check_error(
        &format!("CLIENT {}", a(170)),
        &format!("ERR unknown subcommand '{}'. Try CLIENT HELP.", a(128)),
    );
}

#[test]
fn errors_that_redis_has_only_elsewhere() {
    // Redis has 16 databases, we have one.
    check_error("SELECT 1", "ERR DB index is out of range");
    // Redis 7.0 lacks SETINFO; these are the words of 7.2.
    check_error("CLIENT SETINFO foo x", "ERR Unrecognized option 'foo'");
    check_error(
        "CLIENT SETINFO LIB-VER 'a b'",
        "ERR lib-ver cannot contain spaces, newlines or special characters.",
    );
    // Redis takes a sign here.
    check_error("SCAN -1", "ERR invalid cursor");
    check_error("SCAN ''", "ERR invalid cursor");
    for line in ["POST / HTTP/1.1", "host: localhost"] {
        with(line, |found| assert!(matches!(found, Err(CommandError::CrossProtocol))));
    }
}

#[test]
fn keys_above_the_limit_are_refused_everywhere() {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let longest = &long[1..];
    for line in [
        "GET K",
        "SET K v",
        "DEL a K",
        "UNLINK K",
        "EXISTS a K b",
        "MGET a K",
        "MSET a b K c",
        "STRLEN K",
        "TYPE K",
        "EXPIRE K 1",
        "PEXPIRE K 1",
        "TTL K",
        "PTTL K",
        "PERSIST K",
        "INCR K",
        "DECR K",
        "INCRBY K 1",
        "DECRBY K 1",
        "APPEND K v",
        "SETEX K 1 v",
        "PSETEX K 1 v",
        "SETNX K v",
        "GETSET K v",
        "GETDEL K",
        "GETEX K",
        "GETRANGE K 0 1",
        "SETRANGE K 0 v",
        "EXPIREAT K 1",
        "PEXPIREAT K 1",
        "EXPIRETIME K",
        "PEXPIRETIME K",
    ] {
        let encode = |key: &str| {
            let words: Vec<&str> =
                line.split(' ').map(|word| if word == "K" { key } else { word }).collect();
            let mut bytes = format!("*{}\r\n", words.len());
            for word in words {
                bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
            }
            bytes.into_bytes()
        };
        with_bytes(&encode(&long), |found| {
            let error = found.expect_err(line).to_string();
            assert_eq!(error, "ERR key is longer than 65535 bytes", "{line}");
        });
        with_bytes(&encode(longest), |found| assert!(found.is_ok(), "{line}"));
    }
}

#[test]
fn set_options_are_typed() {
    use SetCondition::{Always, IfMissing, IfPresent};
    let in_ms = |ms| SetExpiry::In { ms };
    let at_ms = |ms| SetExpiry::At { ms };
    assert_eq!(set("SET k v"), (SetExpiry::None, Always, false));
    assert_eq!(set("set k v ex 10"), (in_ms(10_000), Always, false));
    assert_eq!(set("SET k v PX 10 NX"), (in_ms(10), IfMissing, false));
    assert_eq!(set("SET k v XX EXAT 10 GET"), (at_ms(10_000), IfPresent, true));
    assert_eq!(set("SET k v PXAT 9223372036854775807"), (at_ms(i64::MAX), Always, false));
    assert_eq!(set("SET k v KeepTTL get nx"), (SetExpiry::Keep, IfMissing, true));
    assert_eq!(set("SET k v EX 10 EX 20"), (in_ms(20_000), Always, false));
    // Now plus this overflows: only the executor can tell.
    assert_eq!(
        set("SET k v EX 9223372036854775"),
        (in_ms(9_223_372_036_854_775_000), Always, false)
    );
}

#[test]
fn expire_options_are_typed() {
    use ExpireCondition as When;
    assert_eq!(expire("EXPIRE k 10"), (10_000, When::Always));
    assert_eq!(expire("PEXPIRE k -10 nx"), (-10, When::IfWithout));
    assert_eq!(expire("EXPIRE k 1 XX"), (1_000, When::IfWith));
    assert_eq!(expire("EXPIRE k 1 GT"), (1_000, When::IfLater));
    assert_eq!(expire("EXPIRE k 1 LT LT"), (1_000, When::IfEarlier));
    assert_eq!(expire("EXPIRE k 1 XX GT"), (1_000, When::IfLater));
    assert_eq!(expire("EXPIRE k 1 LT XX"), (1_000, When::IfWithAndEarlier));
    assert_eq!(expire("PEXPIRE k 9223372036854775807"), (i64::MAX, When::Always));
}

#[test]
fn commands_are_typed() {
    check("PiNG", "Ping { message: None }");
    check("PING a", "Ping { message: Some([97]) }");
    check("GET a", "Get { key: [97] }");
    check("INCR n", "Increment { key: [110], by: 1 }");
    check("decr n", "Increment { key: [110], by: -1 }");
    check("INCRBY n -5", "Increment { key: [110], by: -5 }");
    check("DECRBY n 5", "Increment { key: [110], by: -5 }");
    check("DECRBY n 9223372036854775807", "Increment { key: [110], by: -9223372036854775807 }");
    check("APPEND a b", "Append { key: [97], value: [98] }");
    check("SCAN 007", "Scan(Scan { cursor: 7, pattern: None, count: None, kind: None })");
    check(
        "scan 18446744073709551615 match a count 5 type b count 6",
        "Scan(Scan { cursor: 18446744073709551615, pattern: Some([97]), count: Some(6), \
         kind: Some([98]) })",
    );
    check("SELECT 0", "Select");
    check("QUIT now", "Quit");
    check("COMMAND", "CommandList");
    check("command count", "CommandCount");
    check("FLUSHALL", "FlushAll(Default)");
    check("FLUSHDB async", "FlushDb(Async)");
    check("FLUSHALL SYNC", "FlushAll(Sync)");
    check("SHUTDOWN", "Shutdown(Stop { save: Default, now: false, force: false })");
    check("SHUTDOWN nosave NOW Force", "Shutdown(Stop { save: NoSave, now: true, force: true })");
    check("SHUTDOWN SAVE", "Shutdown(Stop { save: Save, now: false, force: false })");
    check("SHUTDOWN ABORT", "Shutdown(Abort)");
    check("HELLO", "Hello(Hello { protocol: None, credentials: None, name: None })");
    check(
        "HELLO 3 SETNAME a AUTH b c",
        "Hello(Hello { protocol: Some(Resp3), credentials: Some(Credentials { user: [98], .. }), \
         name: Some([97]) })",
    );
    check("CLIENT SETNAME ''", "Client(SetName { name: [] })");
    check("client getname", "Client(GetName)");
    check("CLIENT ID", "Client(Id)");
    check("CLIENT LIST", "Client(List { filter: All })");
    check("CLIENT LIST TYPE normal", "Client(List { filter: Normal })");
    check("CLIENT LIST type Replica", "Client(List { filter: Nobody })");
    check("CLIENT SETINFO lib-name a", "Client(SetLibraryName { name: [97] })");
    check("CLIENT SETINFO LIB-VER 1", "Client(SetLibraryVersion { version: [49] })");
}

#[test]
fn passwords_are_parsed_and_not_shown() {
    let credentials = |line: &str| {
        with(line, |found| match found.expect(line) {
            Command::Auth(found) => {
                assert!(!format!("{found:?}").contains("112"), "the password shows");
                (found.user.to_vec(), found.password.to_vec())
            }
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(credentials("AUTH p"), (b"default".to_vec(), b"p".to_vec()));
    assert_eq!(credentials("AUTH u p"), (b"u".to_vec(), b"p".to_vec()));
}

#[test]
fn several_keys_are_walked_over() {
    let found = |line: &str| {
        with(line, |found| match found.expect(line) {
            Command::Del { keys }
            | Command::Unlink { keys }
            | Command::Exists { keys }
            | Command::MGet { keys }
            | Command::Info { sections: keys }
            | Command::ConfigGet { patterns: keys }
            | Command::CommandDocs { names: keys }
            | Command::Client(Client::List { filter: ClientFilter::Ids(keys) }) => {
                assert_eq!(keys.len(), keys.count());
                String::from_utf8(keys.collect::<Vec<_>>().join(&b',')).unwrap()
            }
            Command::MSet { pairs } => {
                assert_eq!(pairs.len(), pairs.count());
                pairs.map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect()
            }
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(found("DEL a b c"), "a,b,c");
    assert_eq!(found("UNLINK a"), "a");
    assert_eq!(found("EXISTS a a"), "a,a");
    assert_eq!(found("MGET b a"), "b,a");
    assert_eq!(found("MSET a b c d"), "a=bc=d");
    assert_eq!(found("INFO"), "");
    assert_eq!(found("INFO server clients"), "server,clients");
    assert_eq!(found("CONFIG GET a b"), "a,b");
    assert_eq!(found("COMMAND DOCS"), "");
    assert_eq!(found("COMMAND DOCS get"), "get");
    assert_eq!(found("CLIENT LIST ID 1 -2"), "1,-2");
    assert_eq!((client_id(b"1"), client_id(b"-2")), (Some(1), None));
}

#[test]
fn the_table_is_in_the_order_of_the_ids_and_every_name_is_found() {
    for (index, spec) in COMMANDS.iter().enumerate() {
        assert_eq!(spec.id as usize, index, "{}", spec.name);
        for name in [spec.name.to_owned(), spec.name.to_uppercase()] {
            let found = CommandSpec::by_name(name.as_bytes()).expect("the name is in the table");
            assert_eq!(found.id, spec.id);
        }
        for subcommand in spec.subcommands {
            let (container, own) = subcommand.name.split_once('|').expect("it has a container");
            assert_eq!(container, spec.name);
            assert_eq!(spec.subcommand(own.as_bytes()).map(|s| s.id), Some(subcommand.id));
        }
    }
    let near_misses: [&[u8]; 9] = [
        b"",
        b"ge",
        b"gett",
        b"get\0",
        b"\0get",
        b"ge\x14",
        b"g\xc5t",
        b"randomkeys",
        b"client|id",
    ];
    for name in near_misses {
        assert!(CommandSpec::by_name(name).is_none(), "{}", name.escape_ascii());
    }
}

#[test]
fn names_differ_from_everything_but_their_two_cases() {
    for position in 0..3 {
        for byte in 0..=u8::MAX {
            let mut name = *b"get";
            name[position] = byte;
            let is_get = name.eq_ignore_ascii_case(b"get");
            let found = CommandSpec::by_name(&name).is_some_and(|s| s.id == CommandId::Get);
            assert_eq!(found, is_get, "{}", name.escape_ascii());
        }
    }
}

#[test]
fn command_answers_have_the_shape_of_redis_7() {
    let written = |name: &str, protocol, write: fn(&CommandSpec, &mut ReplyWriter<'_>)| {
        let mut output = BytesMut::new();
        let spec = CommandSpec::by_name(name.as_bytes()).expect("the name is in the table");
        write(spec, &mut ReplyWriter::new(&mut output, protocol));
        String::from_utf8(output.to_vec()).unwrap()
    };
    // As redis-server 7.0.15 but for the key specifications, which are left empty.
    let info = "*10\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n\
                *3\r\n+@read\r\n+@string\r\n+@fast\r\n*0\r\n*0\r\n*0\r\n";
    assert_eq!(written("get", Protocol::Resp2, CommandSpec::write_info), info);
    let docs = "$4\r\necho\r\n%4\r\n$7\r\nsummary\r\n$21\r\nAnswers its argument.\r\n\
                $5\r\nsince\r\n$5\r\n1.0.0\r\n$5\r\ngroup\r\n$10\r\nconnection\r\n\
                $10\r\ncomplexity\r\n$4\r\nO(1)\r\n";
    assert_eq!(written("echo", Protocol::Resp3, CommandSpec::write_docs), docs);
    let config = written("config", Protocol::Resp2, CommandSpec::write_docs);
    assert!(config.contains("$11\r\nsubcommands\r\n*2\r\n$10\r\nconfig|get\r\n*8\r\n"), "{config}");
}

#[test]
fn only_the_handshake_is_open_to_all() {
    let open: Vec<&str> =
        COMMANDS.iter().filter(|spec| spec.is_open_to_all()).map(|spec| spec.name).collect();
    assert_eq!(open, ["hello", "auth", "quit", "reset"]);
    let flagged: Vec<&str> =
        COMMANDS.iter().filter(|s| s.flags.contains(&"no_auth")).map(|s| s.name).collect();
    assert_eq!(open, flagged);
}
