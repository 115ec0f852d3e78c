//! What the trials of kernel features come to for this user: what works, with what less, and what to ask
//! the administrator for.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::sys::features::{Feature, Features, Trial};
use crate::sys::gauge;

use super::line::{Grade, Line, Remedy};

/// All lines about the kernel, for a user with these capabilities.
pub fn assess(features: &Features, capabilities: u64) -> Vec<Line> {
    let mut lines = vec![identity(&features.trials, capabilities)];
    lines.extend(MATTERS.iter().map(|matter| matter.line(features)));
    lines.push(written_pages(features));
    lines
}

/// A feature that matters by itself.
struct Matter {
    feature: Feature,
    subject: &'static str,
    /// What is so when it does not work.
    without: &'static str,
    grade_without: Grade,
    /// What to ask the administrator.
    ask: &'static str,
}

const MATTERS: [Matter; 18] = [
    Matter {
        feature: Feature::TraceDescendants,
        subject: "trace one's own children (ptrace)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        ask: "Please allow ptrace: the sysctl kernel.yama.ptrace_scope below 3, for a container \
              --security-opt seccomp=unconfined or --cap-add=SYS_PTRACE.",
    },
    Matter {
        feature: Feature::TraceOthers,
        subject: "trace one's other processes",
        without: "only jobs under rckpt run or rckpt restore can be saved",
        grade_without: Grade::Less,
        ask: "Please set the sysctl kernel.yama.ptrace_scope to 0, so that I can save jobs that I did not \
              start with rckpt run.",
    },
    Matter {
        feature: Feature::ReadProc,
        subject: "read /proc of other processes",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        ask: "Please mount /proc as usual (without subset=pid), on a kernel with CONFIG_PROC_PAGE_MONITOR \
              and CONFIG_CHECKPOINT_RESTORE.",
    },
    Matter {
        feature: Feature::TakeDescriptors,
        subject: "take descriptors (pidfd_getfd)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        ask: "Please allow the system call pidfd_getfd (Linux 5.6 or later), for a container \
              --security-opt seccomp=unconfined.",
    },
    Matter {
        feature: Feature::CompareDescriptors,
        subject: "compare descriptors (kcmp)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        ask: "Please allow the system call kcmp (a kernel with CONFIG_KCMP), for a container \
              --security-opt seccomp=unconfined.",
    },
    Matter {
        feature: Feature::ReadMemory,
        subject: "read memory (process_vm_readv)",
        without: "saving is slower",
        grade_without: Grade::Less,
        ask: "Please allow the system call process_vm_readv, for a container --security-opt \
              seccomp=unconfined.",
    },
    Matter {
        feature: Feature::RseqConfiguration,
        subject: "find rseq areas",
        without: "programs that register any (glibc 2.35 and later) are refused, unless told not to",
        grade_without: Grade::Less,
        ask: "Please give us Linux 5.13 or later.",
    },
    Matter {
        feature: Feature::CloseRanges,
        subject: "copy running jobs (close_range)",
        without: "jobs stand still until their memory is written",
        grade_without: Grade::Less,
        ask: "Please give us Linux 5.9 or later, with the system call close_range allowed.",
    },
    Matter {
        feature: Feature::UnixSockets,
        subject: "look into unix sockets",
        without: "jobs with unix sockets cannot be saved",
        grade_without: Grade::Less,
        ask: "Please load the kernel module unix_diag at boot (a file in /etc/modules-load.d), and allow \
              netlink sockets.",
    },
    Matter {
        feature: Feature::InetSockets,
        subject: "look into TCP and UDP sockets",
        without: "jobs with network sockets cannot be saved",
        grade_without: Grade::Less,
        ask: "Please load the kernel modules tcp_diag and udp_diag at boot (a file in \
              /etc/modules-load.d), and allow netlink sockets.",
    },
    Matter {
        feature: Feature::MapVdso,
        subject: "place the vDSO (ARCH_MAP_VDSO_64)",
        without: "the vDSO is moved instead",
        grade_without: Grade::Less,
        ask: "Please give us a kernel with CONFIG_CHECKPOINT_RESTORE.",
    },
    Matter {
        feature: Feature::TimerIds,
        subject: "choose the ids of timers",
        without: "timers get their ids by making others first, which takes a moment",
        grade_without: Grade::Less,
        ask: "Please give us Linux 6.15 or later.",
    },
    Matter {
        feature: Feature::ScanPages,
        subject: "find used pages (PAGEMAP_SCAN)",
        without: "finding them is slower, and guard pages are not told from holes",
        grade_without: Grade::Less,
        ask: "Please give us Linux 6.7 or later.",
    },
    Matter {
        feature: Feature::MembarrierRegistrations,
        subject: "find membarrier registrations",
        without: "programs that use membarrier come back without them",
        grade_without: Grade::Less,
        ask: "Please give us Linux 6.3 or later.",
    },
    Matter {
        feature: Feature::TimeNamespace,
        subject: "continue clocks (time namespace)",
        without: "a restored job sees the clocks of its new machine, which may go back",
        grade_without: Grade::Less,
        ask: "Please give us a kernel with CONFIG_TIME_NS, and allow user namespaces.",
    },
    Matter {
        feature: Feature::ChosenIpcIds,
        subject: "choose ids of System V IPC",
        without: "jobs that use System V IPC are restored in place only, by root",
        grade_without: Grade::Less,
        ask: "Please give us a kernel with CONFIG_CHECKPOINT_RESTORE and CONFIG_IPC_NS, Linux 5.19 or \
              later, and leave /proc/sys writable in containers (--security-opt unmask=ALL).",
    },
    Matter {
        feature: Feature::MountTerminals,
        subject: "mount terminals (devpts)",
        without: "jobs with terminals of their own (tmux, script, expect) cannot be restored",
        grade_without: Grade::Less,
        ask: "Please allow user namespaces to mount devpts, for a container --security-opt \
              seccomp=unconfined.",
    },
    Matter {
        feature: Feature::GiveWay,
        subject: "write with low priority (ioprio)",
        without: "while a checkpoint is written, the job is slower",
        grade_without: Grade::Less,
        ask: "Please allow the system calls setpriority and ioprio_set.",
    },
];

