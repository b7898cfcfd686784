//! Precedence, every setting from every source, and every refusal with its message.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::{
    ClientLimits, Config, ConfigError, LogConfig, MainlineConfig, Password, SETTINGS, Sources,
    data_dir, flag_name, requirepass, variable_name,
};

/// Flags by key, variables by name and files by path.
#[derive(Default)]
struct World {
    flags: BTreeMap<String, OsString>,
    variables: BTreeMap<String, OsString>,
    files: BTreeMap<PathBuf, String>,
}

impl World {
    fn flag(mut self, key: &str, value: &str) -> Self {
        self.flags.insert(key.to_owned(), value.into());
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.to_owned());
        self
    }

    /// A configuration file, named by its flag.
    fn config(self, text: &str) -> Self {
        self.flag("config", "k.toml").file("k.toml", text)
    }

    fn with<T>(&self, body: impl FnOnce(&Sources<'_>) -> T) -> T {
        let read = |path: &Path| {
            self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        body(&Sources {
            flag: &|key| self.flags.get(key).cloned(),
            variable: &|name| self.variables.get(name).cloned(),
            read: &read,
        })
    }

    fn load(&self) -> Result<Config, ConfigError> {
        self.with(Config::load)
    }

    #[track_caller]
    fn refuses(&self, message: &str) {
        let found = self.load().expect_err(message).to_string();
        assert_eq!(found, message);
        assert!(!found.contains('\n'));
    }
}

/// A value other than the default for each setting, as a word and as TOML.
const SAMPLES: [(&str, &str, &str); 41] = [
    ("data_dir", "/d", "\"/d\""),
    ("client", "[::1]:99", "\"[::1]:99\""),
    ("mode", "mainline", "\"mainline\""),
    ("peer", "[::1]:9", "\"[::1]:9\""),
    ("advertise", "[2001:db8::1]:9", "\"[2001:db8::1]:9\""),
    ("peer_v6", "[::1]:8", "\"[::1]:8\""),
    ("bootstrap", "127.0.0.1:9,[::1]:9", "[\"127.0.0.1:9\", \"[::1]:9\"]"),
    ("replicas", "5", "5"),
    ("min_replicas_to_write", "1", "1"),
    ("read_consistency", "one", "\"one\""),
    ("cluster_secret_file", "/s", "\"/s\""),
    ("down_after_ms", "9", "9"),
    ("tombstone_grace_ms", "5000", "5000"),
    ("repair_bytes_per_second", "1MiB", "1048576"),
    ("admin", "127.0.0.1:98", "\"127.0.0.1:98\""),
    ("admin_public", "yes", "true"),
    ("item_ttl", "90m", "5400"),
    ("mirror", "7d", "\"168h\""),
    ("loopback_exempt", "yes", "\"yes\""),
    ("reachable", "no", "\"no\""),
    ("shards", "3", "3"),
    ("threads", "1", "1"),
    ("io", "pread", "\"pread\""),
    ("uring_abilities", "6.1", "\"6.1\""),
    ("pread_threads", "9", "9"),
    ("io_buffer_bytes", "8MiB", "8388608"),
    ("durability", "os", "\"os\""),
    ("sync_method", "sync", "\"sync\""),
    ("segment_bytes", "8MiB", "8388608"),
    ("cache_bytes", "0", "0"),
    ("disk_bytes_max", "9GiB", "\"9GiB\""),
    ("checkpoint_bytes", "5MiB", "5242880"),
    ("scrub_bytes_per_second", "0", "0"),
    ("connections_max", "7", "7"),
    ("value_bytes_max", "1mb", "\"1mb\""),
    ("output_pause_bytes", "4KiB", "4096"),
    ("output_bytes_max", "20MiB", "\"20 MiB\""),
    ("input_bytes_max", "17MiB", "17825792"),
    ("stall_ms", "250", "250"),
    ("log", "warn,kadring=debug", "\"warn,kadring=debug\""),
    ("log_format", "json", "\"json\""),
];

#[test]
fn every_setting_has_a_flag_a_variable_and_a_file_key_that_mean_the_same() {
    let keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys, SAMPLES.map(|(key, _, _)| key), "each setting needs a sample");
    for (setting, (key, word, toml)) in SETTINGS.iter().zip(SAMPLES) {
        assert_eq!(setting.flag, flag_name(key));
        let by_flag = World::default().flag(key, word).load().unwrap();
        let by_variable = World::default().variable(&variable_name(key), word).load().unwrap();
        let by_file = World::default().config(&format!("{key} = {toml}")).load().unwrap();
        assert_ne!(by_flag, Config::default(), "{key} changes nothing");
        assert_eq!(by_flag, by_variable, "{key}");
        assert_eq!(by_flag, by_file, "{key}");
        let changed: Vec<_> = by_flag
            .entries()
            .zip(Config::default().entries())
            .filter(|(new, old)| new != old)
            .map(|((key, _), _)| key)
            .collect();
        assert_eq!(changed, [key], "{key} changes itself alone");
    }
}

