//! What each signal to a supervisor means: a pure table, applied by the event loop.

use std::collections::BTreeMap;

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
    /// Take a checkpoint.
    Checkpoint,
    /// Take a last checkpoint and end the job.
    End(Farewell),
    /// Give the last checkpoint up and pass the signal on: whoever sends it will not wait.
    EndAtOnce,
    /// Look which children have ended.
    Reap,
    /// There is nothing to do, or the job got it from the same source.
    Nothing,
}

/// What becomes of a job after its last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// It is over until somebody asks for it again.
    Stop,
    /// The batch system is asked to start it again.
    Requeue,
}

/// What the user wants to be done about a signal (`--on SIG=ACTION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A checkpoint, and the job runs on.
    Checkpoint,
    /// A last checkpoint, then the job is stopped.
    Stop,
    /// The same, and the batch system is asked to start it again.
    Requeue,
    /// The job gets it.
    Forward,
}

/// What is done about each signal that has an action of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actions(BTreeMap<Signal, Action>);

/// Where a signal came from, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The terminal, which sends to its whole foreground group, and the job is in our group.
    SharedTerminal,
    /// Anything else: meant for the supervisor alone, as far as can be told.
    Directed,
}

/// The signals that users can give an action to. Batch systems warn with several of them.
pub const CONFIGURABLE: [Signal; 11] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGXCPU,
    Signal::SIGURG,
];

/// All signals that a supervisor reads from its descriptor; blocked from before the job starts.
#[must_use]
pub fn handled() -> SigSet {
    CONFIGURABLE.into_iter().chain([Signal::SIGCHLD]).collect()
}

impl Actions {
    /// Those of a job that is to be requeued or not, changed by what the user wants.
    #[must_use]
    pub fn new(requeue: bool, wanted: &[(Signal, Action)]) -> Self {
        let mut actions = BTreeMap::from([(Signal::SIGTERM, Action::Stop)]);
        if requeue {
            actions.insert(Signal::SIGTERM, Action::Requeue);
            actions.insert(Signal::SIGUSR1, Action::Requeue);
        }
        actions.extend(wanted.iter().copied());
        Self(actions)
    }

    /// What to do about `signal`. `told` says by which signals the supervisor was told to end before;
    /// `None`: it was not.
    #[must_use]
    pub fn reaction(&self, signal: Signal, origin: Origin, told: Option<&[Signal]>) -> Reaction {
        let farewell = match self.0.get(&signal) {
            _ if signal == Signal::SIGCHLD => return Reaction::Reap,
            None | Some(Action::Forward) => return usual(signal, origin),
            Some(Action::Checkpoint) if told.is_some() => return Reaction::Nothing,
            Some(Action::Checkpoint) => return Reaction::Checkpoint,
            Some(Action::Stop) => Farewell::Stop,
            Some(Action::Requeue) => Farewell::Requeue,
        };
        match told {
            None => Reaction::End(farewell),
            Some(signals) if signals.contains(&signal) => Reaction::EndAtOnce,
            // A batch system's warning, and then its word that it means it.
            Some(_) => Reaction::Nothing,
        }
    }
}

/// What to do about a signal for which nothing else is wanted.
const fn usual(signal: Signal, origin: Origin) -> Reaction {
    match (signal, origin) {
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

    use super::{Action, Actions, CONFIGURABLE, Farewell, Origin, Reaction, handled};

    #[test]
    fn each_signal_has_its_reaction() {
        let actions = Actions::new(false, &[]);
        let told: &[Signal] = &[Signal::SIGTERM];
        let check = |signal, origin, told, expected| {
            let reaction = actions.reaction(signal, origin, told);
            assert_eq!(reaction, expected, "{signal} {origin:?} {told:?}");
        };
        check(Signal::SIGTERM, Origin::Directed, None, Reaction::End(Farewell::Stop));
        check(Signal::SIGTERM, Origin::Directed, Some(told), Reaction::EndAtOnce);
        check(Signal::SIGINT, Origin::SharedTerminal, None, Reaction::Nothing);
        check(Signal::SIGINT, Origin::Directed, None, Reaction::Forward);
        check(Signal::SIGUSR1, Origin::Directed, None, Reaction::Forward);
        check(Signal::SIGWINCH, Origin::SharedTerminal, None, Reaction::Nothing);
        check(Signal::SIGHUP, Origin::SharedTerminal, Some(told), Reaction::Nothing);
        check(Signal::SIGTSTP, Origin::SharedTerminal, None, Reaction::Stop);
        check(Signal::SIGTSTP, Origin::Directed, None, Reaction::ForwardAndStop);
        check(Signal::SIGCONT, Origin::Directed, None, Reaction::Continue);
        check(Signal::SIGCHLD, Origin::Directed, None, Reaction::Reap);
    }

    #[test]
    fn what_the_user_wants_comes_first() {
        let wanted = [
            (Signal::SIGUSR2, Action::Checkpoint),
            (Signal::SIGINT, Action::Stop),
            (Signal::SIGTERM, Action::Forward),
        ];
        let check = |requeue, signal, told: Option<&[Signal]>, expected| {
            let actions = Actions::new(requeue, &wanted);
            let reaction = actions.reaction(signal, Origin::Directed, told);
            assert_eq!(reaction, expected, "{requeue} {signal} {told:?}");
        };
        let usr1: &[Signal] = &[Signal::SIGUSR1];
        check(false, Signal::SIGUSR2, None, Reaction::Checkpoint);
        check(false, Signal::SIGUSR2, Some(usr1), Reaction::Nothing);
        check(false, Signal::SIGINT, None, Reaction::End(Farewell::Stop));
        check(false, Signal::SIGTERM, None, Reaction::Forward);
        check(false, Signal::SIGUSR1, None, Reaction::Forward);
        check(true, Signal::SIGUSR1, None, Reaction::End(Farewell::Requeue));
        check(true, Signal::SIGINT, Some(usr1), Reaction::Nothing);
        check(true, Signal::SIGUSR1, Some(usr1), Reaction::EndAtOnce);
        check(true, Signal::SIGTERM, Some(usr1), Reaction::Forward);
        let plain = Actions::new(true, &[]);
        let term = plain.reaction(Signal::SIGTERM, Origin::Directed, Some(usr1));
        assert_eq!(term, Reaction::Nothing);
    }

    #[test]
    fn every_signal_that_can_be_configured_is_handled() {
        assert!(CONFIGURABLE.into_iter().all(|signal| handled().contains(signal)));
    }
}
