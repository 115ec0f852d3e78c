//! A directory for each test, the user it belongs to, and commands run there as that user.

use std::borrow::BorrowMut;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::{Pid, geteuid};

use super::process;

/// The plain user's number, which no account needs to have.
const PLAIN: u32 = 12345;
/// The number of a plain user that every machine knows by name (nobody).
const KNOWN: u32 = 65534;

/// Who runs a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Caller,
    /// A user without privilege: the caller, unless that is root.
    Plain,
    /// The same, with an account on the machine.
    Known,
}

/// A directory that belongs to one test and its user. It goes away with the test, or stays and is
/// named when the test fails; every process that the test left goes in any case.
pub struct Workplace {
    directory: PathBuf,
    user: User,
}

impl Workplace {
    /// Makes the directory.
    pub fn new(user: User) -> Self {
        // Everything that descends from this process belongs to this test.
        let test = std::env::var("NEXTEST_TEST_NAME").expect("run by `cargo nextest run`");
        let test = test.replace("::", ".");
        process::adopt_orphans();
        let directory = shared_place().join("work").join(format!("{test}.{}", std::process::id()));
        fs::create_dir_all(&directory).expect("make the test's directory");
        let place = Self { directory, user };
        place.give(&place.directory);
        place
    }

    /// Another directory for the same test and user, which goes the same way.
    pub fn another(&self, name: &str) -> Self {
        let mut directory = self.directory.clone().into_os_string();
        directory.push(format!("-{name}"));
        let place = Self { directory: directory.into(), user: self.user };
        fs::create_dir_all(&place.directory).expect("make the test's directory");
        place.give(&place.directory);
        place
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether `name` exists in it.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The text of the file `name`, empty when there is none.
    pub fn text(&self, name: &str) -> String {
        fs::read(self.path(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Writes the file `name`, for the user. It appears whole: a job may wait for it.
    pub fn write(&self, name: &str, content: &str) {
        let own = self.path(&format!(".{name}.new"));
        fs::write(&own, content).expect("write a file");
        self.give(&own);
        fs::rename(&own, self.path(name)).expect("put a file in its place");
    }

    /// Makes the directory `name` in it, for the user.
    pub fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("make a directory");
        self.give(&path);
        path
    }

    fn give(&self, path: &Path) {
        if let Some(number) = self.other_user() {
            chown(path, Some(number), Some(number)).expect("give a file to the plain user");
        }
    }

    /// The number of the user, when that is not the caller.
    fn other_user(&self) -> Option<u32> {
        let number = match self.user {
            User::Caller => return None,
            User::Plain => PLAIN,
            User::Known => KNOWN,
        };
        geteuid().is_root().then_some(number)
    }

    /// A command run here, as the user, with no input; its words are added to the files `stdout` and
    /// `stderr`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if let Some(number) = self.other_user() {
            let mut command = Command::new("setpriv");
            command
                .args([format!("--reuid={number}"), format!("--regid={number}")])
                .args(["--clear-groups", "--inh-caps=-all", "--"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(&self.directory)
            .env("HOME", &self.directory)
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(self.stream("stdout"))
            .stderr(self.stream("stderr"));
        command
    }

    /// rckpt with these words, like [`Workplace::command`].
    pub fn rckpt(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(rckpt_binary());
        command.args(arguments);
        command
    }

    /// The file `name`, opened to add to it.
    pub fn stream(&self, name: &str) -> File {
        let file = self.callers_file(name);
        self.give(&self.path(name));
        file
    }

    /// The file `name`, opened to add to it, which is not the user's own.
    pub fn callers_file(&self, name: &str) -> File {
        let file = OpenOptions::new().append(true).create(true).open(self.path(name));
        file.expect("open a stream's file")
    }

    /// Starts a command; it ends with the test at the latest.
    pub fn start(&self, mut command: impl BorrowMut<Command>) -> Pid {
        let command = command.borrow_mut();
        // Reaped by the number, or with everything else when the test ends.
        #[allow(clippy::zombie_processes)]
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"))
    }

    /// Runs rckpt to its end: its exit status, and what it said on both streams.
    pub fn ask(&self, arguments: &[&str]) -> Answer {
        let mut command = self.rckpt(arguments);
        command.stdout(self.stream("answer.out")).stderr(self.stream("answer.err"));
        let pid = self.start(command);
        let status = process::exit_status(pid, Duration::from_secs(120));
        let answer =
            Answer { status, output: self.text("answer.out"), words: self.text("answer.err") };
        for name in ["answer.out", "answer.err"] {
            fs::remove_file(self.path(name)).expect("remove an answer");
        }
        answer
    }

    /// Runs rckpt, which must succeed: its standard output.
    pub fn tell(&self, arguments: &[&str]) -> String {
        let answer = self.ask(arguments);
        assert_eq!(answer.status, Some(0), "rckpt {arguments:?}: {answer:#?}");
        answer.output
    }
}

/// A text without its line ends and indents, which depend on the width of a terminal.
pub fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What became of a command.
#[derive(Debug)]
pub struct Answer {
    /// Exit status as a shell gives it; `None`: it did not end in good time.
    pub status: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub words: String,
}

impl Drop for Workplace {
    fn drop(&mut self) {
        process::kill_descendants();
        if std::thread::panicking() {
            eprintln!("the test's files are kept in {}", self.directory.display());
        } else {
            fs::remove_dir_all(&self.directory).expect("remove the test's directory");
        }
    }
}

/// A directory that the plain user can reach, unlike perhaps the one that was built in; it belongs to
/// the caller.
pub fn shared_place() -> PathBuf {
    let place = std::env::temp_dir().join(format!("rckpt-tests-{}", geteuid()));
    fs::create_dir_all(&place).expect("make the tests' directory");
    let owner = fs::symlink_metadata(&place).expect("look at the tests' directory").uid();
    assert_eq!(owner, geteuid().as_raw(), "{} belongs to somebody else", place.display());
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("open it for reading");
    place
}

/// Puts a file under `name` into the shared place, so that it appears whole; gives its path.
pub fn publish(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let bin = shared_place().join("bin");
    fs::create_dir_all(&bin).expect("make the tests' directory");
    let path = bin.join(name);
    if !path.exists() {
        let own = bin.join(format!(".{name}.{}", std::process::id()));
        make(&own);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).expect("make it executable");
        // Another test may have been quicker, and run it already: what it runs stays there.
        match fs::hard_link(&own, &path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                panic!("put {} in its place: {error}", path.display())
            }
            _ => fs::remove_file(&own).expect("remove the other name"),
        }
    }
    path
}

/// The binary under test, where the plain user can run it.
pub fn rckpt_binary() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_rckpt"));
    let facts = fs::metadata(built).expect("look at the built binary");
    let name = format!("rckpt-{:x}-{:x}.{:x}", facts.ino(), facts.mtime(), facts.mtime_nsec());
    publish(&name, |path| {
        fs::copy(built, path).expect("copy the built binary");
    })
}
