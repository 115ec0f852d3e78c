//! `rckpt top`: my jobs on this machine and their checkpoints, as they are, on a terminal.
//!
//! Supervisors are asked by a thread of its own, so that keys are always listened to; [`view`] draws what is
//! known. Nothing is changed but by the key that takes a checkpoint.

mod view;

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::unistd::Pid;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::dump::files::saved::Wanted;
use crate::image::WriteOptions;
use crate::job::control::protocol::Then;
use crate::job::request::{self, Outcome};
use crate::job::supervisor::seconds_since_1970;
use crate::model::code::requests;

use self::view::{Screen, draw};
use super::failure::Failure;
use super::list::{Histories, Job, jobs};
use super::options;

/// How often supervisors are asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a key is waited for before the screen is drawn again.
const KEY_PATIENCE: Duration = Duration::from_millis(200);

/// Show my jobs and their checkpoints as they are, until q is pressed
#[derive(clap::Args)]
pub struct Arguments {}

/// What other threads have found out.
enum News {
    Jobs(Vec<Job>, usize),
    NotAsked(String),
    Checkpoint(String),
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Quit,
    Up,
    Down,
    Checkpoint,
}

/// Shows.
pub fn execute(Arguments {}: Arguments) -> Result<u8, Failure> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(Failure::user(
            requests::NO_TERMINAL,
            "rckpt top draws on a terminal, and there is none",
        )
        .hint("rckpt list tells the same once; rckpt list --json tells scripts"));
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))
            .map_err(|error| unusable(format_args!("wait for signals: {error}")))?;
    }
    let (sender, news) = mpsc::channel();
    ask_again_and_again(sender.clone())?;
    let undrawable = |error: io::Error| unusable(format_args!("draw on the terminal: {error}"));
    let mut terminal = ratatui::try_init().map_err(undrawable)?;
    let shown = show(&mut terminal, &ended, &sender, &news);
    // What it was drawn over comes back, whatever went wrong.
    let tidied = ratatui::try_restore();
    shown.and(tidied).map_err(undrawable)?;
    Ok(0)
}

fn unusable(message: impl Display) -> Failure {
    Failure::environment(requests::NO_TERMINAL, message)
}

/// Draws and listens to keys until somebody has had enough.
fn show(
    terminal: &mut DefaultTerminal,
    ended: &AtomicBool,
    sender: &Sender<News>,
    news: &Receiver<News>,
) -> io::Result<()> {
    let mut screen = Screen::default();
    while !ended.load(Ordering::Relaxed) {
        for news in news.try_iter() {
            take_in(&mut screen, news);
        }
        screen.now = seconds_since_1970(SystemTime::now());
        terminal.draw(|frame| draw(frame, &mut screen))?;
        if !event::poll(KEY_PATIENCE)? {
            continue;
        }
        match wish(&event::read()?) {
            Wish::Nothing => {}
            Wish::Quit => break,
            Wish::Up => screen.choose(-1),
            Wish::Down => screen.choose(1),
            Wish::Checkpoint => take_checkpoint(&mut screen, sender)?,
        }
    }
    Ok(())
}

fn wish(event: &Event) -> Wish {
    let Event::Key(key) = event else { return Wish::Nothing };
    if key.kind != KeyEventKind::Press {
        return Wish::Nothing;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Wish::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Up | KeyCode::Char('k') => Wish::Up,
        KeyCode::Down | KeyCode::Char('j') => Wish::Down,
        KeyCode::Char('c') => Wish::Checkpoint,
        _ => Wish::Nothing,
    }
}

fn take_in(screen: &mut Screen, news: News) {
    match news {
        News::Jobs(jobs, silent) => {
            screen.set_jobs(jobs);
            screen.silent = silent;
            screen.has_asked = true;
        }
        News::NotAsked(reason) => screen.message = Some(reason),
        News::Checkpoint(outcome) => screen.message = Some(outcome),
    }
}

/// Asks all supervisors until nobody listens any more.
fn ask_again_and_again(sender: Sender<News>) -> Result<(), Failure> {
    let ask = move || {
        let mut histories = Histories::new();
        loop {
            let news = match jobs(&mut histories) {
                Ok((jobs, silent)) => News::Jobs(jobs, silent.len()),
                Err(failure) => News::NotAsked(failure.message),
            };
            if sender.send(news).is_err() {
                return;
            }
            thread::sleep(INTERVAL);
        }
    };
    let thread = thread::Builder::new().name("ask".to_owned()).spawn(ask);
    // It is never joined: it ends with the process.
    thread.map(drop).map_err(|error| unusable(format_args!("start a thread: {error}")))
}

/// Asks the supervisor of the chosen job for a checkpoint, and waits for it aside.
fn take_checkpoint(screen: &mut Screen, sender: &Sender<News>) -> io::Result<()> {
    let Some(job) = screen.chosen() else { return Ok(()) };
    let (root, sender) = (job.root, sender.clone());
    screen.message = Some(format!("a checkpoint of {root} is asked for"));
    let take = move || {
        // Whoever listened has gone, and the checkpoint is taken all the same.
        sender.send(News::Checkpoint(checkpoint(root))).unwrap_or_default();
    };
    thread::Builder::new().name("checkpoint".to_owned()).spawn(take).map(drop)
}

/// Takes a checkpoint, and says what came of it.
fn checkpoint(root: i32) -> String {
    let asked = request::dump(&request::Options {
        pid: Some(Pid::from_raw(root)),
        directory: None,
        then: Then::Continue,
        compress: None,
        write: WriteOptions::default(),
        outputs: Vec::new(),
        tcp_close: false,
        ext_unix: false,
        save: Wanted::default(),
        watch: None,
    });
    match asked {
        Ok(Outcome::Taken(taken)) => options::summary(&taken),
        Ok(Outcome::Restored) => "this job was brought back from the checkpoint".to_owned(),
        Err(error) => format!("no checkpoint: {}", Failure::from(error).message),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

    use super::{Wish, wish};

    #[test]
    fn keys() {
        let check = |code: KeyCode, modifiers: KeyModifiers, expected: Wish| {
            assert_eq!(wish(&Event::Key(KeyEvent::new(code, modifiers))), expected, "{code:?}");
        };
        check(KeyCode::Char('q'), KeyModifiers::NONE, Wish::Quit);
        check(KeyCode::Char('c'), KeyModifiers::CONTROL, Wish::Quit);
        check(KeyCode::Char('c'), KeyModifiers::NONE, Wish::Checkpoint);
        check(KeyCode::Up, KeyModifiers::NONE, Wish::Up);
        check(KeyCode::Char('x'), KeyModifiers::NONE, Wish::Nothing);
        assert_eq!(wish(&Event::Resize(80, 24)), Wish::Nothing);
    }
}
