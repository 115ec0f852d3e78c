//! The graph of descriptors, drawn as SVG: tables of descriptors on the left, open files in the middle, and
//! on the right what these lead to in each other.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::super::super::options::{beginning, printable};
use super::super::descriptors::TableReport;
use super::super::report::Report;
use super::super::sharing::OpenFileReport;
use super::plot::number;

/// Most open files that are drawn.
const MOST_FILES: usize = 120;
/// Height of an open file's row.
const ROW: f64 = 24.0;
/// Where columns begin and end: the tables', the open files', and all.
const TABLES: (f64, f64) = (8.0, 200.0);
const FILES: (f64, f64) = (330.0, 830.0);
const WIDTH: f64 = 960.0;
/// Letters that fit in a box.
const LETTERS: usize = 62;

/// Draws it, for a report that has descriptors.
pub fn draw(report: &Report) -> Markup {
    let files: Vec<&OpenFileReport> = report.open_files.iter().take(MOST_FILES).collect();
    let left_out = report.open_files.len() - files.len();
    let rows = f64::from(u32::try_from(files.len()).unwrap_or(0)).max(1.0);
    let height = (rows * ROW + 12.0)
        .max(f64::from(u32::try_from(report.descriptor_tables.len()).unwrap_or(0)) * 44.0 + 12.0);
    html! {
        div.scroll tabindex="0" role="region" aria-label="descriptors, open files and their connections" {
            svg.graph viewBox={ "0 0 " (WIDTH) " " (number(height)) } role="img"
                aria-label="which processes have which files open, and what these lead to" {
                @for file in &files { (lines(report, file, height)) }
                @for (place, table) in report.descriptor_tables.iter().enumerate() {
                    (table_box(report, place, table, height))
                }
                @for file in &files { (file_box(file)) }
            }
        }
        @if left_out > 0 {
            p.note { (left_out) " more open files are not drawn; the list below has all." }
        }
    }
}

/// The middle of an open file's row.
fn row(number: u32) -> f64 {
    6.0 + ROW * (f64::from(number) + 0.5)
}

/// The middle of a table's box: all are spread over the height.
fn table_row(report: &Report, place: usize, height: f64) -> f64 {
    let count = f64::from(u32::try_from(report.descriptor_tables.len()).unwrap_or(1));
    (f64::from(u32::try_from(place).unwrap_or(0)) + 0.5) * height / count
}

/// From tables to an open file, and from there to what it leads to.
fn lines(report: &Report, file: &OpenFileReport, height: f64) -> Markup {
    let y = row(file.number);
    let middle = f64::midpoint(TABLES.1, FILES.0);
    let shared = file.descriptors.len() > 1;
    let arcs: Vec<u32> = file
        .leads_to
        .iter()
        .copied()
        .filter(|other| usize::try_from(*other).is_ok_and(|other| other < MOST_FILES))
        .collect();
    html! {
        @for (table, descriptor) in &file.descriptors {
            @let from = table_row(report, *table, height);
            path.wire.shared[shared] d={
                "M" (TABLES.1) " " (number(from)) " C" (middle) " " (number(from)) " " (middle) " "
                (number(y)) " " (FILES.0) " " (number(y))
            } { title { "descriptor " (descriptor) } }
        }
        @for other in arcs {
            @let to = row(other);
            @let bulge = FILES.1 + 20.0 + ((to - y).abs() / 4.0).min(WIDTH - FILES.1 - 28.0);
            path.arc d={
                "M" (FILES.1) " " (number(y)) " C" (number(bulge)) " " (number(y)) " " (number(bulge)) " "
                (number(to)) " " (FILES.1) " " (number(to))
            } { title { "open file " (file.number) " leads to open file " (other) } }
        }
    }
}

fn table_box(report: &Report, place: usize, table: &TableReport, height: f64) -> Markup {
    let y = table_row(report, place, height);
    let name = report
        .processes
        .iter()
        .find(|process| table.processes.first() == Some(&process.pid))
        .map(|process| process.name.as_str())
        .unwrap_or_default();
    let pids: Vec<String> = table.processes.iter().map(i32::to_string).collect();
    let words = format!("{} {}", pids.join(", "), printable(name));
    let count = table.descriptors.len();
    html! {
        g.table {
            title { "process " (words) ": " (count) " descriptors" }
            rect x=(TABLES.0) y=(number(y - 18.0)) width=(TABLES.1 - TABLES.0) height="36" rx="5" {}
            text x=(TABLES.0 + 10.0) y=(number(y - 2.0)) { (beginning(&words, 24)) }
            text.minor x=(TABLES.0 + 10.0) y=(number(y + 12.0)) { (count) " descriptors" }
        }
    }
}

fn file_box(file: &OpenFileReport) -> Markup {
    let y = row(file.number);
    let words = printable(&file.what);
    let numbers: BTreeSet<i32> = file.descriptors.iter().map(|(_, number)| *number).collect();
    let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
    let shown = if numbers.is_empty() { "in a message".to_owned() } else { numbers.join(" ") };
    html! {
        g.file {
            title { (words) }
            rect x=(FILES.0) y=(number(y - 9.5)) width=(FILES.1 - FILES.0) height="19" rx="4" {}
            text.minor x=(FILES.0 + 62.0) y=(number(y + 4.0)) text-anchor="end" { (beginning(&shown, 9)) }
            text x=(FILES.0 + 74.0) y=(number(y + 4.0)) { (beginning(&words, LETTERS)) }
        }
    }
}