/// Of Mainline mode's settings.
fn assert_all_differ(changed: MainlineConfig, default: MainlineConfig) {
    let MainlineConfig { peer_v6, item_ttl_s, mirror_s, loopback_exempt, reachable } = changed;
    assert_ne!(peer_v6, default.peer_v6);
    assert_ne!(item_ttl_s, default.item_ttl_s);
    assert_ne!(mirror_s, default.mirror_s);
    assert_ne!(loopback_exempt, default.loopback_exempt);
    assert_ne!(reachable, default.reachable);
}

/// Fails to compile when a field is added, and fails to pass until it has a setting.
#[test]
fn every_field_has_a_setting() {
    let mut world = World::default().variable("KADRING_REQUIREPASS", "secret");
    for (key, word, _) in SAMPLES {
        world = world.flag(key, word);
    }
    let defaults = Config::default();
    let Config {
        data_dir,
        client,
        mode,
        bootstrap,
        mainline,
        admin,
        admin_public,
        requirepass,
        cluster,
        shards,
        threads,
        io,
        uring_abilities,
        pread_threads,
        io_buffer_bytes,
        durability,
        sync_method,
        segment_bytes,
        cache_bytes,
        disk_bytes_max,
        checkpoint_bytes,
        scrub_bytes_per_second,
        limits,
        log,
    } = world.load().unwrap();
    assert_ne!(data_dir, defaults.data_dir);
    assert_ne!(client, defaults.client);
    assert_ne!(mode, defaults.mode);
    assert_ne!(bootstrap, defaults.bootstrap);
    assert_all_differ(mainline, defaults.mainline);
    assert_ne!(admin, defaults.admin);
    assert_ne!(admin_public, defaults.admin_public);
    assert_ne!(requirepass, defaults.requirepass);
    assert_ne!(cluster, defaults.cluster);
    assert_ne!(shards, defaults.shards);
    assert_ne!(threads, defaults.threads);
    assert_ne!(io, defaults.io);
    assert_ne!(uring_abilities, defaults.uring_abilities);
    assert_ne!(pread_threads, defaults.pread_threads);
    assert_ne!(io_buffer_bytes, defaults.io_buffer_bytes);
    assert_ne!(durability, defaults.durability);
    assert_ne!(sync_method, defaults.sync_method);
    assert_ne!(segment_bytes, defaults.segment_bytes);
    assert_ne!(cache_bytes, defaults.cache_bytes);
    assert_ne!(disk_bytes_max, defaults.disk_bytes_max);
    assert_ne!(checkpoint_bytes, defaults.checkpoint_bytes);
    assert_ne!(scrub_bytes_per_second, defaults.scrub_bytes_per_second);
    every_limit_differs(limits, defaults.limits);
    let LogConfig { filter, format } = log;
    assert_ne!(filter, defaults.log.filter);
    assert_ne!(format, defaults.log.format);
}

