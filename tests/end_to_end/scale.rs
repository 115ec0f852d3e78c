//! Large jobs: seconds, not minutes, and rckpt itself stays small. The bounds leave much room: they are
//! for a machine that is busy with other tests, and only catch what grows out of proportion.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// Most that any rckpt may have in memory, whatever the size of the job.
const MEMORY: i64 = 128 << 10; // KiB

/// Most time that a dump or a restore may take.
const TIME: Duration = Duration::from_secs(40);

fn comes_back_in_time(fixture: &'static str, user: User) {
    case_comes_back_in_time(fixture, &Case::new(fixture), user);
}

fn case_comes_back_in_time(fixture: &str, case: &Case, user: User) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, case, Start::Alone);
    let start = Instant::now();
    job.dump(&[]);
    let dumped = start.elapsed();
    // Of the children that have been waited for: compilers, and rckpt.
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).expect("ask for resource usage").max_rss();
    job.ping();
    job.lose();
    let start = Instant::now();
    job.restore();
    let restored = start.elapsed();
    println!("{fixture}: dumped in {dumped:?} with {peak} KiB, restored in {restored:?}");
    assert!(dumped < TIME && restored < TIME, "dumped in {dumped:?}, restored in {restored:?}");
    assert!(peak < MEMORY, "rckpt dump had {peak} KiB in memory");
    job.judge();
}

#[test]
fn a_gigabyte_with_64_threads_as_plain_user() {
    comes_back_in_time("scale_memory", User::Plain);
}

/// Eight processes with the same 200 MiB: they measure by themselves that these are there only once.
#[test]
fn a_pool_that_shares_memory_as_plain_user() {
    let case = Case::new("memory_pool").with_argument("200");
    case_comes_back_in_time("memory_pool", &case, User::Plain);
}

#[test]
fn a_pool_that_shares_memory_as_caller() {
    let case = Case::new("memory_pool").with_argument("200");
    case_comes_back_in_time("memory_pool", &case, User::Caller);
}

#[test]
fn two_hundred_processes_as_plain_user() {
    comes_back_in_time("scale_processes", User::Plain);
}

#[test]
fn two_hundred_processes_as_caller() {
    comes_back_in_time("scale_processes", User::Caller);
}

#[test]
fn a_thousand_threads_as_plain_user() {
    comes_back_in_time("scale_threads", User::Plain);
}

#[test]
fn a_thousand_threads_as_caller() {
    comes_back_in_time("scale_threads", User::Caller);
}
