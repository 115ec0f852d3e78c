//! What is said while something takes its time: one line on a terminal, with bytes, rate and the time left.
//!
//! Nothing is said of what takes less than a second, where standard error is no terminal, or with -q.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::voice::{self, Weight};
use crate::image::watch::{Step, Watch};

/// What is done within this time is not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a second the line is drawn again, at most.
const RATE: u8 = 8;

/// Something that takes its time.
#[derive(Clone, Debug)]
pub struct Progress(Option<Arc<Line>>);

#[derive(Debug)]
struct Line {
    done: AtomicU64,
    begun: Instant,
    /// Reckons from the beginning, and is seen once it is worth it.
    bar: ProgressBar,
    is_seen: AtomicBool,
}

impl Progress {
    /// Begins. `words` say what is being done; `all` is how many bytes that is about, if that is known yet.
    pub fn begin(words: &'static str, all: Option<u64>) -> Self {
        let is_wanted = io::stderr().is_terminal() && voice::says(Weight::Usual);
        Self(is_wanted.then(|| {
            Arc::new(Line {
                done: AtomicU64::new(0),
                begun: Instant::now(),
                bar: bar(words, all),
                is_seen: AtomicBool::new(false),
            })
        }))
    }

    /// So many bytes have been done in all.
    pub fn reach(&self, done: u64) {
        let Some(line) = &self.0 else { return };
        line.done.store(done, Ordering::Relaxed);
        line.show(done);
    }

    /// What tells of bytes as they are done.
    pub fn watch(&self) -> Option<Watch> {
        let line = Arc::clone(self.0.as_ref()?);
        Some(Watch::new(move |step| match step {
            Step::Expected(all) => line.expect(all),
            Step::Done(bytes) => {
                let done = line.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
                line.show(done);
            }
        }))
    }

    /// Takes the line away again.
    pub fn end(&self) {
        if let Some(line) = &self.0 {
            line.bar.finish_and_clear();
        }
    }
}

impl Line {
    fn show(&self, done: u64) {
        if self.begun.elapsed() >= PATIENCE && !self.is_seen.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(RATE));
        }
        // What was expected is not always exact.
        if self.bar.length().is_some_and(|all| all < done) {
            self.bar.set_length(done);
        }
        self.bar.set_position(done);
    }

    fn expect(&self, all: u64) {
        self.bar.set_length(all);
        self.bar.set_style(style(true));
    }
}

/// A line that is not seen yet.
fn bar(words: &'static str, all: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(all, ProgressDrawTarget::hidden()).with_message(words);
    bar.with_style(style(all.is_some()))
}

/// What a line shows.
fn style(knows_all: bool) -> ProgressStyle {
    let template = if knows_all {
        "rckpt: {msg}: {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
    } else {
        "rckpt: {msg}: {bytes}, {bytes_per_sec}"
    };
    // The templates are right, as a test shows; and nothing depends on them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
