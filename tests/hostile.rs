//! Hostile input, the short and always equal form of the fuzz targets in `fuzz/`: images whose sections
//! were changed at random and have sound checksums nevertheless, and messages of any bytes. Whatever
//! comes, nothing panics, and memory is bounded by a multiple of what was declared.

#[path = "../fuzz/src/entry.rs"]
mod entry;

use std::path::{Path, PathBuf};
use std::time::Instant;

use entry::{Bench, Reached};
use peak_alloc::PeakAlloc;
use rckpt::image::codec::checksum;
use rckpt::image::format::{IMAGE_FILE, PAGES_FILE};
use rckpt::image::section::SectionKind;

/// Knows how much memory is in use. Each test is a process by itself, so it is the test's own.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// How many times as many inputs are tried; the long form of these tests asks for a hundred and more.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

/// The most that anything may take: so much for each byte of an image's sections (the largest record
/// has a few dozen bytes in memory for each that it has there), and what buffers take in any case.
const MOST_FOR_A_BYTE: usize = 64;
const MOST_IN_ANY_CASE: usize = 8 << 20;

fn rounds(short: u64) -> u64 {
    short * std::env::var(ROUNDS).map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

/// The bench for a golden image.
fn bench(name: &str) -> Bench {
    let bench = Bench::new(&golden(name));
    assert!(bench.changed(&[]) > Reached::Refused, "see docs/DEVELOPING.md, the format");
    bench
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Bytes that look random, the same in every run.
fn random(round: u64, length: usize) -> Vec<u8> {
    let words = (0_u64..).map(|word| checksum(&[round.to_le_bytes(), word.to_le_bytes()].concat()));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// A number below `limit` that looks random.
fn random_below(round: u64, limit: usize) -> usize {
    let number = checksum(&[round.to_le_bytes(), u64::MAX.to_le_bytes()].concat());
    usize::try_from(number % u64::try_from(limit).expect("small")).expect("below a small number")
}

/// Calls `try_one` with the number of each round, and sees how much memory it takes at most.
fn bounded(length: usize, rounds: u64, mut try_one: impl FnMut(u64)) {
    let start = Instant::now();
    let most = MOST_FOR_A_BYTE * length + MOST_IN_ANY_CASE;
    let mut largest = 0;
    for round in 0..rounds {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        try_one(round);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken <= most, "{taken} bytes of memory in round {round}, more than {most}");
        largest = largest.max(taken);
    }
    println!("{rounds} inputs in {:?}, at most {} KiB of memory", start.elapsed(), largest >> 10);
}

/// Images with one to three changes each; how many got how far.
fn changed(name: &str, short: u64) -> [u64; 3] {
    let bench = bench(name);
    let mut reached = [0; 3];
    bounded(bench.length() + 4096, rounds(short), |round| {
        let changes = 1 + random_below(round, 3);
        let [refused, read, planned] = &mut reached;
        *match bench.changed(&random(round, 5 * changes)) {
            Reached::Refused => refused,
            Reached::Read => read,
            Reached::Planned => planned,
        } += 1;
    });
    println!("{name}: {reached:?} refused, read, planned");
    assert_eq!(bench.changed(&[]), bench.changed(&[0xff, 0]), "unchanged it is taken");
    reached
}

#[test]
fn changed_records_of_every_kind() {
    let [refused, read, _] = changed("records", 2000);
    assert!(refused > 100 && read > 100);
}

#[test]
fn changed_records_of_a_real_job() {
    let [refused, read, planned] = changed("counter/job/gen-000001", 2000);
    assert!(refused > 100 && read + planned > 100);
}

#[test]
fn replaced_sections() {
    let bench = bench("records");
    bounded(bench.length() + 4096, rounds(2000), |round| {
        let length = 1 + random_below(round, 4096);
        let mut content = random(round, length);
        // Small numbers get further than great ones.
        if round % 2 == 0 {
            content.iter_mut().skip(1).for_each(|byte| *byte %= 4);
        }
        bench.replaced(&content);
    });
}

#[test]
fn changed_page_indexes() {
    let bench = bench("records");
    let sound = bench.section(SectionKind::PAGE_INDEX).to_vec();
    assert!(bench.with_index(&sound) >= Reached::Read);
    bounded(bench.length(), rounds(2000), |round| {
        let mut content = sound.clone();
        for pair in random(round, 2 + 2 * random_below(round, 4)).chunks_exact(2) {
            let place = usize::from(pair[0]) % content.len();
            content[place] = pair[1];
        }
        bench.with_index(&content);
    });
}

#[test]
fn headers() {
    let image = std::fs::read(golden("records").join(IMAGE_FILE)).expect("read a golden file");
    let pages = std::fs::read(golden("records").join(PAGES_FILE)).expect("read a golden file");
    bounded(8192, rounds(4000), |round| {
        // The end of a table decides as much as its beginning.
        let mut bytes = if round % 2 == 0 { image.clone() } else { pages.clone() };
        bytes.truncate(random_below(round, 8192));
        let length = bytes.len().clamp(1, 96);
        for pair in random(round, 2 * random_below(round, 4)).chunks_exact(2) {
            if let Some(byte) = bytes.get_mut(usize::from(pair[0]) % length) {
                *byte = pair[1];
            }
        }
        entry::header(&bytes);
    });
}

#[test]
fn messages_over_the_control_socket() {
    bounded(1024, rounds(50_000), |round| {
        let mut message = random(round, random_below(round, 256));
        message.iter_mut().take(2).for_each(|byte| *byte %= 12);
        entry::control(&message);
    });
}
