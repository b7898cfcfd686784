//! A few rounds of the crash loop per driver; `crash --kills N` runs any number.

use kadring_tests::crash_loop::{CrashOptions, run};
use kadring_tests::node_process::Driver;

use crate::directory;

fn check(driver: Driver, shards: u16) {
    let directory = directory();
    let seed = fastrand::u64(..);
    eprintln!("crash --seed {seed} --kills 5 --io {driver} --shards {shards}");
    let options = CrashOptions {
        kills: 5,
        seed,
        driver,
        connections: 16,
        shards,
        write_ms_max: 500,
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
    check(Driver::Uring, 2);
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_on_tokio_uring() {
    check(Driver::TokioUring, 2);
}

#[test]
fn nothing_acknowledged_is_lost_to_sigkill_on_pread() {
    check(Driver::Pread, 3);
}
