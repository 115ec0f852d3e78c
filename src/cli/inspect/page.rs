//! The report of a checkpoint as one page for a browser: nothing is fetched, nothing runs, and pictures are
//! drawn here. Whatever comes from the job is escaped, and its control characters are shown.
//!
//! [`plot`] draws the history, [`picture`] memory, [`graph`] descriptors.

mod graph;
mod picture;
mod plot;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::job::history::{Making, Past};
use crate::model::number::to_f64;

use self::plot::{Bar, Plot, Unit, draw};
use super::super::options::{instant, percent, printable, size};
use super::fate::{Fate, FileFate};
use super::memory::SpaceReport;
use super::render::ending;
use super::report::{ProcessReport, Report};

/// Nothing is fetched and nothing runs, whatever a name in the page tries.
const POLICY: &str = include_str!("page/policy.txt");
/// Levels of the tree that are drawn; deeper ones stay in the last column.
const DEPTH: usize = 12;
/// Address spaces that are drawn; of more, the largest.
const MOST_SPACES: usize = 24;
/// Of how many address spaces everything is shown at once.
const OPEN_SPACES: usize = 2;
/// Most mappings in an address space's table.
const MOST_MAPPINGS: usize = 40;

/// The whole page.
pub fn page(report: &Report) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY.trim_ascii_end());
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (name(report)) " of " (printable(&report.command)) " - rckpt" }
                style { (PreEscaped(include_str!("page/style.css"))) }
            }
            body {
                (head(report))
                main {
                    (history(report))
                    (memory(report))
                    (processes(report))
                    (descriptors(report))
                    (files(report))
                    (timers(report))
                    (objects(report))
                    (making(report))
                }
                footer {
                    "Made by rckpt " (env!("CARGO_PKG_VERSION")) " from " (text(&report.path))
                    ". It stands for itself: nothing is loaded from anywhere."
                }
            }
        }
    };
    markup.into_string()
}

/// A text out of the job, set apart so that its direction of writing does not spill over.
fn text(words: &str) -> Markup {
    html! { bdi.m { (printable(words)) } }
}

/// The checkpoint's name.
fn name(report: &Report) -> Cow<'_, str> {
    let last = report.path.rsplit('/').next().unwrap_or(&report.path);
    printable(last)
}

fn head(report: &Report) -> Markup {
    let sections = [
        ("history", "History"),
        ("memory", "Memory"),
        ("processes", "Processes"),
        ("descriptors", "Descriptors"),
        ("files", "Files"),
        ("timers", "Timers"),
        ("objects", "Terminals and shared objects"),
        ("making", "The checkpoint itself"),
    ];
    let threads: usize = report.processes.iter().map(|process| process.threads.len()).sum();
    let making = report.making.as_ref().map(|made| &made.making);
    html! {
        header {
            h1 { (text(&report.command)) }
            p.soft {
                "Checkpoint " strong { (name(report)) } ", taken " (instant(report.taken)) " on "
                (text(&report.host)) ", Linux " (text(&report.kernel))
            }
            dl.figures {
                @if let Some(Making { pause_ms, write_ms, bytes, dirty_share, parent, .. }) = making {
                    (figure("The job stood still for", &Unit::Time.words(*pause_ms),
                        &format!("{} until it was written", Unit::Time.words(*write_ms))))
                    (figure("Written", &size(*bytes),
                        &parent.as_ref().map_or("in full".into(), |parent| {
                            format!("on top of {}", printable(parent))
                        })))
                    (figure("New memory", &percent(*dirty_share), match parent {
                        Some(_) => "since the checkpoint before",
                        None => "it builds on none",
                    }))
                }
                (figure("Memory in it", &size(report.size.memory),
                    &format!("{} on the disk", size(report.size.stored))))
                (figure("Processes", &report.processes.len().to_string(), &format!("{threads} threads")))
                (figure("Open files", &report.open_files.len().to_string(),
                    &format!("{} sockets, {} pipes", report.sockets.len(), report.pipes.len())))
            }
            nav aria-label="sections" { ul {
                @for (id, title) in sections { li { a href={ "#" (id) } { (title) } } }
            } }
        }
    }
}

fn figure(title: &str, value: &str, more: &str) -> Markup {
    html! { div { dt { (title) } dd { (value) small { (more) } } } }
}

