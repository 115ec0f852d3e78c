//! What is measured: jobs of several shapes, and the course that each goes through.

use std::path::Path;
use std::thread::{available_parallelism, sleep};
use std::time::Duration;

use super::floor;
use super::job::{Job, Shape};
use super::table::{Table, Unit, median};

/// Of every thousand pages, those written between two checkpoints.
const DIRTY: [u32; 5] = [0, 10, 30, 100, 1000];

/// How long a job is watched when nothing happens to it.
const QUIET: Duration = Duration::from_millis(500);

/// A job, and what is measured of it.
pub struct Scenario {
    pub name: String,
    shape: Shape,
    course: Course,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Course {
    /// Full checkpoints, incremental ones, restores.
    Memory,
    /// Full checkpoints and restores.
    Whole,
    /// How much work the job gets done.
    Work,
}

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    let plain = Shape { mebibytes: 0, pattern: "random", threads: 1, processes: 1, workers: 0 };
    let mut scenarios = Vec::new();
    for (size, mebibytes) in [("256m", 256), ("1g", 1024), ("4g", 4096)] {
        for pattern in ["random", "zeros", "text"] {
            let shape = Shape { mebibytes, pattern, ..plain.clone() };
            let name = format!("{size}-{pattern}");
            scenarios.push(Scenario { name, shape, course: Course::Memory });
        }
    }
    let cores = available_parallelism().map_or(1, usize::from);
    for (name, course, shape) in [
        ("threads-1000", Course::Whole, Shape { mebibytes: 1, threads: 1000, ..plain.clone() }),
        ("processes-200", Course::Whole, Shape { processes: 200, ..plain.clone() }),
        ("work-on-all-cores", Course::Work, Shape { mebibytes: 1024, workers: cores, ..plain }),
    ] {
        scenarios.push(Scenario { name: name.to_owned(), shape, course });
    }
    scenarios
}

/// What measures.
#[derive(Clone, Copy)]
pub struct Bench<'bench> {
    pub rckpt: &'bench Path,
    pub program: &'bench Path,
    pub place: &'bench Path,
}

impl Bench<'_> {
    /// Takes all figures of a scenario, so many times.
    pub fn measure(self, scenario: &Scenario, rounds: usize, table: &mut Table) {
        for round in 0..rounds {
            let directory = self.place.join(format!("{}-{round}", scenario.name));
            let job = Job::start(self.rckpt, self.program, directory, &scenario.shape);
            let mut course = Figures { place: self.place, scenario, table };
            match scenario.course {
                Course::Memory => course.memory(job),
                Course::Whole => course.whole(job),
                Course::Work => course.work(job),
            }
        }
    }
}

/// Where the figures of a round go.
struct Figures<'round> {
    place: &'round Path,
    scenario: &'round Scenario,
    table: &'round mut Table,
}

