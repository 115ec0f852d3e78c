//! Freezes the tree of processes under a pid, asks every thread a few harmless questions from
//! inside, and lets everything go again, as often as told: `touch PID [ROUNDS]`. It is what the
//! tests kill at random moments, and what shows how long a freeze takes.

use std::env::args;
use std::error::Error;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rckpt::tracer::error::InjectError;
use rckpt::tracer::injection::Call;
use rckpt::tracer::tree::Tree;

const PR_GET_TID_ADDRESS: u64 = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = args().skip(1);
    let root = arguments.next().ok_or("usage: touch PID [ROUNDS]")?.parse()?;
    let rounds = arguments.next().map_or(Ok(1), |text| text.parse())?;
    for _ in 0..rounds {
        let begun = Instant::now();
        let mut tree = Tree::freeze(Pid::from_raw(root), None, Duration::from_secs(5))?;
        let frozen = begun.elapsed();
        let mut threads = 0;
        for index in 0..tree.processes().len() {
            let mut injector = tree.inject(index)?;
            injector.on_each_thread::<InjectError>(
                &|area| {
                    vec![
                        Call::new(libc::SYS_sigaltstack, &[0, area.0]),
                        Call::new(libc::SYS_prctl, &[PR_GET_TID_ADDRESS, area.0]),
                    ]
                },
                &mut |_, results, _| {
                    threads += usize::from(results.iter().all(Result::is_ok));
                    Ok(())
                },
            )?;
            injector.finish()?;
        }
        let processes = tree.processes().len();
        tree.thaw()?;
        let total = begun.elapsed();
        println!("{processes} processes, {threads} threads, frozen in {frozen:?}, held {total:?}");
    }
    Ok(())
}