fn every_limit_differs(limits: ClientLimits, defaults: ClientLimits) {
    let ClientLimits {
        connections_max,
        value_bytes_max,
        output_pause_bytes,
        output_bytes_max,
        input_bytes_max,
        stall_ms,
    } = limits;
    assert_ne!(connections_max, defaults.connections_max);
    assert_ne!(value_bytes_max, defaults.value_bytes_max);
    assert_ne!(output_pause_bytes, defaults.output_pause_bytes);
    assert_ne!(output_bytes_max, defaults.output_bytes_max);
    assert_ne!(input_bytes_max, defaults.input_bytes_max);
    assert_ne!(stall_ms, defaults.stall_ms);
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for setting in SETTINGS {
        let config = World::default().flag(setting.key, &setting.default_text()).load().unwrap();
        assert_eq!(config, Config::default(), "{}", setting.key);
    }
}

#[test]
fn no_sources_give_the_default() {
    let config = World::default().load().unwrap();
    assert_eq!(config, Config::default());
    config.validate().unwrap();
}

#[test]
fn flag_beats_variable_beats_file() {
    let world = World::default().config("shards = 1\nstall_ms = 1\npread_threads = 1");
    let world = world.variable("KADRING_SHARDS", "2").variable("KADRING_STALL_MS", "2");
    let config = world.flag("shards", "3").load().unwrap();
    assert_eq!(config.shards, Some(3));
    assert_eq!(config.limits.stall_ms, 2);
    assert_eq!(config.pread_threads, 1);
}

#[test]
fn auto_on_the_command_line_undoes_the_file() {
    let config = World::default().config("shards = 1").flag("shards", "auto").load().unwrap();
    assert_eq!(config.shards, None);
}

#[test]
fn empty_variable_counts_as_absent() {
    let world = World::default().variable("KADRING_SHARDS", "").variable("KADRING_CONFIG", "");
    assert_eq!(world.variable("KADRING_REQUIREPASS", "").load().unwrap(), Config::default());
}

#[test]
fn variable_names_the_file_too() {
    let world = World::default().variable("KADRING_CONFIG", "v.toml").file("v.toml", "shards = 5");
    assert_eq!(world.load().unwrap().shards, Some(5));
}

#[test]
fn values_out_of_form_or_range_name_their_place_and_what_is_accepted() {
    let flag = |key, value| World::default().flag(key, value);
    flag("shards", "0").refuses("--shards is 0; give a whole number from 1 to 16, or auto");
    flag("shards", "99999999")
        .refuses("--shards is \"99999999\"; give a whole number from 1 to 16, or auto");
    flag("client", "localhost").refuses(
        "--client is \"localhost\"; give an IP address and port such as 127.0.0.1:7379 or \
         [::1]:7379",
    );
    flag("io", "epoll").refuses("--io is \"epoll\"; give uring, tokio-uring or pread");
    flag("durability", "everysec")
        .refuses("--durability is \"everysec\"; give always, interval or os");
    flag("durability", "Always").refuses("--durability is \"Always\"; give always, interval or os");
    flag("sync_method", "fsync").refuses("--sync-method is \"fsync\"; give auto, dsync or sync");
    flag("data_dir", "").refuses("--data-dir is \"\"; give the path of a directory");
    flag("log", "inof").refuses(
        "--log is inof; give off, error, warn, info, debug or trace, also as module=level, with \
         commas between",
    );
    flag("log_format", "x\ny").refuses("--log-format is \"x\\ny\"; give text or json");
    flag("cache_bytes", "64m")
        .refuses("--cache-bytes is \"64m\"; give a size such as 256MiB or 1048576");
    World::default()
        .variable("KADRING_PREAD_THREADS", "65")
        .refuses("KADRING_PREAD_THREADS is 65; give a whole number from 1 to 64");
    World::default().config("segment_bytes = \"48MiB\"").refuses(
        "segment_bytes in k.toml is 48MiB; give a power of two from 4MiB to 256MiB, such as 64MiB",
    );
}