impl Matter {
    fn line(&self, features: &Features) -> Line {
        match features.trial(self.feature) {
            Trial::Works => Line::works(self.subject, "works"),
            trial => {
                let finding = format!("{}: {}", seen(trial), self.without);
                let remedy = match (self.feature, trial, features.yama_scope) {
                    (
                        Feature::TraceDescendants | Feature::TraceOthers,
                        Trial::Refused(_),
                        Some(scope),
                    ) if scope > 0 => Remedy::ask(format!("{} (It is {scope} now.)", self.ask)),
                    _ => Remedy::ask(self.ask),
                };
                match self.grade_without {
                    Grade::Fails => Line::fails(self.subject, finding, remedy),
                    Grade::Less | Grade::Works => Line::less(self.subject, finding, remedy),
                }
            }
        }
    }
}

/// How pages that were written since the last checkpoint can be found.
fn written_pages(features: &Features) -> Line {
    let subject = "find written pages";
    if features.works(Feature::TrackWrites) && features.works(Feature::ScanPages) {
        return Line::works(subject, "by userfaultfd");
    }
    let seen = seen(features.trial(Feature::TrackWrites));
    Line::less(
        subject,
        format!(
            "userfaultfd {seen}: each checkpoint reads all memory and compares it, which is slower; the \
             job is not slowed down"
        ),
        Remedy::ask(
            "Please give us Linux 6.7 or later with CONFIG_USERFAULTFD, and allow the system call \
             userfaultfd, for a container --security-opt seccomp=unconfined.",
        ),
    )
}

/// How a job can get its process ids back, here or in namespaces. It has the capabilities that its user
/// has, and in namespaces it cannot have them again.
pub fn identity(trials: &BTreeMap<Feature, Trial>, capabilities: u64) -> Line {
    let trial = |feature: Feature| trials.get(&feature).copied().unwrap_or(Trial::Untried);
    let needed = [
        (Feature::UserNamespace, "user namespace"),
        (Feature::MountNamespace, "mount namespace"),
        (Feature::PidNamespace, "pid namespace"),
        (Feature::MountProc, "mount /proc"),
        (Feature::ChosenPids, "choose process ids"),
        (Feature::ExecutableLink, "set /proc/self/exe"),
    ];
    let subject = "restore with the same process ids";
    let in_place = trial(Feature::ChosenPidsInPlace) == Trial::Works;
    let missing = needed.iter().find(|(feature, _)| trial(*feature) != Trial::Works);
    match (in_place, missing) {
        (true, None) => Line::works(subject, "in place when they are free, else in namespaces"),
        (false, None) if capabilities != 0 => Line::fails(
            subject,
            "in user, pid and mount namespaces, where a job cannot have the capabilities that it has from \
             its user here: no job of this user can be restored",
            Remedy::ask(ALLOW_IN_PLACE),
        ),
        (false, None) => Line::works(subject, "in user, pid and mount namespaces"),
        (true, Some((feature, name))) => Line::less(
            subject,
            format!(
                "in place when they are free; not in namespaces ({name}: {})",
                seen(trial(*feature))
            ),
            Remedy::ask(allow_namespaces(*feature)),
        ),
        (false, Some((feature, name))) => Line::fails(
            subject,
            format!("{name}: {}: no job can be restored", seen(trial(*feature))),
            Remedy::ask(allow_namespaces(*feature)),
        ),
    }
}

