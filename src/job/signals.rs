//! What each signal to a supervisor means: a pure table, applied by the event loop.

use nix::sys::signal::{SigSet, Signal};

/// What a supervisor does about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Pass it on to the job's root process.
    Forward,
    /// Pass it on, then stop like any program that gets it.
    ForwardAndStop,
    /// Stop like any program that gets it; the job got its own.
    Stop,
    /// Pass it on if the job is stopped.
    Continue,
    /// Take a last checkpoint and end the job.
    End,
    /// Give the last checkpoint up and pass the signal on: whoever sends it will not wait.
    EndAtOnce,
    /// Look which children have ended.
    Reap,
    /// The job got it from the same source.
    Nothing,
}

/// Where a signal came from, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The terminal, which sends to its whole foreground group, and the job is in our group.
    SharedTerminal,
    /// Anything else: meant for the supervisor alone, as far as can be told.
    Directed,
}

/// All signals that a supervisor reads from its descriptor; blocked from before the job starts.
#[must_use]
pub fn handled() -> SigSet {
    [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGTSTP,
        Signal::SIGCONT,
    ]
    .into_iter()
    .collect()
}

/// What to do about `signal`. `told` says whether the supervisor has been told to end before.
#[must_use]
pub const fn reaction(signal: Signal, origin: Origin, told: bool) -> Reaction {
    match (signal, origin) {
        (Signal::SIGCHLD, _) => Reaction::Reap,
        (Signal::SIGTERM, _) if told => Reaction::EndAtOnce,
        (Signal::SIGTERM, _) => Reaction::End,
        (Signal::SIGTSTP, Origin::SharedTerminal) => Reaction::Stop,
        (Signal::SIGTSTP, Origin::Directed) => Reaction::ForwardAndStop,
        // A shell's `fg` sends it to the whole group, a user perhaps to the supervisor alone; the
        // source looks the same, but a job that got its own runs by now.
        (Signal::SIGCONT, _) => Reaction::Continue,
        (_, Origin::SharedTerminal) => Reaction::Nothing,
        (_, Origin::Directed) => Reaction::Forward,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::{Origin, Reaction, handled, reaction};

    #[test]
    fn each_signal_has_its_reaction() {
        let check = |signal, origin, told, expected| {
            assert_eq!(reaction(signal, origin, told), expected, "{signal} {origin:?} {told}");
        };
        check(Signal::SIGTERM, Origin::Directed, false, Reaction::End);
        check(Signal::SIGTERM, Origin::Directed, true, Reaction::EndAtOnce);
        check(Signal::SIGINT, Origin::SharedTerminal, false, Reaction::Nothing);
        check(Signal::SIGINT, Origin::Directed, false, Reaction::Forward);
        check(Signal::SIGWINCH, Origin::SharedTerminal, false, Reaction::Nothing);
        check(Signal::SIGHUP, Origin::SharedTerminal, true, Reaction::Nothing);
        check(Signal::SIGTSTP, Origin::SharedTerminal, false, Reaction::Stop);
        check(Signal::SIGTSTP, Origin::Directed, false, Reaction::ForwardAndStop);
        check(Signal::SIGCONT, Origin::Directed, false, Reaction::Continue);
        check(Signal::SIGCHLD, Origin::Directed, false, Reaction::Reap);
    }

    #[test]
    fn every_signal_that_is_passed_on_is_handled() {
        for signal in [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCONT] {
            assert!(handled().contains(signal), "{signal}");
        }
    }
}
