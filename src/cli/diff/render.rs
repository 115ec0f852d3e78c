//! The report of what changed, in words.

use std::fmt::{self, Display, Formatter};

use super::super::options::{instant, percent, printable, size, span};
use super::compare::{FileChange, Mapping, PageChange, ProcessChange, Report};
use crate::model::number::{PAGE_SIZE, to_f64};

/// Most mappings of a process that are told one by one.
const MOST_MAPPINGS: usize = 20;

/// The report as text that ends with a line end.
pub fn render(report: &Report) -> impl Display {
    fmt::from_fn(move |f| {
        let (from, to) = (&report.from, &report.to);
        writeln!(f, "from  {}, taken {}", printable(&from.path), instant(from.taken))?;
        writeln!(
            f,
            "to    {}, taken {} ({} later)",
            printable(&to.path),
            instant(to.taken),
            span(to.taken - from.taken)
        )?;
        if !report.same_job {
            writeln!(f, "these are checkpoints of different jobs")?;
        }
        if report.born.len() + report.ended.len() > 0 {
            writeln!(f, "\nprocesses")?;
        }
        for born in &report.born {
            writeln!(f, "  + {} {}", born.pid, printable(&born.name))?;
        }
        for ended in &report.ended {
            writeln!(f, "  - {} {}", ended.pid, printable(&ended.name))?;
        }
        pages(f, &report.pages)?;
        report.processes.iter().try_for_each(|process| process_change(f, process))?;
        files(f, &report.files)
    })
}

fn pages(f: &mut Formatter<'_>, kinds: &[PageChange]) -> fmt::Result {
    writeln!(f, "\nprivate memory of processes that are in both")?;
    writeln!(
        f,
        "  {:14} {:>12} {:>12} {:>12} {:>12}  {:>8}",
        "", "the same", "changed", "new", "gone", "changed"
    )?;
    for PageChange { kind, same, changed, new, gone } in kinds {
        let [same_bytes, changed_bytes, new_bytes, gone_bytes] =
            [same, changed, new, gone].map(|pages| size(pages.saturating_mul(PAGE_SIZE)));
        let all = same + changed + new;
        let share = if all == 0 { 0.0 } else { to_f64(changed + new) / to_f64(all) };
        writeln!(
            f,
            "  {kind:14} {same_bytes:>12} {changed_bytes:>12} {new_bytes:>12} {gone_bytes:>12}  {:>8}",
            percent(share)
        )?;
    }
    Ok(())
}

fn process_change(f: &mut Formatter<'_>, change: &ProcessChange) -> fmt::Result {
    write!(f, "\nprocess {} {}", change.pid, printable(&change.name))?;
    if let Some(became) = &change.became {
        write!(f, ", now {}", printable(became))?;
    }
    if change.threads_before != change.threads {
        write!(f, ", {} threads, before {}", change.threads, change.threads_before)?;
    }
    writeln!(f)?;
    mappings(f, '+', &change.mappings_new)?;
    mappings(f, '-', &change.mappings_gone)?;
    for resized in change.mappings_resized.iter().take(MOST_MAPPINGS) {
        let (before, now) = (size(resized.bytes_before), size(resized.bytes));
        writeln!(f, "  ~ {:x} {}: {before} -> {now}", resized.start, resized.kind)?;
    }
    for opened in &change.opened {
        writeln!(f, "  + descriptor {}: {}", opened.number, printable(&opened.what))?;
    }
    for closed in &change.closed {
        writeln!(f, "  - descriptor {}: {}", closed.number, printable(&closed.what))?;
    }
    for changed in &change.changed {
        let (before, now) = (printable(&changed.before), printable(&changed.now));
        writeln!(f, "  ~ descriptor {}: {before} -> {now}", changed.number)?;
    }
    Ok(())
}

fn mappings(f: &mut Formatter<'_>, sign: char, mappings: &[Mapping]) -> fmt::Result {
    for Mapping { start, bytes, kind, file } in mappings.iter().take(MOST_MAPPINGS) {
        let file = file.as_deref().map(printable).unwrap_or_default();
        let line = format!("  {sign} {start:x} {kind}: {} {file}", size(*bytes));
        writeln!(f, "{}", line.trim_end())?;
    }
    match mappings.len().saturating_sub(MOST_MAPPINGS) {
        0 => Ok(()),
        more => writeln!(f, "  {sign} {more} more mappings (--json has all)"),
    }
}

fn files(f: &mut Formatter<'_>, files: &[FileChange]) -> fmt::Result {
    if !files.is_empty() {
        writeln!(f, "\nfiles")?;
    }
    for FileChange { path, bytes_before, bytes, pages_changed } in files {
        let path = printable(path);
        match (bytes_before, bytes) {
            (None, Some(bytes)) => write!(f, "  + {path}: {}", size(*bytes))?,
            (Some(before), None) => write!(f, "  - {path}: {}", size(*before))?,
            (Some(before), Some(bytes)) if before != bytes => {
                write!(f, "  ~ {path}: {} -> {}", size(*before), size(*bytes))?;
            }
            _ => write!(f, "  ~ {path}")?,
        }
        match pages_changed {
            0 => writeln!(f)?,
            pages => writeln!(f, ", {} changed", size(pages.saturating_mul(PAGE_SIZE)))?,
        }
    }
    Ok(())
}
