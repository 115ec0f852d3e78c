//! Many rounds: a job that is saved and brought back again and again, or saved again and again while it
//! runs, gives its right answer, and nothing grows.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::harness::process;
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// How many rounds; the long form of these tests asks for a thousand and more.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

/// How many checkpoints are kept.
const KEPT: &str = "2";

fn rounds() -> usize {
    std::env::var(ROUNDS).map_or(12, |rounds| rounds.parse().expect("a number of rounds"))
}

/// How many mappings, descriptors and threads each process of the job has, largest first.
fn sizes(root: Pid) -> Vec<[usize; 3]> {
    let mut job = process::descendants(root);
    job.insert(root);
    let mut sizes: Vec<_> = job.into_iter().map(|pid| process::belongings(pid).sizes()).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    sizes
}

/// Half of the rounds took at most so long.
fn median(rounds: &[Duration]) -> Duration {
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// The last rounds may take no more than a few times as long as the first: a busy machine is not what this
/// is to find.
fn check_times(fixture: &str, times: &[Duration]) {
    let third = times.len() / 3;
    let (first, last) = (median(&times[..third]), median(&times[times.len() - third..]));
    println!("{fixture}: {} rounds, {first:?} each at first, {last:?} in the end", times.len());
    assert!(last < 4 * first + Duration::from_millis(200), "{first:?}, then {last:?}");
}

fn comes_back_again_and_again(fixture: &'static str, user: User) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, &Case::new(fixture), Start::Alone);
    let mut times = Vec::new();
    let mut settled = None;
    for round in 0..rounds() {
        let start = Instant::now();
        job.dump(&["--kill"]);
        job.lose();
        job.restore();
        times.push(start.elapsed());
        if round % 10 == 1 {
            place.tell(&["prune", "job", "--keep", KEPT]);
        }
        // What the first restore changes (the order of mappings, say) it changes once.
        let sizes = sizes(job.root());
        assert_eq!(*settled.get_or_insert_with(|| sizes.clone()), sizes, "round {round}");
    }
    check_times(fixture, &times);
    job.judge();
}

fn is_saved_again_and_again(fixture: &'static str) {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new(fixture), Start::Supervised);
    let mut times = Vec::new();
    let before = sizes(job.root());
    let mut own = None;
    for round in 0..4 * rounds() {
        let start = Instant::now();
        job.dump(&[]);
        times.push(start.elapsed());
        if round % 10 == 1 {
            place.tell(&["prune", "job", "--keep", KEPT]);
        }
        assert_eq!(before, sizes(job.root()), "round {round}");
        // The supervisor, too, has as much as after its first rounds, but for what it is just using.
        let supervisor = process::belongings(job.child()).sizes();
        if round == rounds() / 2 {
            own = Some(supervisor);
        }
        let most = own.unwrap_or(supervisor).map(|size| size + 4);
        let fits = supervisor.iter().zip(&most).all(|(size, most)| size <= most);
        assert!(fits, "{supervisor:?}, more than {most:?}, in round {round}");
        job.ping();
    }
    check_times(fixture, &times);
    job.judge();
}

#[test]
fn threads_come_back_again_and_again() {
    comes_back_again_and_again("threads_waiting", User::Plain);
}

#[test]
fn a_family_comes_back_again_and_again() {
    comes_back_again_and_again("tree_family", User::Plain);
}

#[test]
fn sockets_come_back_again_and_again() {
    comes_back_again_and_again("socket_queues", User::Plain);
}

#[test]
fn timers_come_back_again_and_again_in_place() {
    comes_back_again_and_again("timers_posix", User::Caller);
}

#[test]
fn memory_is_saved_again_and_again() {
    is_saved_again_and_again("memory_private");
}

#[test]
fn waits_are_saved_again_and_again() {
    is_saved_again_and_again("threads_waiting");
}
