//! The report of a checkpoint in words.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display, Formatter};

use super::super::options::{counted, instant, percent, printable, size};
use super::descriptors::{DescriptorReport, TableReport};
use super::fate::{Fate, FileFate};
use super::memory::SpaceReport;
use super::objects::TerminalReport;
use super::report::{ProcessReport, Report};
use super::timers::TimerReport;
use crate::job::history::Making;

/// The report as text that ends with a line end.
pub fn render(report: &Report) -> impl Display {
    fmt::from_fn(move |f| {
        summary(f, report)?;
        writeln!(f, "\nprocesses")?;
        tree(f, &report.processes)?;
        report.address_spaces.iter().try_for_each(|space| address_space(f, space))?;
        report.descriptor_tables.iter().try_for_each(|table| descriptors(f, table))?;
        connections(f, report)?;
        timers(f, &report.timers)?;
        objects(f, report)?;
        if !report.contents.is_empty() {
            writeln!(f, "\nfile contents")?;
        }
        for file in &report.contents {
            let (bytes, stored) = (size(file.bytes), size(file.stored));
            let path = printable(&file.path);
            writeln!(f, "  {path} ({}): {bytes}, {stored} stored", file.kind)?;
        }
        if !report.outputs.is_empty() {
            writeln!(f, "\noutputs: on restore each is cut back to the size it had")?;
        }
        for output in &report.outputs {
            writeln!(f, "  {}: {}", printable(&output.path), size(output.bytes))?;
        }
        fates(f, &report.files)?;
        if !report.displaced.is_empty() {
            writeln!(f, "\nkept by restores: what they cut off, replaced or set aside")?;
        }
        for file in &report.displaced {
            writeln!(f, "  {}: {}", printable(&file.path), size(file.bytes))?;
        }
        Ok(())
    })
}

fn summary(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let threads: usize = report.processes.iter().map(|process| process.threads.len()).sum();
    writeln!(f, "checkpoint  {}", printable(&report.path))?;
    writeln!(f, "job         {} ({})", printable(&report.command), printable(&report.job))?;
    writeln!(f, "taken       {} on {}", instant(report.taken), printable(&report.host))?;
    writeln!(f, "machine     Linux {}, {}", printable(&report.kernel), printable(&report.cpu))?;
    let processes = counted(report.processes.len(), "process", "processes");
    let threads = counted(threads, "thread", "threads");
    writeln!(f, "tree        {processes}, {threads}")?;
    writeln!(
        f,
        "size        {} on disk for {} of memory; {} chunks, {} of them compressed",
        size(report.size.stored),
        size(report.size.memory),
        report.size.chunks,
        report.size.compressed_chunks
    )?;
    report.making.as_ref().map_or(Ok(()), |made| making(f, &made.making))
}

/// How the checkpoint was made, in one line.
fn making(f: &mut Formatter<'_>, making: &Making) -> fmt::Result {
    match &making.parent {
        Some(parent) => write!(f, "made        on top of {}", printable(parent))?,
        None => write!(f, "made        in full")?,
    }
    writeln!(
        f,
        ": paused {:.1} ms, {:.2} s in all; {} written, {} of the memory new; rckpt {}",
        making.pause_ms,
        making.write_ms / 1000.0,
        size(making.bytes),
        percent(making.dirty_share),
        printable(if making.rckpt.is_empty() { "of an unknown version" } else { &making.rckpt })
    )?;
    let warned = |warning: &String| writeln!(f, "            warned: {}", printable(warning));
    making.warnings.iter().try_for_each(warned)
}

/// What open files of the job lead to each other.
fn connections(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let mut connected =
        report.open_files.iter().filter(|file| !file.leads_to.is_empty()).peekable();
    if connected.peek().is_some() {
        writeln!(f, "\nconnections")?;
    }
    let name = |number: &u32| {
        let file = report.open_files.get(usize::try_from(*number).ok()?)?;
        Some(format!("{} {number}", file.kind))
    };
    for file in connected {
        let others: Vec<String> = file.leads_to.iter().filter_map(name).collect();
        let (kind, number, what) = (file.kind, file.number, printable(&file.what));
        writeln!(f, "  {kind} {number} ({what}) to {}", others.join(", "))?;
    }
    Ok(())
}

