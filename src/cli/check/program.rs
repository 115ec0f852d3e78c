//! What is known of a command without running it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cli::failure;
use crate::sys::launch;

use super::line::{Grade, Line, Remedy};

/// What is known of a program without running it.
pub fn assess(program: &OsStr) -> Line {
    let subject = format!("command {}", program.display());
    let examined = launch::locate(program)
        .map_err(|error| (failure::chain(&error), "name a program that may be executed"))
        .and_then(|path| examine(&path).map_err(|(why, remedy)| (why.to_owned(), remedy)));
    match examined {
        Ok(finding) => Line::works(subject, finding),
        Err((finding, remedy)) => Line::fails(subject, finding, Remedy::own(remedy)),
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
pub fn outputs(directory: &Path) -> Option<Line> {
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
        code: None,
        finding: format!(
            "{}{more}: what the command appends to by opening and closing it should be named, or \
             after a restore it holds some lines twice",
            names.join(", ")
        ),
        remedy: Some(Remedy::own("rckpt run --outputs WHAT -- CMD")),
    })
}

/// Bytes at a program's start that are looked at.
const EXAMINED: u64 = 256;
/// ELFCLASS32.
const CLASS_32: u8 = 1;
