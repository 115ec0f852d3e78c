//! `rckpt check`: what this machine allows, tried and not guessed, and what would block a job.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Pid};
use serde::Serialize;

use crate::job::request;
use crate::model::code::attaching;
use crate::sys::clone::effective_capabilities;
use crate::sys::features::{Feature, Features, Trial};
use crate::sys::launch;

use super::failure::{self, Failure};
use super::{options, output};

/// Tell what this machine allows, by trying it, and what would block a job
#[derive(clap::Args)]
pub struct Arguments {
    /// A process: tell what would block a checkpoint of it and its children
    #[arg(value_parser = options::pid, conflicts_with = "command")]
    pid: Option<Pid>,
    /// Where checkpoints would go (default: the current directory)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
    /// A command: tell what is known of it without running it
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Grade {
    /// It works.
    Works,
    /// rckpt works with less: slower, or not for every job.
    Less,
    /// rckpt does not work.
    Fails,
}

/// A line of the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    /// What it is about.
    subject: String,
    /// How good it is.
    grade: Grade,
    /// What was seen, and what follows from it.
    finding: String,
    /// What somebody can do about it.
    remedy: Option<&'static str>,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Report<'a> {
    features: &'a Features,
    lines: &'a [Line],
    grade: Grade,
}

/// Checks.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { pid, dir, json, command } = arguments;
    let features = Features::probe().map_err(|error| {
        Failure::environment(attaching::MACHINE_UNREADABLE, failure::chain(&error))
    })?;
    let capabilities = effective_capabilities().map_err(|error| {
        Failure::environment(
            attaching::MACHINE_UNREADABLE,
            format_args!("ask for capabilities: {error}"),
        )
    })?;
    let mut lines = assess(&features, capabilities);
    lines.push(memory());
    let directory = dir.unwrap_or_else(|| PathBuf::from("."));
    lines.push(disk(&directory));
    if let Some(program) = command.first() {
        lines.push(program_line(program));
        lines.extend(outputs_line(Path::new(".")));
    }
    if let Some(pid) = pid {
        // Neither would be there yet.
        let generation = options::absolute_path(&directory)?.join("job/generation");
        lines.push(process_line(pid, &generation));
    }
    let grade = lines.iter().map(|line| line.grade).max().unwrap_or(Grade::Works);
    if json {
        output::print_json(&Report { features: &features, lines: &lines, grade })?;
    } else {
        output::print(text(&features, &lines, grade))?;
    }
    Ok(u8::from(grade == Grade::Fails))
}

/// What follows from the trials, for a user with these capabilities.
fn assess(features: &Features, capabilities: u64) -> Vec<Line> {
    let mut lines: Vec<Line> =
        MATTERS.iter().map(|matter| matter.line(features.trial(matter.feature))).collect();
    lines.push(written_pages(features));
    lines.push(identity(&features.trials, capabilities));
    lines
}

/// A feature that matters by itself.
struct Matter {
    feature: Feature,
    subject: &'static str,
    /// What is so when it does not work.
    without: &'static str,
    grade_without: Grade,
    remedy: Option<&'static str>,
}