fn timers(f: &mut Formatter<'_>, timers: &[TimerReport]) -> fmt::Result {
    if !timers.is_empty() {
        writeln!(f, "\ntimers")?;
    }
    for timer in timers {
        match (timer.process, timer.open_file) {
            (Some(pid), _) => write!(f, "  process {pid}: ")?,
            (None, Some(file)) => write!(f, "  open file {file}: ")?,
            (None, None) => write!(f, "  ")?,
        }
        write!(f, "{} ({}) in {:.3} s", timer.kind, timer.clock, timer.left)?;
        if let Some(every) = timer.every {
            write!(f, ", then every {every:.3} s")?;
        }
        match timer.signal {
            Some(signal) => writeln!(f, ", signal {signal}")?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}

/// Terminals of the job's own, and what is shared by number or name.
fn objects(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    if !report.terminals.is_empty() {
        writeln!(f, "\nterminals")?;
    }
    for terminal in &report.terminals {
        let TerminalReport { path, state, input, output, .. } = terminal;
        write!(f, "  {path}: {state}, {input} bytes to the programs, {output} from them")?;
        match terminal.session {
            Some(session) => writeln!(f, ", session {session}")?,
            None => writeln!(f)?,
        }
    }
    let ipc = &report.ipc;
    if !ipc.is_empty() {
        writeln!(f, "\nshared by number or name")?;
    }
    for segment in &ipc.segments {
        writeln!(f, "  shared memory {}: {}", segment.id, size(segment.bytes))?;
    }
    for set in &ipc.semaphores {
        writeln!(f, "  semaphores {}: {:?}", set.id, set.values)?;
    }
    for queue in &ipc.queues {
        let bytes = size(queue.bytes);
        writeln!(f, "  message queue {}: {} messages, {bytes}", queue.id, queue.messages)?;
    }
    ipc.posix_queues.iter().try_for_each(|queue| {
        let (name, bytes) = (printable(&queue.name), size(queue.bytes));
        writeln!(f, "  message queue {name}: {} messages, {bytes}", queue.messages)
    })
}

/// What a restore would do to files; those that it leaves alone are only counted.
fn fates(f: &mut Formatter<'_>, files: &[FileFate]) -> fmt::Result {
    let (used, touched): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.fate == Fate::Used);
    if !files.is_empty() {
        writeln!(f, "\nfiles: what a restore here and now would do to them")?;
    }
    for file in touched {
        write!(f, "  {}: {}", printable(&file.path), file.fate.words())?;
        if let Some(bytes) = file.bytes {
            write!(f, " to {bytes} bytes")?;
        }
        if let (Some(reason), Some(remedy)) = (&file.reason, &file.remedy) {
            write!(f, ": {}; {}", printable(reason), printable(remedy))?;
        }
        writeln!(f)?;
    }
    if used.is_empty() { Ok(()) } else { writeln!(f, "  {} used as they are", used.len()) }
}

/// Levels of the tree that are drawn; deeper ones stay in the last column.
const DEPTH: usize = 40;

/// Every process below its parent. Parents come before their children, so each is reached once.
fn tree(f: &mut Formatter<'_>, processes: &[ProcessReport]) -> fmt::Result {
    let mut children: HashMap<i32, Vec<&ProcessReport>> = HashMap::new();
    let pids: HashSet<i32> = processes.iter().map(|process| process.pid).collect();
    let (inner, roots): (Vec<_>, Vec<_>) =
        processes.iter().partition(|process| pids.contains(&process.ppid));
    for process in inner {
        children.entry(process.ppid).or_default().push(process);
    }
    // What is still to be printed, the next one last: what stands before it, and before its children.
    let mut open: Vec<(String, String, &ProcessReport)> =
        roots.iter().rev().map(|root| ("  ".to_owned(), "  ".to_owned(), *root)).collect();
    while let Some((before, below, process)) = open.pop() {
        writeln!(f, "{before}{}", description(process))?;
        let below = if below.chars().count() > 3 * DEPTH { String::new() } else { below };
        for (place, child) in children.remove(&process.pid).iter().flatten().rev().enumerate() {
            let (branch, trunk) =
                if place == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            open.push((format!("{below}{branch}"), format!("{below}{trunk}"), child));
        }
    }
    Ok(())
}

fn description(process: &ProcessReport) -> String {
    let threads = process.threads.len();
    let state = match (process.wait_status, process.state) {
        (Some(status), _) => ending(status),
        (None, "running") if threads == 1 => String::new(),
        (None, "running") => format!("{threads} threads"),
        (None, state) if threads == 1 => state.to_owned(),
        (None, state) => format!("{threads} threads, {state}"),
    };
    match state.as_str() {
        "" => format!("{} {}", process.pid, printable(&process.name)),
        state => format!("{} {} ({state})", process.pid, printable(&process.name)),
    }
}

/// What wait(2) would say of a process that has ended.
pub fn ending(status: i32) -> String {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, code) => format!("ended with status {code}, not waited for"),
        (signal, _) => format!("ended by signal {signal}, not waited for"),
    }
}

