//! Measures checkpoints and restores of jobs of several sizes, each figure beside its floor in the same
//! run: what the kernel itself needs for a fork of that process, or a plain copy of as many bytes.
//!
//! `cargo bench` measures everything, `cargo bench -- 1g-random threads` what has these words in its
//! name. docs/PERFORMANCE.md says how to read the table. It only runs commands and looks at what the
//! measured job says of itself; it must know nothing of how rckpt works.

mod floor;
mod job;
mod scenario;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;

/// What the command line asks for.
struct Options {
    /// Words, one of which a scenario's name must have; none: all are measured.
    wanted: Vec<String>,
    /// How often each figure is taken.
    rounds: usize,
    /// Where the figures go as JSON.
    json: PathBuf,
    /// The program that is measured.
    rckpt: PathBuf,
    /// The directory that everything is done in: on the disk that is to be measured.
    place: PathBuf,
}

const USAGE: &str = "usage: cargo bench [-- [NAME]... [--rounds N] [--json FILE] [--rckpt PROGRAM] \
                     [--place DIRECTORY]]";

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self {
            wanted: Vec::new(),
            rounds: 3,
            json: PathBuf::from("target/performance.json"),
            rckpt: PathBuf::from(env!("CARGO_BIN_EXE_rckpt")),
            place: std::env::temp_dir(),
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--rounds" => options.rounds = words.next()?.parse().ok().filter(|it| *it > 0)?,
                "--json" => options.json = words.next()?.into(),
                "--rckpt" => options.rckpt = words.next()?.into(),
                "--place" => options.place = words.next()?.into(),
                flag if flag.starts_with('-') => return None,
                _ => options.wanted.push(word),
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let place = tempfile::Builder::new()
        .prefix("rckpt-bench-")
        .tempdir_in(&options.place)
        .expect("make a directory for the measured jobs");
    let program = job::build(place.path());
    let mut table = Table::default();
    for scenario in scenario::all() {
        let wanted = |word: &String| scenario.name.contains(word.as_str());
        if options.wanted.is_empty() || options.wanted.iter().any(wanted) {
            let bench =
                scenario::Bench { rckpt: &options.rckpt, program: &program, place: place.path() };
            bench.measure(&scenario, options.rounds, &mut table);
            table.print_last(&scenario.name);
        }
    }
    fs::write(&options.json, table.json()).expect("write the figures");
    println!("\nwritten to {}", options.json.display());
    ExitCode::SUCCESS
}