fn history(report: &Report) -> Markup {
    let past = &report.history.checkpoints;
    let own = name(report);
    let plot = |title, unit, value: &dyn Fn(&Making) -> f64| {
        let bars = past.iter().map(|past| Bar {
            name: past.name.clone(),
            value: value(&past.made.making),
            full: past.made.making.parent.is_none(),
            own: past.name == own,
        });
        draw(&Plot { title, unit, bars: bars.collect() })
    };
    html! {
        section #history aria-labelledby="history-title" {
            h2 #history-title { "History" }
            @if past.is_empty() {
                p.soft { "Nothing is written down about earlier checkpoints of this job." }
            } @else {
                div.plots {
                    (plot("Pause of the job", Unit::Time, &|making| making.pause_ms))
                    (plot("Bytes written", Unit::Bytes, &|making| to_f64(making.bytes)))
                    (plot("Share of memory that was new", Unit::Share, &|making| making.dirty_share))
                    (plot("Time until it was written", Unit::Time, &|making| making.write_ms))
                }
                p.note {
                    span.key.own {} "this checkpoint" span.key.full {} "written in full"
                    span.key {} "on top of the one before"
                }
                @if !report.history.failures.is_empty() {
                    p.note { (report.history.failures.len()) " checkpoints failed; the journal tells why." }
                }
                (history_table(past))
            }
        }
    }
}

fn history_table(past: &[Past]) -> Markup {
    html! {
        details {
            summary { "Checkpoints as a table (" (past.len()) ")" }
            div.scroll tabindex="0" role="region" aria-label="all checkpoints" { table {
                thead { tr {
                    th { "Checkpoint" } th { "Taken" } th { "Made" } th.n { "Pause" } th.n { "Written" }
                    th.n { "New" } th.n { "Time" } th.n { "Processes" }
                } }
                tbody { @for Past { name, present, made } in past { tr {
                    td { (printable(name)) @if !present { span.soft { " (removed)" } } }
                    td { (instant(made.seconds())) }
                    td { @match &made.making.parent {
                        Some(parent) => { "on " (printable(parent)) }
                        None => { "in full" }
                    } }
                    td.n { (Unit::Time.words(made.making.pause_ms)) }
                    td.n { (size(made.making.bytes)) }
                    td.n { (percent(made.making.dirty_share)) }
                    td.n { (Unit::Time.words(made.making.write_ms)) }
                    td.n { (made.making.processes) }
                } } }
            } }
        }
    }
}

fn memory(report: &Report) -> Markup {
    let mut spaces: Vec<&SpaceReport> = report.address_spaces.iter().collect();
    let all = spaces.len();
    spaces.sort_by_key(|space| u64::MAX - space.kinds.iter().map(|kind| kind.stored).sum::<u64>());
    spaces.truncate(MOST_SPACES);
    html! {
        section #memory aria-labelledby="memory-title" {
            h2 #memory-title { "Memory" }
            p.note {
                "What is pale is in the address space only: zero, untouched, or the same in a file. What is \
                 filled is in the checkpoint."
            }
            @if all > MOST_SPACES {
                p.note { "Of " (all) " address spaces, these are the " (MOST_SPACES) " that take most." }
            }
            @for (place, space) in spaces.into_iter().enumerate() {
                (address_space(report, space, place < OPEN_SPACES))
            }
        }
    }
}

fn address_space(report: &Report, space: &SpaceReport, open: bool) -> Markup {
    let largest = picture::largest(space, MOST_MAPPINGS);
    html! {
        h3 { (who(report, &space.processes)) ": " (text(&space.executable)) }
        (picture::by_kind(space))
        @if open { (picture::legend(space)) }
        details {
            summary { @if !open { "By kind, and in" } @else { "In" } " the order of addresses (" (space.mappings.len()) " mappings)" }
            @if !open { (picture::legend(space)) }
            (picture::by_address(space))
            div.scroll tabindex="0" role="region" aria-label="the mappings that take most" { table {
                thead { tr {
                    th { "Mapping" } th { "Access" } th { "Kind" } th.n { "Size" } th.n { "Stored" }
                    th { "File or name" }
                } }
                tbody { @for mapping in largest { tr {
                    td { code { (format!("{:x}-{:x}", mapping.start, mapping.end)) } }
                    td { code { (mapping.access) } }
                    td { (mapping.kind) }
                    td.n { (size(mapping.end - mapping.start)) }
                    td.n { (size(mapping.stored)) }
                    td.path { @if let Some(what) = mapping.file.as_ref().or(mapping.name.as_ref()) {
                        (text(what))
                    } }
                } } }
            } }
        }
    }
}

