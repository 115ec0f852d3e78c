//! The cross references of terminals: see [`super::validate`].

use std::collections::BTreeSet;

use super::validate::{Checked, Record, check_path, demand, refer};
use crate::model::file::OpenFileKind;
use crate::model::job::Job;
use crate::model::number::to_usize;
use crate::model::terminal::{
    PseudoTerminal, QUEUE_LIMIT, TerminalEnd, TerminalInput, TerminalState, WINSIZE_SIZE,
    assembles_lines,
};

/// Numbers of terminals are minor device numbers (include/linux/kdev_t.h).
const INDEX_LIMIT: u32 = 1 << 20;

/// How many descriptions there are of each end.
#[derive(Clone, Copy, Default)]
struct Ends {
    masters: usize,
    slaves: usize,
}

/// Checks the terminals of a job.
pub(super) fn check(job: &Job) -> Checked {
    let own = &job.terminals.own;
    let mut ends = vec![Ends::default(); own.len()];
    for (number, file) in job.open_files.iter().enumerate() {
        if let OpenFileKind::PseudoTerminal { terminal, end } = file.kind {
            refer(Record::OpenFile(number), "terminal", terminal.0, own.len())?;
            let ends = &mut ends[to_usize(u64::from(terminal.0))];
            match end {
                TerminalEnd::Master => ends.masters += 1,
                TerminalEnd::Slave | TerminalEnd::SlaveAsControlling => ends.slaves += 1,
            }
        }
    }
    let mut indexes = BTreeSet::new();
    let mut sessions = BTreeSet::new();
    for ((number, terminal), ends) in own.iter().enumerate().zip(ends) {
        let record = Record::Terminal(number);
        demand(terminal.index < INDEX_LIMIT, record, "its number is impossible")?;
        demand(indexes.insert(terminal.index), record, "another one has its number")?;
        check_path(record, &terminal.master)?;
        check_ends(record, terminal, ends)?;
        check_content(record, terminal)?;
        if let Some(session) = terminal.session {
            demand(sessions.insert(session), record, "its session has another terminal, too")?;
            let leads = |pid| pid == session;
            let mut leaders = job.processes.iter().filter(|process| leads(process.pid));
            let led = leaders.any(|process| process.sid == session && !process.is_zombie());
            demand(led, record, "no process leads its session")?;
        }
    }
    Ok(())
}

fn check_ends(record: Record, terminal: &PseudoTerminal, ends: Ends) -> Checked {
    let hung_up = terminal.state == TerminalState::HungUp;
    let masters = usize::from(!hung_up);
    demand(ends.masters == masters, record, "not exactly one open file is its master")?;
    let has_slaves = matches!(terminal.state, TerminalState::Open | TerminalState::HungUp);
    demand((ends.slaves > 0) == has_slaves, record, "its state and its open files disagree")?;
    let idle = terminal.session.is_none() && terminal.foreground.is_none();
    demand(idle || terminal.state == TerminalState::Open, record, "nobody has it open")
}

fn check_content(record: Record, terminal: &PseudoTerminal) -> Checked {
    let queued = [terminal.input.len(), terminal.output.0.len()];
    let fits = queued.into_iter().all(|length| length <= QUEUE_LIMIT);
    demand(fits, record, "more is queued than fits")?;
    if terminal.state == TerminalState::HungUp {
        return demand(queued == [0, 0], record, "it is hung up");
    }
    let lines = match <&[u8; _]>::try_from(&terminal.termios[..]) {
        Ok(termios) => assembles_lines(termios),
        Err(_) => return demand(false, record, "its modes are none"),
    };
    let as_lines = matches!(terminal.input, TerminalInput::Lines { .. });
    demand(
        terminal.input.is_empty() || as_lines == lines,
        record,
        "its input is not as its modes",
    )?;
    demand(terminal.window.len() == WINSIZE_SIZE, record, "its window size is none")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::super::validate::check_job;
    use super::*;
    use crate::model::id::{Bytes, Pid, TerminalId};

    fn refused(expected: &str, change: fn(&mut Job)) {
        let mut job = sample::job();
        change(&mut job);
        assert_eq!(check_job(&job).map_err(|error| error.to_string()), Err(expected.to_owned()));
    }

    #[test]
    fn impossible_terminals_are_refused() {
        refused("open file 20 refers to terminal 3, of which there are 1", |job| {
            let end = TerminalEnd::Master;
            job.open_files[20].kind = OpenFileKind::PseudoTerminal { terminal: TerminalId(3), end };
        });
        refused("terminal 0: not exactly one open file is its master", |job| {
            job.open_files[20].kind = OpenFileKind::ControllingTerminal;
        });
        refused("terminal 0: its state and its open files disagree", |job| {
            job.terminals.own[0].state = TerminalState::Fresh;
        });
        refused("terminal 0: its number is impossible", |job| {
            job.terminals.own[0].index = 1 << 20;
        });
        refused("terminal 0: its modes are none", |job| job.terminals.own[0].termios.truncate(9));
        refused("terminal 0: its window size is none", |job| job.terminals.own[0].window.clear());
        refused("terminal 0: no process leads its session", |job| {
            job.terminals.own[0].session = Some(Pid(4));
        });
        refused("terminal 0: its input is not as its modes", |job| {
            job.terminals.own[0].input = TerminalInput::Raw(Bytes::from(&b"x"[..]));
        });
        refused("terminal 0: more is queued than fits", |job| {
            job.terminals.own[0].output = Bytes(vec![0; QUEUE_LIMIT + 1]);
        });
        refused("terminal 1: another one has its number", |job| {
            let mut twin = job.terminals.own[0].clone();
            twin.state = TerminalState::Fresh;
            job.terminals.own.push(twin);
        });
    }
}