const MATTERS: [Matter; 11] = [
    Matter {
        feature: Feature::TraceDescendants,
        subject: "trace one's own children (ptrace)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        remedy: Some(
            "allow ptrace: kernel.yama.ptrace_scope below 3, CAP_SYS_PTRACE or \
                      --security-opt seccomp=unconfined for a container",
        ),
    },
    Matter {
        feature: Feature::TraceOthers,
        subject: "trace other processes of one's own",
        without: "only jobs under rckpt run or rckpt restore can be saved",
        grade_without: Grade::Less,
        remedy: Some("start jobs with rckpt run, or set kernel.yama.ptrace_scope to 0"),
    },
    Matter {
        feature: Feature::TakeDescriptors,
        subject: "look into descriptors (pidfd_getfd)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        remedy: Some("Linux 5.6 or later, and a seccomp profile that allows pidfd_getfd"),
    },
    Matter {
        feature: Feature::CompareDescriptors,
        subject: "compare descriptors (kcmp)",
        without: "no job can be saved",
        grade_without: Grade::Fails,
        remedy: Some("a kernel with CONFIG_KCMP, and a seccomp profile that allows kcmp"),
    },
    Matter {
        feature: Feature::ReadMemory,
        subject: "read another process's memory",
        without: "saving is slower",
        grade_without: Grade::Less,
        remedy: Some("a seccomp profile that allows process_vm_readv"),
    },
    Matter {
        feature: Feature::RseqConfiguration,
        subject: "find restartable sequences",
        without: "programs of glibc 2.35 and later cannot be saved",
        grade_without: Grade::Less,
        remedy: Some("Linux 5.13 or later"),
    },
    Matter {
        feature: Feature::MapVdso,
        subject: "place the vDSO (ARCH_MAP_VDSO_64)",
        without: "the vDSO is moved instead",
        grade_without: Grade::Less,
        remedy: Some("a kernel with CONFIG_CHECKPOINT_RESTORE"),
    },
    Matter {
        feature: Feature::TimerIds,
        subject: "choose the ids of timers",
        without: "timers get their ids by making others first",
        grade_without: Grade::Less,
        remedy: Some("Linux 6.15 or later"),
    },
    Matter {
        feature: Feature::ScanPages,
        subject: "find used pages quickly (PAGEMAP_SCAN)",
        without: "finding them is slower, and guard pages are not told from holes",
        grade_without: Grade::Less,
        remedy: Some("Linux 6.7 or later"),
    },
    Matter {
        feature: Feature::MembarrierRegistrations,
        subject: "find membarrier registrations",
        without: "they are not brought back before Linux 6.3",
        grade_without: Grade::Less,
        remedy: Some("Linux 6.3 or later"),
    },
    Matter {
        feature: Feature::TimeNamespace,
        subject: "continue clocks (time namespace)",
        without: "a restored job sees the clocks of its new machine, which may go back",
        grade_without: Grade::Less,
        remedy: Some("a kernel with CONFIG_TIME_NS, and user namespaces"),
    },
];

impl Matter {
    fn line(&self, trial: Trial) -> Line {
        let (grade, finding, remedy) = if trial == Trial::Works {
            (Grade::Works, "works".to_owned(), None)
        } else {
            (self.grade_without, format!("{}: {}", seen(trial), self.without), self.remedy)
        };
        Line { subject: self.subject.to_owned(), grade, finding, remedy }
    }
}

/// How pages that were written since the last checkpoint can be found.
fn written_pages(features: &Features) -> Line {
    let (grade, finding, remedy) =
        if features.works(Feature::TrackWrites) && features.works(Feature::ScanPages) {
            (Grade::Works, "by userfaultfd".to_owned(), None)
        } else {
            let seen = seen(features.trial(Feature::TrackWrites));
            let instead = match features.trial(Feature::SoftDirty) {
                Trial::Works => "by soft-dirty bits, which is slower",
                _ => "by comparing all pages, which is slow",
            };
            (
                Grade::Less,
                format!("userfaultfd {seen}: {instead}"),
                Some("Linux 6.7 or later, and a seccomp profile that allows userfaultfd"),
            )
        };
    Line { subject: "find written pages".to_owned(), grade, finding, remedy }
}

/// How a job can get its process ids back, here or in namespaces. It has the capabilities that its user
/// has, and in namespaces it cannot have them again.
fn identity(trials: &BTreeMap<Feature, Trial>, capabilities: u64) -> Line {
    let trial = |feature: Feature| trials.get(&feature).copied().unwrap_or(Trial::Untried);
    let needed = [
        (Feature::UserNamespace, "user namespace"),
        (Feature::MountNamespace, "mount namespace"),
        (Feature::PidNamespace, "pid namespace"),
        (Feature::MountProc, "mount /proc"),
        (Feature::ChosenPids, "choose process ids"),
        (Feature::ExecutableLink, "set /proc/self/exe"),
    ];
    let subject = "restore under the same process ids".to_owned();
    let in_place = trial(Feature::ChosenPidsInPlace) == Trial::Works;
    let missing = needed.iter().find(|(feature, _)| trial(*feature) != Trial::Works);
    match (in_place, missing) {
        (true, None) => Line {
            subject,
            grade: Grade::Works,
            finding: "in place when they are free, else in namespaces".to_owned(),
            remedy: None,
        },
        (false, None) if capabilities != 0 => Line {
            subject,
            grade: Grade::Fails,
            finding:
                "in user, pid and mount namespaces, where a job cannot have the capabilities that \
                      it has from its user here: no job of this user can be restored"
                    .to_owned(),
            remedy: Some(ALLOW_IN_PLACE),
        },
        (false, None) => Line {
            subject,
            grade: Grade::Works,
            finding: "in user, pid and mount namespaces".to_owned(),
            remedy: None,
        },
        (true, Some((feature, name))) => Line {
            subject,
            grade: Grade::Less,
            finding: format!(
                "in place when they are free; not in namespaces ({name}: {})",
                seen(trial(*feature))
            ),
            remedy: Some(ALLOW_NAMESPACES),
        },
        (false, Some((feature, name))) => Line {
            subject,
            grade: Grade::Fails,
            finding: format!("{name}: {}: no job can be restored", seen(trial(*feature))),
            remedy: Some(ALLOW_NAMESPACES),
        },
    }
}