/// Processes by number and name.
fn who(report: &Report, pids: &[i32]) -> Markup {
    let name = |pid: &i32| {
        let process = report.processes.iter().find(|process| process.pid == *pid);
        process.map(|process| process.name.as_str()).unwrap_or_default()
    };
    html! {
        @match pids {
            [] => "no process",
            [pid] => { "process " (pid) " " (text(name(pid))) }
            [first, ..] => { (pids.len()) " processes, the first " (first) " " (text(name(first))) }
        }
    }
}

fn processes(report: &Report) -> Markup {
    html! {
        section #processes aria-labelledby="processes-title" {
            h2 #processes-title { "Processes" }
            ol.tree { @for (depth, process) in tree(&report.processes) { (process_line(depth, process)) } }
        }
    }
}

fn process_line(depth: usize, process: &ProcessReport) -> Markup {
    let ProcessReport { pid, pgid, sid, name, state, threads, wait_status, cwd, .. } = process;
    html! {
        li style={ "--depth:" (depth.min(DEPTH)) } { span.b {
            span.pid { (pid) } strong { (text(name)) }
            span.soft {
                @match wait_status {
                    Some(status) => { " " (ending(*status)) "," }
                    None => {
                        @if *state != "running" { " " (state) "," }
                        @if threads.len() > 1 { " " (threads.len()) " threads," }
                    }
                }
                " group " (pgid) ", session " (sid)
                @if let Some(cwd) = cwd { ", in " (text(cwd)) }
            }
        } }
    }
}

/// Every process below its parent, with its depth. Parents come before their children.
fn tree(processes: &[ProcessReport]) -> Vec<(usize, &ProcessReport)> {
    let pids: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    let mut children: BTreeMap<i32, Vec<&ProcessReport>> = BTreeMap::new();
    let mut open: Vec<(usize, &ProcessReport)> = Vec::new();
    for process in processes.iter().rev() {
        match pids.contains(&process.ppid) {
            true => children.entry(process.ppid).or_default().push(process),
            false => open.push((0, process)),
        }
    }
    let mut lines = Vec::with_capacity(processes.len());
    while let Some((depth, process)) = open.pop() {
        lines.push((depth, process));
        let below = children.remove(&process.pid).unwrap_or_default();
        open.extend(below.into_iter().map(|child| (depth + 1, child)));
    }
    lines
}

fn descriptors(report: &Report) -> Markup {
    html! {
        section #descriptors aria-labelledby="descriptors-title" {
            h2 #descriptors-title { "Descriptors" }
            @if report.open_files.is_empty() {
                p.soft { "No process has anything open." }
            } @else {
                p.note {
                    "Processes on the left, what they have open on the right, by the number of the \
                     descriptor. Blue lines end at what several descriptors share; red ones lead from one \
                     open file to another: the other end of a pipe or socket, what is watched."
                }
                (graph::draw(report))
                details {
                    summary { "Open files as a table (" (report.open_files.len()) ")" }
                    (open_files(report))
                }
            }
        }
    }
}

fn open_files(report: &Report) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="all open files" { table {
            thead { tr { th.n { "Open file" } th { "Kind" } th { "Access" } th { "What" } th { "Leads to" }
                th { "Descriptors (table:number)" } } }
            tbody { @for file in &report.open_files { tr {
                td.n { (file.number) }
                td { (file.kind) }
                td { code { (file.access) } }
                td.path { (text(&file.what)) }
                td { @for other in &file.leads_to { (other) " " } }
                td { @for (table, number) in &file.descriptors { (table) ":" (number) " " } }
            } } }
        } }
    }
}

fn files(report: &Report) -> Markup {
    let (used, touched): (Vec<&FileFate>, Vec<&FileFate>) =
        report.files.iter().partition(|file| file.fate == Fate::Used);
    html! {
        section #files aria-labelledby="files-title" {
            h2 #files-title { "Files" }
            p { "What a restore would have done to them on the machine, and at the time, that made this page." }
            @if touched.is_empty() {
                p.soft { "Nothing: all " (used.len()) " are as they were at the checkpoint." }
            } @else { (fates(&touched)) }
            @if !touched.is_empty() && !used.is_empty() {
                p.note { (used.len()) " others are as they were." }
            }
            @if !report.contents.is_empty() {
                h3 { "Whose content is in the checkpoint" }
                (sizes(report.contents.iter().map(|it| (it.path.as_str(), it.kind, it.bytes))))
            }
            @if !report.outputs.is_empty() {
                h3 { "Named as outputs" }
                (sizes(report.outputs.iter().map(|it| (it.path.as_str(), "output", it.bytes))))
            }
            @if !report.displaced.is_empty() {
                h3 { "Kept by restores" }
                (sizes(report.displaced.iter().map(|it| (it.path.as_str(), "kept", it.bytes))))
            }
        }
    }
}