fn address_space(f: &mut Formatter<'_>, space: &SpaceReport) -> fmt::Result {
    let (number, processes) = (space.number, list(&space.processes));
    writeln!(f, "\naddress space {number} ({processes}): {}", printable(&space.executable))?;
    for kind in &space.kinds {
        let (bytes, stored) = (size(kind.bytes), size(kind.stored));
        let (name, mappings) = (kind.kind, kind.mappings);
        writeln!(f, "  {name:14} {mappings:6} mappings  {bytes:>12}  {stored:>12} stored")?;
    }
    Ok(())
}

fn descriptors(f: &mut Formatter<'_>, table: &TableReport) -> fmt::Result {
    writeln!(f, "\ndescriptors {} ({})", table.number, list(&table.processes))?;
    for descriptor in &table.descriptors {
        let DescriptorReport { number, access, what, .. } = descriptor;
        write!(f, "  {number:4} {access} {}", printable(what))?;
        if descriptor.close_on_exec {
            write!(f, ", close-on-exec")?;
        }
        let names = descriptor.shared_with.iter().map(|(other, number)| {
            if *other == table.number { number.to_string() } else { format!("{other}:{number}") }
        });
        let names: Vec<String> = names.collect();
        match names.as_slice() {
            [] => writeln!(f)?,
            names => writeln!(f, ", shared with {}", names.join(" "))?,
        }
    }
    Ok(())
}

fn list(pids: &[i32]) -> String {
    match pids {
        [] => "no process".to_owned(),
        [pid] => format!("process {pid}"),
        pids => {
            let words: Vec<String> = pids.iter().map(i32::to_string).collect();
            format!("processes {}", words.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::page;
    use super::super::report::report;
    use super::render;
    use crate::image::reader::Reader;
    use crate::image::{WriteOptions, Writer, ZeroPages, damage, sample};
    use crate::model::id::ObjectId;

    #[test]
    fn whatever_a_reader_takes_can_be_told() {
        damage::forged(500, |directory| {
            if let Ok(reader) = Reader::open(directory) {
                let report = report(&reader);
                assert!(render(&report).to_string().contains("processes"));
                assert!(page(&report).contains("</html>"));
            }
        });
    }

    #[test]
    fn the_sample_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(directory.path(), WriteOptions::default()).unwrap();
        let (start, _) = sample::MEMORY_PAGES;
        let mut read = |_, buffer: &mut [u8]| {
            buffer.fill(9);
            Ok(())
        };
        writer.store(ObjectId(0), start, 512, ZeroPages::Drop, &mut read).unwrap();
        writer.store(ObjectId(1), 1, 1, ZeroPages::Drop, &mut read).unwrap();
        writer.finish(&sample::job()).unwrap();
        let text = render(&report(&Reader::open(directory.path()).unwrap())).to_string();
        for expected in [
            "tree        3 processes, 3 threads\n",
            "  100 sample (2 threads)\n  └─ 110 sample\n     └─ 111 sample (ended with status 1",
            "address space 0 (processes 100, 110): /bin/sample\n",
            "  anonymous           1 mappings       7.8 MiB       2.0 MiB stored\n",
            "  shared memory       1 mappings       8.0 KiB       4.0 KiB stored\n",
            "     0 rw memfd:buffer at 4\n",
            "     9 rw standard input: terminal\n",
            "     3 rw pipe 0, read end, 7 bytes queued\n",
            "  memfd:buffer (memfd): 8.0 KiB, 4.0 KiB stored\n",
            "  /home/user/a.log: 10 B\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }
}