/// Why no job can be brought back here, with the remedy; `None`: it can, as far as process ids go, or that
/// cannot be tried.
pub fn obstacle_to_restores() -> Option<(String, &'static str)> {
    let line = identity(&Features::probe_identity().ok()?, effective_capabilities().ok()?);
    if line.grade == Grade::Fails { Some((line.finding, line.remedy?)) } else { None }
}

const ALLOW_NAMESPACES: &str = "user.max_user_namespaces above 0, \
    kernel.unprivileged_userns_clone 1, kernel.apparmor_restrict_unprivileged_userns 0; in a \
    container --security-opt seccomp=unconfined,systempaths=unconfined (Podman: unmask=ALL); or \
    CAP_CHECKPOINT_RESTORE";

const ALLOW_IN_PLACE: &str = "CAP_CHECKPOINT_RESTORE (in a container --cap-add=CHECKPOINT_RESTORE), or a \
    user without capabilities (--user)";

fn seen(trial: Trial) -> String {
    match trial {
        Trial::Works => "works".to_owned(),
        Trial::Refused(errno) => format!("refused ({})", Errno::from_raw(errno).desc()),
        Trial::Ineffective => "without effect".to_owned(),
        Trial::Untried => "not tried".to_owned(),
    }
}

/// Memory that is free for checkpoints.
fn memory() -> Line {
    let subject = "memory".to_owned();
    let available = procfs::Current::current()
        .ok()
        .and_then(|information: procfs::Meminfo| information.mem_available);
    match available {
        Some(bytes) => Line {
            subject,
            grade: Grade::Works,
            finding: format!("{} available", options::size(bytes)),
            remedy: None,
        },
        None => Line {
            subject,
            grade: Grade::Less,
            finding: "/proc/meminfo cannot be read".to_owned(),
            remedy: None,
        },
    }
}

/// The file system that checkpoints would go to.
fn disk(directory: &Path) -> Line {
    // A job's directory is made when it starts; its parent tells until then.
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let subject = format!("disk of {}", directory.display());
    let writable = nix::unistd::access(existing, AccessFlags::W_OK);
    match (nix::sys::statvfs::statvfs(existing), writable) {
        (Ok(disk), Ok(())) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            Line {
                subject,
                grade: Grade::Works,
                finding: format!("{} free", options::size(free)),
                remedy: None,
            }
        }
        (Err(errno), _) | (_, Err(errno)) => Line {
            subject,
            grade: Grade::Fails,
            finding: format!("{} cannot be written to: {}", existing.display(), errno.desc()),
            remedy: Some("name another place with --dir"),
        },
    }
}

/// What is known of a program without running it.
fn program_line(program: &OsStr) -> Line {
    let subject = format!("command {}", program.display());
    let examined = launch::locate(program)
        .map_err(|error| (failure::chain(&error), "name a program that may be executed"))
        .and_then(|path| examine(&path).map_err(|(why, remedy)| (why.to_owned(), remedy)));
    match examined {
        Ok(finding) => Line { subject, grade: Grade::Works, finding, remedy: None },
        Err((finding, remedy)) => {
            Line { subject, grade: Grade::Fails, finding, remedy: Some(remedy) }
        }
    }
}