#[test]
fn range_borders_are_where_the_messages_say() {
    for (key, accepted, refused) in [
        ("shards", vec!["1", "16"], vec!["0", "17", "-1", "+1", ""]),
        ("threads", vec!["1", "16"], vec!["0", "17", ""]),
        ("pread_threads", vec!["1", "64"], vec!["0", "65"]),
        ("segment_bytes", vec!["4MiB", "256MiB"], vec!["2MiB", "512MiB", "5MiB", "0"]),
        ("io_buffer_bytes", vec!["4MiB", "12MiB", "4GiB"], vec!["0", "5MiB", "4098MiB", "5GiB"]),
        ("connections_max", vec!["1", "1000000"], vec!["0", "1000001"]),
        ("value_bytes_max", vec!["1", "32MiB"], vec!["0", "33554433"]),
        ("output_pause_bytes", vec!["1", "240MiB"], vec!["0"]),
        ("item_ttl", vec!["1m", "36500d"], vec!["59s", "36501d", "1", ""]),
        ("mirror", vec!["off", "0", "forever", "36500d"], vec!["36501d", "on"]),
        ("stall_ms", vec!["1", "18446744073709551615"], vec!["0", "18446744073709551616"]),
    ] {
        for value in accepted {
            World::default().flag(key, value).load().expect(key);
        }
        for value in refused {
            let error = World::default().flag(key, value).load().expect_err(key);
            assert!(matches!(error, ConfigError::ValueRefused { .. }), "{key} {value}: {error}");
        }
    }
}

#[test]
fn limits_that_do_not_fit_together_are_refused() {
    World::default().flag("output_bytes_max", "16MiB").refuses(
        "--output-bytes-max is 16MiB, less than 17MiB (output_pause_bytes + value_bytes_max); \
         raise output_bytes_max or lower value_bytes_max",
    );
    World::default().flag("output_bytes_max", "17MiB").load().unwrap();
    World::default().config("input_bytes_max = \"8MiB\"").refuses(
        "input_bytes_max in k.toml is 8MiB, less than 17MiB (value_bytes_max + 1MiB); raise \
         input_bytes_max or lower value_bytes_max",
    );
    let mut config = Config::default();
    config.limits.output_pause_bytes = usize::MAX;
    config.validate().unwrap_err();
}