fn fates(files: &[&FileFate]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="what becomes of files" { table {
            thead { tr { th { "File" } th { "What becomes of it" } } }
            tbody { @for file in files { tr {
                td.path { (text(&file.path)) }
                td {
                    span.refused[file.fate == Fate::Refused] { (file.fate.words()) }
                    @if let Some(bytes) = file.bytes { " to " (size(bytes)) }
                    @if let (Some(reason), Some(remedy)) = (&file.reason, &file.remedy) {
                        ": " (printable(reason)) "; " (printable(remedy))
                    }
                }
            } } }
        } }
    }
}

fn sizes<'a>(files: impl Iterator<Item = (&'a str, &'a str, u64)>) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="files and their sizes" { table { tbody {
            @for (path, kind, bytes) in files { tr {
                td.path { (text(path)) } td { (kind) } td.n { (size(bytes)) }
            } }
        } } }
    }
}

fn timers(report: &Report) -> Markup {
    html! {
        section #timers aria-labelledby="timers-title" {
            h2 #timers-title { "Timers" }
            @if report.timers.is_empty() { p.soft { "None is armed." } } @else {
                div.scroll tabindex="0" role="region" aria-label="timers" { table {
                    thead { tr { th { "Whose" } th { "Kind" } th { "Clock" } th.n { "Fires in" }
                        th.n { "Then every" } th.n { "Signal" } } }
                    tbody { @for timer in &report.timers { tr {
                        td { @match (timer.process, timer.open_file) {
                            (Some(pid), _) => { "process " (pid) }
                            (None, Some(file)) => { "open file " (file) }
                            (None, None) => {}
                        } }
                        td { (timer.kind) }
                        td { (timer.clock) }
                        td.n { (format!("{:.3} s", timer.left)) }
                        td.n { @if let Some(every) = timer.every { (format!("{every:.3} s")) } }
                        td.n { @if let Some(signal) = timer.signal { (signal) } }
                    } } }
                } }
            }
        }
    }
}

fn objects(report: &Report) -> Markup {
    let ipc = &report.ipc;
    html! {
        section #objects aria-labelledby="objects-title" {
            h2 #objects-title { "Terminals and shared objects" }
            @if report.terminals.is_empty() && ipc.is_empty() { p.soft { "There are none." } }
            ul {
                @for terminal in &report.terminals { li {
                    (text(&terminal.path)) ": " (terminal.state)
                    @if let Some(session) = terminal.session { ", session " (session) }
                } }
                @for segment in &ipc.segments { li {
                    "shared memory " (segment.id) ": " (size(segment.bytes))
                } }
                @for set in &ipc.semaphores { li {
                    "semaphores " (set.id) ": " (format!("{:?}", set.values))
                } }
                @for queue in &ipc.queues { li {
                    "message queue " (queue.id) ": " (queue.messages) " messages, " (size(queue.bytes))
                } }
                @for queue in &ipc.posix_queues { li {
                    "message queue " (text(&queue.name)) ": " (queue.messages) " messages, " (size(queue.bytes))
                } }
            }
        }
    }
}

fn making(report: &Report) -> Markup {
    let made = report.making.as_ref();
    html! {
        section #making aria-labelledby="making-title" {
            h2 #making-title { "The checkpoint itself" }
            div.scroll tabindex="0" role="region" aria-label="facts about the checkpoint" { table { tbody {
                tr { th { "Path" } td.path { (text(&report.path)) } }
                tr { th { "Id" } td { (text(&report.generation)) } }
                tr { th { "Job" } td { (text(&report.job)) } }
                @if let Some(made) = made {
                    tr { th { "Made" } td {
                        @match &made.making.parent {
                            Some(parent) => { "on top of " (printable(parent)) }
                            None => "in full",
                        }
                        @if !made.making.rckpt.is_empty() { ", by rckpt " (printable(&made.making.rckpt)) }
                    } }
                    @for warning in &made.making.warnings {
                        tr { th { "Warned" } td { (printable(warning)) } }
                    }
                }
                tr { th { "Machine" } td { (text(&report.host)) ", Linux " (text(&report.kernel)) } }
                tr { th { "Processor" } td { (text(&report.cpu)) } }
                tr { th { "Page data" } td {
                    (report.size.chunks) " chunks, " (report.size.compressed_chunks) " of them compressed"
                } }
            } } }
        }
    }
}