/// What a program's file tells: in words when it can be saved once it runs, else why not and what to
/// do about it.
fn examine(path: &Path) -> Result<String, (&'static str, &'static str)> {
    const TAKES_OTHER_RIGHTS: u32 = 0o6000;
    let mut start = Vec::new();
    let opened = File::open(path).and_then(|file| {
        file.take(EXAMINED).read_to_end(&mut start)?;
        path.metadata()
    });
    let Ok(metadata) = opened else {
        return Ok("may be executed but not read; check PID tells more once it runs".to_owned());
    };
    if metadata.mode() & TAKES_OTHER_RIGHTS != 0 && !nix::unistd::geteuid().is_root() {
        return Err((
            "runs with the rights of its owner or group (setuid, setgid): not yours to save",
            "save it as root, or start what it starts directly",
        ));
    }
    match start.as_slice() {
        [0x7f, b'E', b'L', b'F', CLASS_32, ..] => {
            Err(("is a 32-bit program, which cannot be saved", "build it for x86_64"))
        }
        [b'#', b'!', line @ ..] => {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let interpreter = String::from_utf8_lossy(line);
            Ok(format!("is a script for {}; check PID tells more once it runs", interpreter.trim()))
        }
        _ => Ok("can be started; check PID tells more once it runs".to_owned()),
    }
}

/// A word about files in `directory` that look as if programs append to them.
fn outputs_line(directory: &Path) -> Option<Line> {
    const ENDINGS: [&str; 6] = ["log", "out", "txt", "csv", "dat", "jsonl"];
    const TOLD: usize = 3;
    let appended = |path: &Path| {
        path.extension().and_then(OsStr::to_str).is_some_and(|ending| ENDINGS.contains(&ending))
            && path.is_file()
    };
    // A directory that cannot be listed has nothing to tell.
    let entries = directory.read_dir().ok()?.flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| appended(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let more = if names.len() > TOLD { ", ..." } else { "" };
    names.truncate(TOLD);
    (!names.is_empty()).then(|| Line {
        subject: "files in this directory".to_owned(),
        grade: Grade::Works,
        finding: format!(
            "{}{more}: what the command appends to by opening and closing it should be named, or \
             after a restore it holds some lines twice",
            names.join(", ")
        ),
        remedy: Some("rckpt run --outputs WHAT -- CMD"),
    })
}

/// Bytes at a program's start that are looked at.
const EXAMINED: u64 = 256;
/// ELFCLASS32.
const CLASS_32: u8 = 1;

/// What stands in the way of a checkpoint of a process and its tree.
fn process_line(pid: Pid, generation: &Path) -> Line {
    let subject = format!("process {pid} and its tree");
    match request::examine(pid, generation) {
        Ok(warnings) if warnings.is_empty() => Line {
            subject,
            grade: Grade::Works,
            finding: "nothing stands in the way of a checkpoint".to_owned(),
            remedy: None,
        },
        Ok(warnings) => Line {
            subject,
            grade: Grade::Less,
            finding: format!("can be saved, with a warning: {}", warnings.join("; ")),
            remedy: None,
        },
        Err(error) => Line {
            subject,
            grade: Grade::Fails,
            finding: Failure::from(error).message,
            remedy: None,
        },
    }
}

/// The report for people.
fn text(features: &Features, lines: &[Line], grade: Grade) -> String {
    let mut text = format!("Linux {}", features.kernel);
    match features.yama_scope {
        Some(scope) => text.push_str(&format!(", Yama ptrace_scope {scope}\n")),
        None => text.push_str(", without Yama\n"),
    }
    let width = lines.iter().map(|line| line.subject.chars().count()).max().unwrap_or_default();
    for line in lines {
        let mark = match line.grade {
            Grade::Works => "  ok  ",
            Grade::Less => " less ",
            Grade::Fails => "FAILS ",
        };
        text.push_str(&format!("{mark} {:width$}  {}\n", line.subject, line.finding));
        if let Some(remedy) = line.remedy {
            text.push_str(&format!("       {:width$}  remedy: {remedy}\n", ""));
        }
    }
    text.push_str(match grade {
        Grade::Works => "rckpt works here\n",
        Grade::Less => "rckpt works here, with less where it says so\n",
        Grade::Fails => "rckpt does not work here\n",
    });
    text
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
