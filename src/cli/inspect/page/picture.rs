//! Pictures of memory, drawn as SVG: an address space by kind of mapping, and in the order of addresses.

use maud::{Markup, html};

use crate::model::number::{to_f64, to_u64};

use super::super::super::options::{percent, printable, size};
use super::super::memory::{KINDS, KindReport, MappingReport, SpaceReport};
use super::plot::number;

/// Width of a picture, in its own units.
const WIDTH: f64 = 1000.0;
/// Height of a row of mappings, and from one row to the next.
const ROW: (f64, f64) = (22.0, 27.0);
/// Most mappings that are drawn in the order of addresses.
const MOST_MAPPINGS: usize = 1500;

/// The number of a kind, by which it has its colour.
fn colour(kind: &str) -> String {
    let place = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len() - 1);
    format!("kind{place}")
}

/// How much of `bytes` is stored, from 0 to 1.
fn share(stored: u64, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { (to_f64(stored) / to_f64(bytes)).min(1.0) }
}

/// One bar for all kinds, as long as each is large, filled as far as it is stored.
pub fn by_kind(space: &SpaceReport) -> Markup {
    let all: u64 = space.kinds.iter().map(|kind| kind.bytes).sum();
    let mut places = Vec::with_capacity(space.kinds.len());
    let mut x = 0.0;
    for kind in &space.kinds {
        let width = WIDTH * share(kind.bytes, all);
        places.push((x, width, kind));
        x += width;
    }
    html! {
        svg.memory viewBox={ "0 0 " (WIDTH) " 44" } preserveAspectRatio="none" role="img"
            aria-label={ "address space " (space.number) " by kind of mapping" } {
            @for (x, width, kind) in places {
                @let filled = 44.0 * share(kind.stored, kind.bytes);
                g class=(colour(kind.kind)) {
                    title { (kind_words(kind)) }
                    rect.room x=(number(x)) y="0" width=(number(width)) height="44" {}
                    rect x=(number(x)) y=(number(44.0 - filled)) width=(number(width))
                        height=(number(filled)) {}
                }
            }
        }
    }
}

fn kind_words(kind: &KindReport) -> String {
    let KindReport { kind, mappings, bytes, stored } = kind;
    format!("{kind}: {mappings} mappings, {}, {} stored", size(*bytes), size(*stored))
}

/// The table that goes with it, and says which colour is which kind.
pub fn legend(space: &SpaceReport) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="kinds of mappings" {
            table {
                thead { tr {
                    th { "Kind" } th.n { "Mappings" } th.n { "Size" } th.n { "Stored" } th { "Share stored" }
                } }
                tbody { @for kind in &space.kinds {
                    @let stored = share(kind.stored, kind.bytes);
                    tr class=(colour(kind.kind)) {
                        td { span.swatch {} (kind.kind) }
                        td.n { (kind.mappings) }
                        td.n { (size(kind.bytes)) }
                        td.n { (size(kind.stored)) }
                        td { svg.share viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                            rect.room width="100" height="8" {}
                            rect width=(number(100.0 * stored)) height="8" {}
                        } " " (percent(stored)) }
                    }
                } }
            }
        }
    }
}

/// Every mapping in the order of addresses. Sizes go from pages to gigabytes: each is drawn as wide as the
/// logarithm of its size, so that all are to be seen.
pub fn by_address(space: &SpaceReport) -> Markup {
    let (rows, places) = lay_out(&space.mappings);
    let height = f64::from(rows) * ROW.1;
    let left_out = space.mappings.len().saturating_sub(MOST_MAPPINGS);
    html! {
        svg.memory viewBox={ "0 0 " (WIDTH) " " (height) } role="img"
            aria-label={ "address space " (space.number) " in the order of addresses" } {
            @for (x, y, width, mapping) in places {
                @let filled = ROW.0 * share(mapping.stored, mapping.end - mapping.start);
                g class=(colour(mapping.kind)) {
                    title { (mapping_words(mapping)) }
                    rect.room x=(number(x)) y=(number(y)) width=(number(width)) height=(ROW.0) rx="1.5" {}
                    rect x=(number(x)) y=(number(y + ROW.0 - filled)) width=(number(width))
                        height=(number(filled)) rx="1.5" {}
                }
            }
        }
        p.note {
            "Every mapping from the lowest address to the highest, as wide as the logarithm of its size, \
             filled as far as it is stored."
            @if left_out > 0 { " " (left_out) " more are not drawn." }
        }
    }
}

/// How many rows, and where each mapping is.
fn lay_out(mappings: &[MappingReport]) -> (u32, Vec<(f64, f64, f64, &MappingReport)>) {
    const GAP: f64 = 2.0;
    let mut places = Vec::with_capacity(mappings.len());
    let (mut x, mut row) = (0.0, 0_u32);
    for mapping in mappings.iter().take(MOST_MAPPINGS) {
        let pages = ((mapping.end - mapping.start) / 4096).max(1);
        let width = 6.0 + 3.5 * f64::from(pages.ilog2());
        if x + width > WIDTH {
            (x, row) = (0.0, row + 1);
        }
        places.push((x, f64::from(row) * ROW.1, width, mapping));
        x += width + GAP;
    }
    (row + 1, places)
}

fn mapping_words(mapping: &MappingReport) -> String {
    let MappingReport { start, end, access, kind, file, name, stored, .. } = mapping;
    let what = file.as_ref().or(name.as_ref());
    let what = what.map(|what| format!(" {}", printable(what))).unwrap_or_default();
    let bytes = size(end - start);
    format!("{start:x}-{end:x} {access} {kind}{what}: {bytes}, {} stored", size(*stored))
}

/// The number of rows that a list of mappings is told in.
pub fn largest(space: &SpaceReport, count: usize) -> Vec<&MappingReport> {
    let mut mappings: Vec<&MappingReport> = space.mappings.iter().collect();
    mappings.sort_by_key(|mapping| (u64::MAX - mapping.stored, mapping.start));
    mappings.truncate(count);
    mappings.retain(|mapping| to_u64(count) > 0 && mapping.stored > 0);
    mappings
}
