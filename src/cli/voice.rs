//! How much is said, and where: `-q`, `-v`, `-vv` and `--log`, set once before a command begins.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use crate::job::supervisor::seconds_since_1970;
use crate::model::code::requests;

use super::failure::Failure;
use super::{options, output};

/// What every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "What is said")]
pub struct Voice {
    /// Say nothing but what went wrong
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more: what each checkpoint consists of, copies, signals (-vv: also what was called and how it
    /// ended)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Add everything that -vv would say to FILE, with the time
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// How important a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Something went wrong.
    Wrong,
    /// What people want to know.
    Usual,
    /// What they may want to know: -v.
    More,
    /// What helps to find out what happened: -vv.
    Most,
}

/// What was set.
#[derive(Debug)]
struct Setting {
    /// Words of less weight than this are not said.
    least: Weight,
    log: Option<Mutex<File>>,
    begun: Instant,
}

static SETTING: OnceLock<Setting> = OnceLock::new();

impl Voice {
    /// Takes it from now on.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn take(self, arguments: &[OsString]) -> Result<(), Failure> {
        let least = match (self.quiet, self.verbose) {
            (true, _) => Weight::Wrong,
            (false, 0) => Weight::Usual,
            (false, 1) => Weight::More,
            (false, _) => Weight::Most,
        };
        let open = |path: PathBuf| {
            // Words name paths and programs, which are nobody else's business.
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
            file.map(Mutex::new).map_err(|error| {
                Failure::environment(
                    requests::CANNOT_WRITE_FILE,
                    format_args!("open the log {}: {error}", path.display()),
                )
            })
        };
        let log = self.log.map(open).transpose()?;
        // Commands run once in a process; a second setting would not count.
        SETTING.set(Setting { least, log, begun: Instant::now() }).unwrap_or_default();
        let words: Vec<_> = arguments.iter().map(|word| word.display().to_string()).collect();
        let version = env!("CARGO_PKG_VERSION");
        output::most(format_args!("rckpt {version} was called: {}", words.join(" ")));
        Ok(())
    }
}

/// Whether words of this weight are said.
pub fn says(weight: Weight) -> bool {
    weight <= SETTING.get().map_or(Weight::Usual, |setting| setting.least)
}

/// Says with which status the command ends.
pub fn end(status: u8) {
    let elapsed = SETTING.get().map(|setting| setting.begun.elapsed()).unwrap_or_default();
    output::most(format_args!("ends with status {status} after {:.3} s", elapsed.as_secs_f64()));
}

/// Writes words into the log, if there is one.
pub fn log(words: impl fmt::Display) {
    let Some(file) = SETTING.get().and_then(|setting| setting.log.as_ref()) else { return };
    let time = options::instant(seconds_since_1970(SystemTime::now()));
    let process = std::process::id();
    let lines: String =
        words.to_string().lines().map(|line| format!("{time} [{process}] {line}\n")).collect();
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    if file.write_all(lines.as_bytes()).is_err() {
        // The same has been said to people; a full disk is told of by what really needs room.
    }
}
