//! The place where checkpoints would go, tried out.

use std::io;
use std::path::Path;

use crate::cli::{failure, options};
use crate::sys::interruption::Interruption;
use crate::sys::place::{self, Place, PlaceError};

use super::line::{Line, Remedy};

/// Bytes a second below which somebody will wonder.
const SLOW: f64 = 10e6;
/// Bytes that any checkpoint needs.
const LITTLE: u64 = 1 << 20;

/// The lines about a directory, and what was found out about it, if it can be used.
pub fn assess(directory: &Path) -> (Vec<Line>, Option<Place>) {
    // A job's directory is made when it starts; its parent tells until then.
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let subject = format!("disk of {}", directory.display());
    let corner = place::corner_of(existing);
    let undo = Interruption::undone_by(move || place::leave(&corner));
    let tried = place::try_place(existing);
    drop(undo);
    match tried {
        Ok(place) => (judge(&subject, &place), Some(place)),
        Err(error) => {
            let remedy = remedy(&error);
            let finding = format!(
                "no checkpoint can be written to {}: {}",
                existing.display(),
                failure::chain(&error)
            );
            (vec![Line::fails(subject, finding, remedy)], None)
        }
    }
}

fn judge(subject: &str, place: &Place) -> Vec<Line> {
    let room = room(place);
    let mut lines = Vec::new();
    let rate = options::size(whole(place.rate));
    let facts = format!("{}, {} free, {rate}/s", place.kind, options::size(room));
    if room < LITTLE || place.free_files.is_some_and(|files| files < 8) {
        lines.push(Line::fails(subject, format!("{facts}: it is full"), make_room()));
    } else if place.rate < SLOW {
        lines.push(Line::less(
            subject,
            format!("{facts}: it takes long to write a checkpoint"),
            Remedy::own("name a faster place with --dir, or a local one with run --local"),
        ));
    } else {
        lines.push(Line::works(subject, facts));
    }
    if let Some(quota) = place.quota {
        let words = format!("{} left", options::size(quota));
        lines.push(Line::works("disk quota", words));
    }
    if let Some(largest) = place.largest_file {
        lines.push(Line::less(
            "file size",
            format!("up to {} (ulimit -f): larger jobs cannot be saved", options::size(largest)),
            Remedy::own("ulimit -f unlimited"),
        ));
    }
    lines.push(if place.locks {
        let milliseconds = place.sync.as_secs_f64() * 1e3;
        let words = format!("sync ({milliseconds:.1} ms), rename, lock");
        Line::works("files there", words)
    } else {
        Line::less(
            "files there",
            "they cannot be locked: nobody notices when two rckpt use one directory",
            Remedy::ask(
                "Please mount this file system with locks (NFS: without nolock, Lustre: flock).",
            ),
        )
    });
    lines.push(Line::works(
        "share blocks (reflink)",
        if place.clones { "yes" } else { "no: files to be saved are read later" },
    ));
    lines
}

/// Bytes that a checkpoint may have there.
pub fn room(place: &Place) -> u64 {
    [Some(place.free), place.quota, place.largest_file].into_iter().flatten().min().unwrap_or(0)
}

/// Bytes a second, as a count.
fn whole(rate: f64) -> u64 {
    std::time::Duration::try_from_secs_f64(rate.max(0.0)).map_or(0, |whole| whole.as_secs())
}

fn remedy(error: &PlaceError) -> Remedy {
    match error {
        PlaceError::Try { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => make_room(),
            _ => Remedy::own("name another place with --dir"),
        },
        PlaceError::OtherOwner(_) => {
            Remedy::own("be the user whom that file system knows, or name another place with --dir")
        }
        PlaceError::OtherMode(_) | PlaceError::OtherContent => {
            Remedy::own("name another place with --dir")
        }
    }
}

/// Advice about a disk that is full.
pub fn make_room() -> Remedy {
    Remedy::own("make room (rckpt prune DIR --keep N), or name another place with --dir")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::check::line::Grade;

    fn good() -> Place {
        Place {
            kind: "ext4".to_owned(),
            free: 1 << 40,
            free_files: Some(1000),
            quota: None,
            largest_file: None,
            rate: 1e9,
            sync: Duration::from_millis(1),
            locks: true,
            clones: false,
        }
    }

    #[test]
    fn places_are_graded() {
        let check = |place: Place, expected: Grade| {
            let worst = judge("disk", &place).iter().map(|line| line.grade).max();
            assert_eq!(worst, Some(expected), "{place:?}");
        };
        check(good(), Grade::Works);
        check(Place { rate: 1e6, ..good() }, Grade::Less);
        check(Place { locks: false, ..good() }, Grade::Less);
        check(Place { largest_file: Some(1 << 30), ..good() }, Grade::Less);
        check(Place { free: 5000, ..good() }, Grade::Fails);
        check(Place { quota: Some(0), ..good() }, Grade::Fails);
        check(Place { quota: Some(1 << 30), ..good() }, Grade::Works);
        check(Place { free_files: Some(0), ..good() }, Grade::Fails);
    }

    /// A quota has a line of its own, and counts where it leaves less room than the disk.
    #[test]
    fn a_quota_is_told_and_counted() {
        let place = Place { quota: Some(3 << 30), ..good() };
        let lines = judge("disk", &place);
        let found = |subject: &str| {
            let line = lines.iter().find(|line| line.subject == subject);
            line.map(|line| line.finding.as_str()).expect("there is one")
        };
        assert_eq!(found("disk quota"), "3.0 GiB left");
        assert!(found("disk").contains("3.0 GiB free"), "{}", found("disk"));
        assert_eq!(room(&place), 3 << 30);
        assert_eq!(room(&Place { quota: Some(1 << 50), ..good() }), 1 << 40);
        assert!(!judge("disk", &good()).iter().any(|line| line.subject == "disk quota"));
    }
}
