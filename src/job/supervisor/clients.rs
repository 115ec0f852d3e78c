//! What clients of the control socket ask, and what they are told.
//!
//! It puts what is asked into the loop's queue; it knows nothing of how a checkpoint is taken.

use std::time::{Instant, SystemTime};

use nix::unistd::{self, Pid};

use super::alarms::Alarm;
use super::{Asker, COMMAND_LIMIT, Guest, Loop, seconds_since_1970};
use crate::job::control::protocol::{self, Refusal, Reply, Request, Status};
use crate::job::control::server::{MOST_CLIENTS, Received};
use crate::job::stale;
use crate::sys::procfs;

impl Loop<'_> {
    pub(super) fn accept(&mut self) {
        while self.guests.len() < MOST_CLIENTS {
            let Some(client) = self.own.listener.accept() else { break };
            self.next_number += 1;
            self.guests.insert(self.next_number, Guest { client, on_hang_up: None });
        }
    }

    /// Hears what a client has to say.
    pub(super) fn hear(&mut self, number: u64) {
        let Some(guest) = self.guests.get(&number) else { return };
        let pid = guest.client.pid();
        match guest.client.receive() {
            Received::Nothing => {}
            Received::HangUp => self.hang_up(number),
            Received::Unreadable(error) => {
                self.trouble(&format!("a client of the control socket sent {error}"));
                self.answer(number, &Reply::Refused(Refusal::Unreadable));
            }
            Received::Request(request) => {
                let inside = pid.is_some_and(|pid| self.job.root.is_above(pid));
                if let Some(reply) = self.serve(number, request, pid, inside) {
                    self.answer(number, &reply);
                }
            }
        }
    }

    /// Does what a client asks. `None`: the answer comes later.
    fn serve(
        &mut self,
        number: u64,
        request: Request,
        asker: Option<Pid>,
        inside: bool,
    ) -> Option<Reply> {
        match request {
            Request::Status => Some(Reply::Status(self.status())),
            Request::Outcome { .. } if !inside => Some(Reply::Refused(Refusal::NotInside)),
            Request::Outcome { ticket } => Some(self.outcome(ticket)),
            Request::Dump(_) | Request::DumpFromInside(_) if self.told.is_some() => {
                Some(Reply::Refused(Refusal::Ending))
            }
            Request::Hold { seconds } => Some(self.hold(seconds, asker.filter(|_| inside))),
            Request::Release => Some(self.release()),
            Request::DumpFromInside(_) if inside && !self.holds.is_empty() => {
                Some(Reply::Refused(Refusal::Held))
            }
            Request::Dump(_) | Request::DumpFromInside(_) if self.queue.len() >= MOST_CLIENTS => {
                Some(Reply::Refused(Refusal::Busy))
            }
            Request::Dump(_) if inside => Some(Reply::Refused(Refusal::Inside)),
            Request::DumpFromInside(_) if !inside => Some(Reply::Refused(Refusal::NotInside)),
            Request::Dump(order) => {
                self.queue.push_back((Asker::Client(number), order));
                None
            }
            Request::DumpFromInside(order) => {
                self.next_number += 1;
                let ticket = self.next_number;
                let guest = self.guests.get_mut(&number)?;
                guest.on_hang_up = Some((ticket, order));
                Some(Reply::Accepted { ticket, instance: self.own.name.instance.clone() })
            }
        }
    }

    fn outcome(&self, ticket: u64) -> Reply {
        let is_it = |asker: &Asker| *asker == Asker::Inside(ticket);
        let waits = self.queue.iter().any(|(asker, _)| is_it(asker))
            || self.running.as_ref().is_some_and(|(asker, _, _)| is_it(asker));
        match self.outcomes.get(&ticket) {
            Some(reply) => reply.clone(),
            None if waits => Reply::Pending,
            None => Reply::Refused(Refusal::UnknownTicket),
        }
    }

    fn status(&self) -> Status {
        Status {
            job: self.job.identity.id.clone(),
            instance: self.own.name.instance.clone(),
            directory: self.job.directory.clone().into(),
            root: self.job.root.pid().as_raw(),
            supervisor: unistd::getpid().as_raw(),
            command: protocol::shorten(&self.job.identity.command, COMMAND_LIMIT),
            started: seconds_since_1970(self.own.started),
            every: self.own.settings.pace.interval(self.cost).map(|every| every.as_secs()),
            next: self.alarms.at(Alarm::Interval).map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                seconds_since_1970(SystemTime::now() + left)
            }),
            last: self.last.clone(),
            busy: self.running.is_some(),
            progress: self.gauge.read(),
            held: !self.holds.is_empty(),
            // A root process that has just ended has no environment.
            stale: procfs::read(self.job.root.pid(), "environ").map_or_else(
                |_| Vec::new(),
                |environment| {
                    stale::variables(&environment, |name| std::env::var_os(name.as_os_str()))
                },
            ),
        }
    }

    /// A client has gone; one from inside the job has made room for its checkpoint by that.
    fn hang_up(&mut self, number: u64) {
        if let Some(Guest { on_hang_up: Some((ticket, order)), .. }) = self.guests.remove(&number) {
            self.queue.push_back((Asker::Inside(ticket), order));
        }
    }

    /// Answers a client, and lets go of one that does not take the answer.
    pub(super) fn answer(&mut self, number: u64, reply: &Reply) {
        if self.guests.get(&number).is_some_and(|guest| !guest.client.reply(reply)) {
            self.guests.remove(&number);
        }
    }

    /// Refuses all checkpoints that wait.
    pub(super) fn refuse_all(&mut self, refusal: Refusal) {
        for (asker, _) in std::mem::take(&mut self.queue) {
            match asker {
                Asker::Client(number) => self.answer(number, &Reply::Refused(refusal)),
                Asker::Inside(ticket) => {
                    self.outcomes.insert(ticket, Reply::Refused(refusal));
                }
                Asker::Nobody | Asker::Ending => {}
            }
        }
    }
}