const ALLOW_IN_PLACE: &str = "Please give me CAP_CHECKPOINT_RESTORE (for a container \
    --cap-add=CHECKPOINT_RESTORE), or a user without capabilities (--user).";

/// A setting that may forbid namespaces to plain users.
struct Setting {
    /// The sysctl.
    name: &'static str,
    /// The least value that allows them.
    least: u64,
    /// The largest one.
    most: u64,
    /// The value to ask for.
    wanted: u64,
}

impl Setting {
    const fn limit(name: &'static str) -> Self {
        // A few are needed at once by each job that is restored.
        Self { name, least: 16, most: u64::MAX, wanted: 15_000 }
    }
}

const FORBIDDING: [Setting; 5] = [
    Setting::limit("user.max_user_namespaces"),
    Setting::limit("user.max_pid_namespaces"),
    Setting::limit("user.max_mnt_namespaces"),
    Setting { name: "kernel.unprivileged_userns_clone", least: 1, most: u64::MAX, wanted: 1 },
    Setting { name: "kernel.apparmor_restrict_unprivileged_userns", least: 0, most: 0, wanted: 0 },
];

/// What to ask for where namespaces cannot be used because of `feature`: the setting that forbids them
/// when it is there to be seen, else all that may do so.
fn allow_namespaces(feature: Feature) -> String {
    let found = FORBIDDING.iter().find_map(|setting| {
        let &Setting { name, least, most, wanted } = setting;
        let value = gauge::setting(&name.replace('.', "/"))?;
        let forbids = !(least..=most).contains(&value);
        forbids.then(|| format!("Please set the sysctl {name} to {wanted} (it is {value})."))
    });
    let general = match feature {
        Feature::MountProc => {
            "Please let the container have all of /proc: --security-opt \
             seccomp=unconfined,systempaths=unconfined (Podman: unmask=ALL)."
        }
        _ => {
            "Please allow user namespaces to plain users, in a container by --security-opt \
             seccomp=unconfined,systempaths=unconfined (Podman: unmask=ALL), or give me \
             CAP_CHECKPOINT_RESTORE."
        }
    };
    found.unwrap_or_else(|| general.to_owned())
}

/// How a trial went, in words.
pub fn seen(trial: Trial) -> String {
    match trial {
        Trial::Works => "works".to_owned(),
        Trial::Refused(errno) => format!("refused ({})", Errno::from_raw(errno).desc()),
        Trial::Ineffective => "without effect".to_owned(),
        Trial::Untried => "not tried".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Grade, MATTERS, assess};
    use crate::sys::features::{Feature, Features, Trial};

    fn features(failing: &[Feature]) -> Features {
        let mut trials: BTreeMap<Feature, Trial> =
            MATTERS.iter().map(|matter| (matter.feature, Trial::Works)).collect();
        for feature in [
            Feature::UserNamespace,
            Feature::MountNamespace,
            Feature::PidNamespace,
            Feature::MountProc,
            Feature::ChosenPids,
            Feature::ExecutableLink,
            Feature::ChosenPidsInPlace,
            Feature::TrackWrites,
        ] {
            trials.insert(feature, Trial::Works);
        }
        for feature in failing {
            trials.insert(*feature, Trial::Refused(libc::EPERM));
        }
        Features { kernel: "6.18.0".to_owned(), yama_scope: None, trials }
    }

    #[test]
    fn grades_follow_from_trials() {
        let check = |failing: &[Feature], expected: Grade| {
            let lines = assess(&features(failing), 0);
            let worst = lines.iter().map(|line| line.grade).max();
            assert_eq!(worst, Some(expected), "{failing:?}");
            // Whatever is wrong comes with what to do about it.
            assert!(lines.iter().all(|line| (line.grade == Grade::Works) != line.remedy.is_some()));
        };
        check(&[], Grade::Works);
        check(&[Feature::TraceOthers], Grade::Less);
        check(&[Feature::TraceDescendants], Grade::Fails);
        check(&[Feature::ChosenPidsInPlace], Grade::Works);
        check(&[Feature::UserNamespace], Grade::Less);
        check(&[Feature::UserNamespace, Feature::ChosenPidsInPlace], Grade::Fails);
        check(&[Feature::SoftDirty], Grade::Works);
        check(&[Feature::TrackWrites], Grade::Less);
        check(&[Feature::TimerIds], Grade::Less);
    }

    #[test]
    fn capabilities_need_a_restore_in_place() {
        let check = |failing: &[Feature], expected: Grade| {
            let lines = assess(&features(failing), 1 << 21);
            assert_eq!(lines.iter().map(|line| line.grade).max(), Some(expected), "{failing:?}");
        };
        check(&[], Grade::Works);
        check(&[Feature::ChosenPidsInPlace], Grade::Fails);
        check(&[Feature::UserNamespace], Grade::Less);
    }
}