#[test]
fn config_file_types_are_named() {
    for (line, message) in [
        ("shards = true", "shards in k.toml is the boolean true; give a whole number"),
        ("shards = \"4\"", "shards in k.toml is the string \"4\"; give a whole number"),
        ("shards = -4", "shards in k.toml is the integer -4; give a whole number"),
        ("stall_ms = 1.5", "stall_ms in k.toml is the float 1.5; give a whole number"),
        ("client = 7379", "client in k.toml is the integer 7379; give an IP address"),
        ("data_dir = [\"a\"]", "data_dir in k.toml is an array; give the path"),
        ("cache_bytes = { a = 1 }", "cache_bytes in k.toml is a table; give a size"),
        ("log = 2026-01-01", "log in k.toml is the date 2026-01-01; give off, error"),
    ] {
        let error = World::default().config(line).load().expect_err(line).to_string();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn config_file_errors_name_file_line_and_key() {
    World::default()
        .config("shard = 4")
        .refuses("k.toml has an unknown key `shard`; did you mean `shards`?");
    World::default()
        .config("data-dir = \"x\"")
        .refuses("k.toml has an unknown key `data-dir`; did you mean `data_dir`?");
    World::default()
        .config("[limits]\nstall_ms = 1")
        .refuses("k.toml has an unknown key `limits`; did you mean `client`?");
    let error = World::default().config("shards = 1\n\nio = \n").load().unwrap_err().to_string();
    assert!(error.starts_with("k.toml line 3: "), "{error}");
    assert!(!error.contains('\n'), "{error}");
    World::default().flag("config", "none.toml").refuses(
        "--config: cannot read none.toml: entity not found; name a readable file or leave it out",
    );
    World::default().flag("config", "").refuses("--config is \"\"; give the path of a file");
}

#[test]
fn open_door_without_password_is_refused() {
    World::default().flag("client", "0.0.0.0:7379").refuses(
        "client door 0.0.0.0:7379 is reachable from other machines and has no password; \
         set requirepass (KADRING_REQUIREPASS or --requirepass-file) or bind 127.0.0.1",
    );
    for client in ["[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        let world = World::default().flag("client", client);
        assert!(matches!(world.load(), Err(ConfigError::PasswordMissing { .. })), "{client}");
        world.variable("KADRING_REQUIREPASS", "secret").load().unwrap();
    }
    for client in ["127.9.9.9:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        World::default().flag("client", client).load().expect(client);
    }
}

#[test]
fn admin_door_for_other_machines_is_asked_for_twice() {
    World::default().flag("admin", "0.0.0.0:7480").refuses(
        "admin door 0.0.0.0:7480 is reachable from other machines and asks for no password; \
         give --admin-public if that is meant, or bind 127.0.0.1",
    );
    World::default().flag("admin", "[::]:1").flag("admin_public", "yes").load().unwrap();
    World::default().flag("admin", "[::1]:1").load().unwrap();
    World::default().variable("KADRING_ADMIN", "none").load().unwrap();
    World::default()
        .config("admin_public = \"maybe\"")
        .refuses("admin_public in k.toml is the string \"maybe\"; give yes or no");
}

#[test]
fn password_comes_from_the_highest_place_and_only_one() {
    let world = World::default().file("p", "from file\r\n").config("requirepass = \"c\"");
    let expect = |world: &World, text| {
        assert_eq!(world.load().unwrap().requirepass, Password::new(text), "{text}");
    };
    expect(&world, "c");
    let world = world.variable("KADRING_REQUIREPASS", "v");
    expect(&world, "v");
    let world = world.flag("requirepass_file", "p");
    expect(&world, "from file");
    assert_eq!(world.with(requirepass).unwrap(), Password::new("from file"));
    let world = World::default().file("p", "x").variable("KADRING_REQUIREPASS_FILE", "p");
    expect(&world, "x");
    world
        .variable("KADRING_REQUIREPASS", "y")
        .refuses("KADRING_REQUIREPASS and KADRING_REQUIREPASS_FILE are both set; keep one of them");
    // Whatever hands over flags, none of them is the password itself.
    expect_none(&World::default().flag("requirepass", "on the command line"));
}

fn expect_none(world: &World) {
    assert_eq!(world.load().unwrap().requirepass, None);
}

#[test]
fn unusable_passwords_are_refused() {
    let message = " does not hold a password; give one line of 1 to 512 bytes";
    for content in ["", "\n", "two\nlines\n", &"x".repeat(513)] {
        World::default()
            .flag("requirepass_file", "p")
            .file("p", content)
            .refuses(&format!("--requirepass-file{message}"));
    }
    World::default()
        .config("requirepass = \"\"")
        .refuses(&format!("requirepass in k.toml{message}"));
    World::default()
        .config("requirepass = 1234")
        .refuses(&format!("requirepass in k.toml{message}"));
    World::default()
        .flag("requirepass_file", "none")
        .refuses("--requirepass-file: cannot read none: entity not found; name a readable file");
}

#[test]
fn password_is_compared_whole_and_never_printed() {
    let config = World::default().variable("KADRING_REQUIREPASS", "hunter2").load().unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let password = config.requirepass.unwrap();
    assert!(password.matches(b"hunter2"));
    for wrong in [&b""[..], b"hunter", b"hunter3", b"hunter22", b"Hunter2"] {
        assert!(!password.matches(wrong));
    }
}

#[test]
fn data_dir_alone_does_not_need_a_valid_rest() {
    let world = World::default().config("data_dir = \"/d\"\nshards = 99");
    world.load().unwrap_err();
    assert_eq!(world.with(data_dir).unwrap(), Path::new("/d"));
}

proptest! {
    #[test]
    fn no_value_makes_loading_panic_or_its_message_span_lines(
        index in 0..SETTINGS.len(), value in any::<String>(), file in any::<String>(),
    ) {
        let world = World::default().flag(SETTINGS[index].key, &value);
        if let Err(error) = world.load() {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
        if let Err(error) = World::default().config(&file).load() {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
