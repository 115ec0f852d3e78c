//! Real programs on a terminal: dumped from elsewhere, lost, brought back on another one of another
//! size, where they go on. The terminals are panes of tmux.

use std::process::Command;
use std::time::Duration;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace, rckpt_binary};

/// A tmux server with two panes in which shells wait: `a`, and the larger `b`.
struct Screens {
    place: Workplace,
}

impl Screens {
    fn new(user: User) -> Self {
        let screens = Self { place: Workplace::new(user) };
        for (name, columns, rows) in [("a", "80", "24"), ("b", "100", "30")] {
            let mut tmux = screens.tmux(&["-f", "/dev/null", "new-session", "-d", "-s", name]);
            let shell = format!("PS1='{name}: ' bash --norc --noprofile");
            tmux.args(["-x", columns, "-y", rows, &shell]);
            screens.run(&mut tmux);
            screens.await_text(name, &format!("{name}:"));
        }
        screens
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let mut tmux = self.place.command("tmux");
        tmux.arg("-S").arg(self.place.path("tmux")).args(words);
        tmux
    }

    fn run(&self, command: &mut Command) {
        let status = process::exit_status(self.place.start(&mut *command), PATIENCE);
        assert_eq!(status, Some(0), "{command:?}: {}", self.place.text("stderr"));
    }

    /// Presses keys, by tmux's names of them.
    fn press(&self, pane: &str, keys: &[&str]) {
        self.run(self.tmux(&["send-keys", "-t", pane]).args(keys));
    }

    /// What a pane shows.
    fn text(&self, pane: &str) -> String {
        let shown = self.place.path("shown");
        // It is opened to be added to.
        std::fs::write(&shown, "").expect("empty a file");
        let mut tmux = self.tmux(&["capture-pane", "-p", "-t", pane]);
        self.run(tmux.stdout(self.place.stream("shown")));
        self.place.text("shown")
    }

    /// Waits until a pane shows what is wanted.
    fn await_screen(&self, pane: &str, what: &str, wanted: impl Fn(&str) -> bool) {
        let came = poll(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(30));
            wanted(&self.text(pane)).then_some(())
        });
        assert!(came.is_some(), "no {what} in {pane}:\n{}", self.text(pane));
    }

    fn await_text(&self, pane: &str, text: &str) {
        self.await_screen(pane, text, |screen| screen.contains(text));
    }

    /// Starts a program under rckpt in pane `a`.
    fn start(&self, program: &str) {
        let rckpt = rckpt_binary();
        let line =
            format!("{} run --dir job -- sh -c 'echo $$ >pid; exec {program}'", rckpt.display());
        self.press("a", &["clear; ", &line, "Enter"]);
        assert!(poll(PATIENCE, || self.place.has("pid").then_some(())).is_some(), "{program}");
    }

    /// Takes a checkpoint of it from elsewhere and ends it. The shell has its terminal back.
    fn lose(&self) {
        let pid = poll(PATIENCE, || Some(self.place.text("pid")).filter(|pid| !pid.is_empty()));
        self.place.tell(&["dump", "--kill", pid.expect("it has started").trim()]);
        self.await_text("a", "the job is stopped");
        self.press("a", &["clear; stty -a | tr ' ' '\\n' | grep icanon", "Enter"]);
        self.await_screen("a", "lines", |text| text.lines().any(|line| line == "icanon"));
    }

    /// Brings it back in pane `b`.
    fn restore(&self) {
        let line = format!("clear; {} restore job", rckpt_binary().display());
        self.press("b", &[&line, "Enter"]);
    }
}

