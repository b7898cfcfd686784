//! A few rounds of the crash loop per driver; `crash --kills N` runs any number.

use kadring_tests::crash_loop::{CrashOptions, run};
use kadring_tests::node_process::Driver;

use crate::directory;

fn check(driver: Driver, shards: u16, durability: &str) {
    let directory = directory();
    let seed = fastrand::u64(..);
    eprintln!(
        "crash --seed {seed} --kills 5 --io {driver} --shards {shards} --durability {durability}"
    );
    let options = CrashOptions {
        kills: 5,
        seed,
        driver,
        connections: 16,
        shards,
        durability: durability.to_owned(),
        write_ms_max: 500,
        node_arguments: Vec::new(),
        directory: directory.path().to_owned(),
    };
    match run(&options, &mut |_| {}) {
        Ok(summary) => {
            eprintln!("{summary}");
            assert_eq!(summary.kills, 5);
            assert!(summary.acknowledged_writes > 0 && summary.verified_keys > 0);
        }
        Err(violation) => {
            let _kept = directory.keep();
            panic!("{violation}");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_on_uring() {
    check(Driver::Uring, 2, "always");
}

#[test]
fn kernel_keeps_what_interval_has_acknowledged_when_the_process_is_killed() {
    check(Driver::Uring, 2, "interval");
}

#[test]
fn kernel_keeps_what_os_has_acknowledged_when_the_process_is_killed() {
    check(Driver::Pread, 2, "os");
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_on_tokio_uring() {
    check(Driver::TokioUring, 2, "always");
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_on_pread() {
    check(Driver::Pread, 3, "always");
}