impl Figures<'_> {
    fn add(&mut self, name: &str, unit: Unit, value: f64, floor: Option<(&str, f64)>) {
        self.table.add(&self.scenario.name, name, unit, value, floor);
    }

    fn memory(&mut self, mut job: Job<'_>) {
        let copy = self.full(&mut job);
        let fork = self.forks(&mut job);
        // The first one in the job's own directory, for others to build on.
        let whole = job.dump(None, &[]);
        for permille in DIRTY {
            job.order(&format!("dirty {permille}"));
            job.order("gap");
            let dumped = job.dump(None, &[]);
            let (gap, _) = job.order("gap");
            let name = format!("{}.{} % dirty: ", permille / 10, permille % 10);
            self.add(
                &(name.clone() + "pause"),
                Unit::Milliseconds,
                gap / 1e6,
                Some(("fork", fork)),
            );
            let floor = Some(("full", whole.milliseconds));
            self.add(&(name.clone() + "dump"), Unit::Milliseconds, dumped.milliseconds, floor);
            let floor = Some(("full", whole.bytes / MEBIBYTE));
            self.add(&(name + "bytes"), Unit::Mebibytes, dumped.bytes / MEBIBYTE, floor);
        }
        let memory = job.supervisors_memory() / MEBIBYTE;
        self.add("rckpt's own memory, at most", Unit::Mebibytes, memory, None);
        let job = self.restore(job, "", None, &[], copy);
        self.restore(job, "uncompressed, ", Some("plain"), &["--compress", "none"], copy).end();
    }

    fn whole(&mut self, mut job: Job<'_>) {
        self.full(&mut job);
        let memory = floor::copy_in_memory(self.bytes());
        self.restore(job, "", None, &[], memory).end();
    }

    /// Full checkpoints: what copying as many bytes in memory takes.
    fn full(&mut self, job: &mut Job<'_>) -> f64 {
        job.order("gap");
        sleep(QUIET);
        let (noise, _) = job.order("gap");
        self.add("longest gap, undisturbed", Unit::Milliseconds, noise / 1e6, None);
        let fork = self.forks(job);
        let disk = floor::copy_on_disk(self.place, self.bytes());
        for (name, more) in [("full", &[][..]), ("full, uncompressed", &["--compress", "none"])] {
            job.order("gap");
            let dumped = job.dump(Some("full"), more);
            let (gap, _) = job.order("gap");
            let floor = Some(("fork", fork));
            self.add(&format!("{name}: pause"), Unit::Milliseconds, gap / 1e6, floor);
            let floor = Some(("cp + sync", disk));
            self.add(&format!("{name}: dump"), Unit::Milliseconds, dumped.milliseconds, floor);
            let floor = Some(("memory", self.bytes() as f64 / MEBIBYTE));
            self.add(&format!("{name}: bytes"), Unit::Mebibytes, dumped.bytes / MEBIBYTE, floor);
            job.forget("full");
        }
        floor::copy_in_memory(self.bytes())
    }

    /// How long the job needs to fork.
    fn forks(&self, job: &mut Job<'_>) -> f64 {
        let forks: Vec<f64> = (0..5).map(|_| job.order("fork").0 / 1e6).collect();
        median(&forks)
    }

    fn restore<'bench>(
        &mut self,
        job: Job<'bench>,
        name: &str,
        directory: Option<&str>,
        more: &[&str],
        copy: f64,
    ) -> Job<'bench> {
        let (mut job, first) = job.suspend(directory, more).restore();
        let (touch, _) = job.order("touch");
        let floor = Some(("memcpy", copy));
        self.add(&format!("{name}restore: first instruction"), Unit::Milliseconds, first, floor);
        let touched = first + touch / 1e6;
        self.add(&format!("{name}restore: all touched"), Unit::Milliseconds, touched, floor);
        job
    }

    /// How much less work a job gets done between and during checkpoints.
    fn work(&mut self, mut job: Job<'_>) {
        let alone = rate(&mut job, |_| sleep(4 * QUIET));
        let during = rate(&mut job, |job| job.dump(None, &[]));
        let between = rate(&mut job, |_| sleep(4 * QUIET));
        let again = rate(&mut job, |job| job.dump(None, &[]));
        for (name, rate) in
            [("full checkpoint", during), ("between", between), ("second checkpoint", again)]
        {
            let lost = 100.0 * (1.0 - rate / alone);
            self.add(&format!("work lost: {name}"), Unit::Percent, lost, None);
        }
        job.end();
    }

    fn bytes(&self) -> u64 {
        // The smallest process has some, too.
        self.scenario.shape.mebibytes.max(1) << 20
    }
}

/// Bytes in a mebibyte.
const MEBIBYTE: f64 = 1_048_576.0;

/// Work done in a nanosecond while something is being done.
fn rate<'bench, T>(job: &mut Job<'bench>, doing: impl FnOnce(&Job<'bench>) -> T) -> f64 {
    let (before, begun) = job.order("count");
    doing(job);
    let (after, ended) = job.order("count");
    (after - before) / (ended - begun)
}