fn an_editor_goes_on(user: User) {
    let screens = Screens::new(user);
    screens.place.write("text", "first\nlast\n");
    screens.start("vim -u NONE -i NONE text");
    screens.await_text("a", "last");
    screens.press("a", &["ohello "]);
    screens.await_text("a", "hello");
    screens.lose();
    screens.restore();
    // It draws everything, and nothing of what rckpt said is left.
    let drawn = |text: &str| text.starts_with("first\nhello\nlast\n~\n") && !text.contains("rckpt");
    screens.await_screen("b", "drawn text", drawn);
    assert!(screens.text("b").lines().count() > 24, "{}", screens.text("b"));
    screens.press("b", &["world", "Escape", ":wq", "Enter"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("b:"));
    assert_eq!(screens.place.text("text"), "first\nhello world\nlast\n");
}

fn an_interpreter_goes_on(user: User) {
    let screens = Screens::new(user);
    screens.start("/usr/bin/python3 -q");
    screens.await_text("a", ">>>");
    screens.press("a", &["number = 20", "Enter", "number += 1", "Enter", "number *"]);
    screens.await_text("a", "number *");
    screens.lose();
    screens.restore();
    screens.await_text("b", "brought back");
    screens.press("b", &[" 2", "Enter"]);
    screens.await_text("b", "42");
    screens.press("b", &["while True: pass", "Enter", "Enter"]);
    screens.press("b", &["C-c"]);
    screens.await_text("b", "KeyboardInterrupt");
    screens.press("b", &["C-d"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("b:"));
}

fn a_pager_goes_on(user: User) {
    let screens = Screens::new(user);
    let lines: String = (1..=500).map(|number| format!("line {number}\n")).collect();
    screens.place.write("text", &lines);
    screens.start("less text");
    screens.await_text("a", "line 1\n");
    screens.press("a", &["100G"]);
    screens.await_text("a", "line 100\n");
    screens.lose();
    screens.restore();
    screens.await_screen("b", "page", |text| {
        text.starts_with("line 100\n") && text.contains("line 128\n")
    });
    screens.press("b", &["q"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("b:"));
}

/// The shell's jobs have groups of their own, of which one is in the foreground.
fn a_shell_goes_on(user: User) {
    let screens = Screens::new(user);
    screens.start("bash --norc --noprofile -i");
    screens.await_text("a", "a:");
    screens.press("a", &["PS1=\"inner \"; number=42; sleep 1000", "Enter"]);
    screens.await_text("a", "inner");
    let running = poll(PATIENCE, || {
        let below = process::descendants(nix::unistd::Pid::this());
        below.into_iter().find(|pid| process::proc_text(*pid, "comm").trim() == "sleep")
    });
    assert!(running.is_some(), "{}", screens.text("a"));
    screens.lose();
    screens.restore();
    screens.await_text("b", "brought back");
    screens.press("b", &["C-z"]);
    screens.await_text("b", "Stopped");
    screens.press("b", &["echo \"<$number>\"; jobs; fg", "Enter"]);
    screens.await_text("b", "<42>");
    screens.await_screen("b", "job", |text| text.trim_end().ends_with("sleep 1000"));
    screens.press("b", &["C-c"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("inner"));
    screens.press("b", &["exit 7", "Enter"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("b:"));
    screens.press("b", &["echo \"<$?>\"", "Enter"]);
    screens.await_text("b", "<7>");
}

/// A job that was brought back is a job of the shell that it was brought back in.
fn a_job_is_stopped_and_continued(user: User) {
    let screens = Screens::new(user);
    screens.start("cat");
    screens.press("a", &["before", "Enter"]);
    screens.await_screen("a", "copy", |text| text.matches("before\n").count() == 2);
    screens.lose();
    screens.restore();
    screens.await_text("b", "brought back");
    screens.press("b", &["C-z"]);
    screens.await_text("b", "Stopped");
    screens.press("b", &["fg", "Enter"]);
    screens.await_screen("b", "job", |text| text.trim_end().ends_with("restore job"));
    screens.press("b", &["after", "Enter"]);
    screens.await_screen("b", "copy", |text| text.matches("after\n").count() == 2);
    screens.press("b", &["C-\\"]);
    screens.await_screen("b", "prompt", |text| text.trim_end().ends_with("b:"));
    screens.press("b", &["echo \"<$?>\"", "Enter"]);
    screens.await_text("b", "<131>");
}

/// A server of terminals with all that runs on them: tmux, a shell and an editor are the job.
fn a_multiplexer_goes_on(user: User) {
    let screens = Screens { place: Workplace::new(user) };
    let socket = screens.place.path("tmux");
    let mut run = screens.place.rckpt(&["run", "--dir", "job", "--", "tmux", "-S"]);
    let rckpt = screens.place.start(run.arg(&socket).args(["-f", "/dev/null", "-D"]));
    assert!(poll(PATIENCE, || socket.exists().then_some(())).is_some(), "tmux does not listen");
    let mut tmux = screens.tmux(&["new-session", "-d", "-s", "a", "-x", "80", "-y", "24"]);
    screens.run(tmux.arg("PS1='a: ' bash --norc --noprofile"));
    screens.await_text("a", "a:");
    screens.press("a", &["number=42; first=$(tty); vim -u NONE -i NONE text", "Enter"]);
    screens.await_text("a", "~\n");
    screens.press("a", &["ihello "]);
    screens.await_text("a", "hello");

    let server = process::children(rckpt)[0].to_string();
    screens.place.tell(&["dump", "--kill", &server]);
    assert_eq!(process::exit_status(rckpt, PATIENCE), Some(85));
    screens.place.start(screens.place.rckpt(&["restore", "job", "--pidfile", "pid"]));
    assert!(poll(PATIENCE, || screens.place.has("pid").then_some(())).is_some(), "not restored");

    screens.press("a", &["world", "Escape", ":wq", "Enter"]);
    screens.await_screen("a", "prompt", |text| text.trim_end().ends_with("a:"));
    assert_eq!(screens.place.text("text"), "hello world\n");
    screens.press("a", &["clear; [ \"$(tty)\" = \"$first\" ] && echo \"<$number>\"", "Enter"]);
    screens.await_text("a", "<42>");
}

macro_rules! on_a_terminal {
    ($( $name:ident ; )*) => { $(
        mod $name {
            use crate::harness::workplace::User;

            #[test]
            fn as_plain_user() {
                super::$name(User::Plain);
            }

            #[test]
            fn as_caller() {
                super::$name(User::Caller);
            }
        }
    )* };
}

on_a_terminal! {
    a_job_is_stopped_and_continued;
    a_multiplexer_goes_on;
    a_pager_goes_on;
    a_shell_goes_on;
    an_editor_goes_on;
    an_interpreter_goes_on;
}
