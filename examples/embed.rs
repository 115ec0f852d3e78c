//! A program that has a job of its own saved, looks into the checkpoint, and has it go on:
//! `cargo run --example embed DIRECTORY`. It needs `rckpt` in `PATH`, or `RCKPT_PROGRAM`.

use std::error::Error;
use std::process::{Command, Stdio};

use rckpt::embed::EmbedError;
use rckpt::image::Reader;

/// Counts, and tells its last number by its exit status.
const JOB: &str = "n=0; while [ $n -lt 20 ]; do n=$((n + 1)); sleep 0.1; done; exit $n";

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: embed DIRECTORY")?;
    let mut job = Command::new("sh");
    // What it writes would be among what this program writes itself.
    job.args(["-c", JOB]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut job = job.spawn()?;

    let taken = rckpt::dump(i32::try_from(job.id())?).directory(&directory).kill().take()?;
    println!("saved in {:.3} s, the job is gone: {}", taken.seconds, job.wait()?);

    let image = Reader::open(&taken.generation)?;
    for process in &image.job().processes {
        println!("process {} was {}", process.pid.0, process.name);
    }

    let mut restored = rckpt::restore(&directory).start()?;
    println!("it runs again as process {}", restored.root);
    println!("it ended with {}", restored.supervisor.wait()?);

    // What cannot be done has a code, and the catalogue says more about it.
    match rckpt::dump(i32::MAX).take() {
        Err(EmbedError::Refused(refused)) => {
            let remedy = refused.explained().map(|code| code.remedy()).unwrap_or_default();
            println!("{}: {}; {remedy}", refused.code, refused.message);
        }
        outcome => println!("{outcome:?}"),
    }
    Ok(())
}
