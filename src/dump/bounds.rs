//! What keeps a process in bounds or goes with it, and is shown by no file: Landlock domains, and keyrings
//! of its own.
//!
//! Nobody can read a Landlock domain. But whoever is in one may not look at processes outside of it
//! (landlock(7)), so the process is made to ask for something about rckpt, which it may look at otherwise.
//! Only its main thread is asked. The session's keyring cannot be asked for without making one.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::form::{Answers, Form, Number};
use super::refusal::StateRefusal;
use crate::sys::descriptor::{self, Shared};
use crate::sys::procfs::{self, Status};
use crate::tracer::injection::Call;

/// KCMP_VM.
const KCMP_VM: u64 = 1;
/// KEYCTL_GET_KEYRING_ID.
const KEYCTL_GET_KEYRING_ID: u64 = 0;
/// KEY_SPEC_THREAD_KEYRING and KEY_SPEC_PROCESS_KEYRING.
const KEYRINGS: [(i64, &str); 2] = [(-1, "thread"), (-2, "process")];

/// Questions that were asked.
#[derive(Debug)]
pub(super) struct Questions {
    /// Whether it may look at rckpt, where it should.
    looks: Option<Number>,
    keyrings: [(Number, &'static str); 2],
}

/// Puts the questions to the process of `status`.
pub(super) fn ask(form: &mut Form, status: &Status) -> Questions {
    let looks = should_see(status).then(|| {
        let pids = [status.tgid, Pid::this().as_raw()].map(|pid| u64::from(pid.unsigned_abs()));
        let call = Call::new(libc::SYS_kcmp, &[pids[0], pids[1], KCMP_VM, 0, 0]);
        form.number("look for Landlock", call)
    });
    let keyrings = KEYRINGS.map(|(keyring, name)| {
        let call =
            Call::new(libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID, keyring.cast_unsigned(), 0, 0, 0]);
        (form.number("look for a keyring", call), name)
    });
    Questions { looks, keyrings }
}

/// What of it cannot be brought back.
pub(super) fn judge(asked: &Questions, answers: &Answers) -> Vec<StateRefusal> {
    // Other guards say EACCES.
    let is_kept = asked.looks.is_some_and(|asked| answers.error(asked) == Some(Errno::EPERM));
    let landlock = is_kept.then_some(StateRefusal::Landlock);
    let has = |(asked, _): &&(Number, &'static str)| answers.known(*asked).is_some();
    let keyrings = asked.keyrings.iter().filter(has).map(|(_, name)| StateRefusal::Keyring(name));
    landlock.into_iter().chain(keyrings).collect()
}

/// Whether nothing but a Landlock domain can keep a process from looking at rckpt: both are of one user and
/// in the same namespaces, and it has all rights that rckpt has (`ptrace_may_access` in kernel/ptrace.c).
fn should_see(status: &Status) -> bool {
    let Ok(own) = procfs::status(Pid::this()) else { return false };
    let [_, permitted, ..] = status.capabilities;
    let [_, own_permitted, ..] = own.capabilities;
    let same_namespace = |name: &str| {
        let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        of(status.tgid).is_some_and(|found| Some(found) == of(own.tgid))
    };
    status.uids == own.uids
        && status.gids == own.gids
        && own_permitted & !permitted == 0
        && nix::sys::prctl::get_dumpable().is_ok_and(|dumpable| dumpable)
        && ["pid", "user"].into_iter().all(same_namespace)
        && may_compare(own.tgid)
}

/// Whether no sandbox around both forbids the call itself.
fn may_compare(own: i32) -> bool {
    let own = Pid::from_raw(own);
    descriptor::compare_tasks(Shared::Memory, own, own).is_ok()
}
