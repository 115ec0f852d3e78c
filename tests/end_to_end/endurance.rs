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

/// How much more memory, in KiB, anything may have in the end than after its first rounds.
const GROWTH: u64 = 2048;

/// What `field` of /proc/pid/status says of all processes of the job together.
fn total(root: Pid, field: &str) -> u64 {
    let mut job = process::descendants(root);
    job.insert(root);
    job.into_iter().filter_map(|pid| process::status_number(pid, field)).sum()
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
/// is to find. Nor may what is measured in KiB grow.
fn check_growth(fixture: &str, times: &[Duration], memory: [u64; 2]) {
    let third = times.len() / 3;
    let (first, last) = (median(&times[..third]), median(&times[times.len() - third..]));
    let [early, late] = memory;
    println!(
        "{fixture}: {} rounds, {first:?} each at first, {last:?} in the end; {early} KiB, then {late} KiB",
        times.len()
    );
    assert!(last < 4 * first + Duration::from_millis(200), "{first:?}, then {last:?}");
    assert!(late <= early + GROWTH, "{early} KiB of memory, then {late}");
}

/// What a long run has come to so far.
fn tell_progress(fixture: &str, round: usize, last: Duration, memory: u64) {
    if round % 100 == 99 {
        println!("{fixture}: round {}, {last:?}, {memory} KiB", round + 1);
    }
}

fn comes_back_again_and_again(fixture: &'static str, user: User) {
    let place = Workplace::new(user);
    let mut job = Running::start(&place, &Case::new(fixture), Start::Alone);
    let mut times = Vec::new();
    let mut settled = None;
    let (mut early, mut late) = (None, 0);
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
        late = total(job.root(), "VmSize");
        early.get_or_insert(late);
        tell_progress(fixture, round, times[round], late);
    }
    check_growth(fixture, &times, [early.unwrap_or(late), late]);
    job.judge();
}

fn is_saved_again_and_again(fixture: &'static str) {
    let place = Workplace::new(User::Plain);
    let job = Running::start(&place, &Case::new(fixture), Start::Supervised);
    let mut times = Vec::new();
    let before = sizes(job.root());
    let mut own = None;
    let (mut early, mut late) = (None, 0);
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
        // Without what it has in common with its file: how much of that is mapped at once is chance.
        late = process::status_number(job.child(), "RssAnon").expect("the supervisor runs");
        if round == rounds() / 2 {
            early = Some(late);
        }
        tell_progress(fixture, round, times[round], late);
        job.ping();
    }
    check_growth(fixture, &times, [early.unwrap_or(late), late]);
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
fn a_mix_comes_back_again_and_again() {
    comes_back_again_and_again("motion_mix", User::Plain);
}

#[test]
fn a_mix_is_saved_again_and_again() {
    is_saved_again_and_again("motion_mix");
}

#[test]
fn memory_is_saved_again_and_again() {
    is_saved_again_and_again("memory_private");
}

#[test]
fn waits_are_saved_again_and_again() {
    is_saved_again_and_again("threads_waiting");
}
