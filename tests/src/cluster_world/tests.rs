//! The simulated cluster, a few seeds of it.

use super::*;

#[test]
fn seeds_keep_to_the_promise() {
    for seed in 0..40 {
        if let Err(error) = run(seed, Mutation::Nothing) {
            panic!("{error}");
        }
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Mutation::Nothing), run(seed, Mutation::Nothing));
    }
}
