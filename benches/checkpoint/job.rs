//! The measured job: building it, starting it under `rckpt run`, giving it orders, bringing it back.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Builds the job's program in `place`.
pub fn build(place: &Path) -> PathBuf {
    let program = place.join("job");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/checkpoint/job.c");
    let built = Command::new("gcc")
        .args(["-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .expect("run gcc");
    assert!(built.success(), "{} does not build", source.display());
    program
}

/// What a job is like.
#[derive(Clone, Debug)]
pub struct Shape {
    pub mebibytes: u64,
    pub pattern: &'static str,
    pub threads: usize,
    pub processes: usize,
    /// Threads that work without a pause.
    pub workers: usize,
}

/// What `rckpt dump` reports.
pub struct Dumped {
    /// End to end, as the caller sees it.
    pub milliseconds: f64,
    pub bytes: f64,
}

/// A job that runs, with rckpt as its parent.
pub struct Job<'bench> {
    rckpt: &'bench Path,
    directory: PathBuf,
    supervisor: Child,
}

/// Nanoseconds since 1970.
pub fn clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_nanos() as f64
}

impl<'bench> Job<'bench> {
    /// Starts a job in `directory`, which is made, and waits until it has set itself up.
    pub fn start(rckpt: &'bench Path, program: &Path, directory: PathBuf, shape: &Shape) -> Self {
        fs::create_dir(&directory).expect("make the job's directory");
        let mut command = Command::new(rckpt);
        command.args(["run", "--dir", "own", "--keep", "2", "--"]).arg(program);
        command.args([shape.mebibytes.to_string(), shape.pattern.to_owned()]);
        command.args([shape.threads, shape.processes, shape.workers].map(|it| it.to_string()));
        let supervisor = spawn(command, &directory);
        let mut job = Self { rckpt, directory, supervisor };
        job.answer();
        job
    }

    /// Gives an order, and waits for the answer.
    pub fn order(&mut self, order: &str) -> (f64, f64) {
        fs::write(self.directory.join("order.new"), order).expect("write an order");
        fs::rename(self.directory.join("order.new"), self.directory.join("order"))
            .expect("give an order");
        self.answer()
    }

    fn answer(&mut self) -> (f64, f64) {
        let path = self.directory.join("answer");
        let begun = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(&path) {
                fs::remove_file(&path).expect("take the answer");
                let mut numbers = text.split_whitespace().map(|word| word.parse::<f64>());
                let mut next = || numbers.next().and_then(Result::ok).expect("two numbers");
                return (next(), next());
            }
            if let Ok(Some(status)) = self.supervisor.try_wait() {
                let errors = fs::read_to_string(self.directory.join("errors")).unwrap_or_default();
                panic!("the job ended with {status}: {errors}");
            }
            assert!(begun.elapsed() < PATIENCE, "no answer in {}", path.display());
            sleep(Duration::from_micros(200));
        }
    }

    /// The most memory that the supervisor has had, in bytes, all checkpoints so far among them.
    pub fn supervisors_memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.supervisor.id());
        let status = fs::read_to_string(path).expect("read the supervisor's status");
        let words = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = words.and_then(|words| words.trim().strip_suffix(" kB"));
        kibibytes.and_then(|it| it.parse::<f64>().ok()).expect("it tells its memory") * 1024.0
    }

    /// Takes a checkpoint into `directory`; into the job's own when that is `None`.
    pub fn dump(&self, directory: Option<&str>, more: &[&str]) -> Dumped {
        let supervisor = self.supervisor.id();
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let root = fs::read_to_string(children).expect("read the supervisor's children");
        let root = root.split_whitespace().next().expect("the supervisor has a child").to_owned();
        let mut command = Command::new(self.rckpt);
        command.args(["dump", "--json", &root]).args(more).current_dir(&self.directory);
        command.args(directory.map(|it| format!("--dir={it}")));
        let begun = Instant::now();
        let output = command.output().expect("run rckpt dump");
        let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rckpt dump failed: {errors}");
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("rckpt dump reports as JSON");
        let bytes = report["bytes"].as_f64().expect("the report has bytes");
        if let Some(warnings) = report["warnings"].as_array().filter(|it| !it.is_empty()) {
            println!("  rckpt warns: {warnings:?}");
        }
        Dumped { milliseconds, bytes }
    }

    /// Takes a last checkpoint into `directory`, and ends.
    pub fn suspend(mut self, directory: Option<&str>, more: &[&str]) -> Suspended<'bench> {
        self.dump(directory, &[&["--kill"], more].concat());
        self.supervisor.wait().expect("wait for rckpt run");
        Suspended {
            rckpt: self.rckpt,
            directory: self.directory,
            from: directory.unwrap_or("own").to_owned(),
        }
    }

    /// Removes the checkpoints in one of the directories.
    pub fn forget(&self, directory: &str) {
        fs::remove_dir_all(self.directory.join(directory)).expect("remove checkpoints");
    }

    /// Ends the job, and removes all that is left of it.
    pub fn end(mut self) {
        self.order("quit");
        self.supervisor.wait().expect("wait for rckpt");
        fs::remove_dir_all(&self.directory).expect("remove the job's directory");
    }
}

/// A job that waits to be brought back.
pub struct Suspended<'bench> {
    rckpt: &'bench Path,
    directory: PathBuf,
    from: String,
}

impl<'bench> Suspended<'bench> {
    /// Brings it back: when its first thread ran again, in milliseconds from now.
    pub fn restore(self) -> (Job<'bench>, f64) {
        let mut command = Command::new(self.rckpt);
        command.args(["restore", &self.from]);
        let begun = clock();
        let supervisor = spawn(command, &self.directory);
        let mut job = Job { rckpt: self.rckpt, directory: self.directory, supervisor };
        // The time that it was away is the longest gap of all.
        let (_, end) = job.order("gap");
        (job, (end - begun) / 1e6)
    }
}

fn spawn(mut command: Command, directory: &Path) -> Child {
    let errors = fs::File::create(directory.join("errors")).expect("make a file");
    command.current_dir(directory).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    command.spawn().expect("start rckpt")
}
