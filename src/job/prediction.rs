//! What a full checkpoint of a job will come to, worked out from what was seen of the job and how fast the
//! machine is. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::dump::survey::Survey;
use crate::model::number::{PAGE_SIZE, to_u64};

/// How fast this machine is at what a checkpoint is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// Seconds that fork takes for each byte of page tables.
    pub fork: f64,
    /// Bytes a second that the disk takes.
    pub write: f64,
    /// How long one small file takes until it is on the disk.
    pub sync: Duration,
    /// Threads that pack.
    pub workers: usize,
}

/// What is to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Bytes of memory, zeros left out.
    pub raw_bytes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Seconds that the job stands still.
    pub pause_seconds: f64,
    /// Seconds until the checkpoint is complete.
    pub seconds: f64,
}

/// Bytes of an image beside page data: records of the job, and of each process.
const RECORDS: u64 = 12 << 10;
const RECORDS_OF_PROCESS: u64 = 3 << 10;
/// Bytes that tell of each page where it is stored, and its hash.
const RECORDS_OF_PAGE: u64 = 20;
/// Seconds that making a hidden copy of a process takes beside its page tables.
const COPYING: f64 = 0.001;
/// Files and directories that are synced one after the other.
const SYNCS: f64 = 4.0;

/// Works out what a full, packed checkpoint will come to.
#[must_use]
pub fn predict(survey: &Survey, speeds: &Speeds) -> Prediction {
    let sample = &survey.sample;
    let full = 1.0 - ratio(sample.zeros, sample.pages);
    let plain_sampled = (sample.pages - sample.zeros) * PAGE_SIZE;
    let packed = if plain_sampled == 0 { 1.0 } else { ratio(sample.packed, plain_sampled) };
    let raw = number(survey.memory) * full + number(survey.contents);
    let records = RECORDS
        + RECORDS_OF_PROCESS * to_u64(survey.processes)
        + bytes(raw) / PAGE_SIZE * RECORDS_OF_PAGE;
    let stored = raw * packed;
    // Reading, packing and writing go on side by side.
    let reading = per_byte(sample.reading, sample.pages * PAGE_SIZE);
    let packing = per_byte(sample.packing, plain_sampled) / number(to_u64(speeds.workers.max(1)));
    let writing = packed / speeds.write.max(1.0);
    let slowest = reading.max(packing).max(writing);
    let held = number(survey.held) * full + number(survey.contents);
    let pause = survey.frozen.as_secs_f64()
        + number(to_u64(survey.copied)) * COPYING
        + number(survey.page_tables) * speeds.fork
        + held * slowest;
    let all = pause + (raw - held).max(0.0) * slowest + SYNCS * speeds.sync.as_secs_f64();
    Prediction {
        raw_bytes: bytes(raw),
        bytes: bytes(stored) + records,
        pause_seconds: pause,
        seconds: all,
    }
}

fn per_byte(time: Duration, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { time.as_secs_f64() / number(bytes) }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { number(part) / number(whole) }
}

/// A count as a number to calculate with: 32 bits of it at least are exact, which is more than any of this is.
fn number(value: u64) -> f64 {
    let high = u32::try_from(value >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// The nearest count of bytes.
fn bytes(value: f64) -> u64 {
    Duration::try_from_secs_f64(value.max(0.0)).map_or(u64::MAX, |whole| whole.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::survey::Sample;

    const GIBIBYTE: u64 = 1 << 30;

    fn speeds() -> Speeds {
        Speeds { fork: 5e-9, write: 1e9, sync: Duration::from_millis(5), workers: 2 }
    }

    fn survey() -> Survey {
        Survey {
            processes: 1,
            threads: 1,
            frozen: Duration::from_millis(3),
            memory: GIBIBYTE,
            copied: 1,
            page_tables: 2 << 20,
            sample: Sample {
                pages: 1000,
                zeros: 500,
                packed: 500 * PAGE_SIZE / 4,
                reading: Duration::from_millis(1),
                packing: Duration::from_millis(4),
            },
            ..Survey::default()
        }
    }

    #[test]
    fn half_of_it_zeros_and_the_rest_packed() {
        let prediction = predict(&survey(), &speeds());
        assert_eq!(prediction.raw_bytes, GIBIBYTE / 2);
        assert!(prediction.bytes > GIBIBYTE / 8 && prediction.bytes < GIBIBYTE / 7);
        // Copying 2 MiB of page tables takes 10 ms.
        assert!((0.012..0.020).contains(&prediction.pause_seconds), "{prediction:?}");
        // Packing 512 MiB at 2 ms for 500 pages, by two threads.
        assert!((0.4..0.7).contains(&prediction.seconds), "{prediction:?}");
    }

    #[test]
    fn what_cannot_be_copied_is_waited_for() {
        let alone = predict(&survey(), &speeds()).pause_seconds;
        let still = Survey { held: GIBIBYTE, ..survey() };
        assert!(predict(&still, &speeds()).pause_seconds > alone + 0.3);
    }

    #[test]
    fn a_job_without_pages_is_no_trouble() {
        let prediction = predict(&Survey::default(), &speeds());
        assert_eq!(prediction.raw_bytes, 0);
        assert!(prediction.bytes < 100_000 && prediction.seconds < 1.0);
    }

    #[test]
    fn numbers_go_both_ways() {
        for value in [0, 1, 4096, 5 << 30, 1 << 50] {
            assert_eq!(bytes(number(value)), value);
        }
    }
}
