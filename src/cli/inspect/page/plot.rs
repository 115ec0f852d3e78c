//! Plots of a job's history, drawn as SVG: a bar for each checkpoint.

use maud::{Markup, html};

use crate::model::number::{to_f64, to_u64};

use super::super::super::options;

/// Width and height of a plot, in its own units.
const SIZE: (f64, f64) = (480.0, 190.0);
/// Where the bars are: left, top, right, bottom.
const FRAME: (f64, f64, f64, f64) = (70.0, 12.0, 472.0, 160.0);
/// More bars than this are drawn together, each as high as the highest of them.
const MOST_BARS: usize = 134;

/// What is drawn.
pub struct Plot<'a> {
    /// Its title.
    pub title: &'a str,
    /// How its values are told.
    pub unit: Unit,
    /// One for each checkpoint, oldest first.
    pub bars: Vec<Bar>,
}

/// How values are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Time,
    /// Bytes.
    Bytes,
    /// From 0 to 1.
    Share,
}

/// A checkpoint's bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// The checkpoint's name.
    pub name: String,
    /// How high it is; not negative.
    pub value: f64,
    /// Whether the checkpoint stands by itself.
    pub full: bool,
    /// Whether it is the one that the page is about.
    pub own: bool,
}

impl Unit {
    /// A value for people.
    pub fn words(self, value: f64) -> String {
        match self {
            Self::Time if value < 1000.0 => format!("{value:.1} ms"),
            Self::Time => format!("{:.2} s", value / 1000.0),
            Self::Bytes => options::size(whole(value)),
            Self::Share => options::percent(value),
        }
    }

    /// The same beside a line of the plot, where it is a round number.
    fn label(self, value: f64) -> String {
        match self {
            _ if value == 0.0 => "0".to_owned(),
            Self::Time if value < 1000.0 => format!("{value} ms"),
            Self::Time => format!("{} s", value / 1000.0),
            Self::Bytes => options::size(whole(value)).replace(".0 ", " "),
            Self::Share => format!("{} %", value * 100.0),
        }
    }

    /// A round number that is not below any of the values, whose half is round, too.
    fn top(self, highest: f64) -> f64 {
        let unit = match self {
            Self::Share => return 1.0,
            Self::Time if highest < 1000.0 => 1.0,
            Self::Time => 1000.0,
            Self::Bytes => {
                let top = whole(highest).max(2).checked_next_power_of_two();
                return top.map_or(highest, to_f64);
            }
        };
        let mut step = 1.0;
        while step * 10.0 * unit < highest {
            step *= 10.0;
        }
        let round = [1.0, 2.0, 4.0, 6.0, 8.0].map(|factor| factor * step * unit);
        round.into_iter().find(|top| *top >= highest).unwrap_or(10.0 * step * unit)
    }
}

/// A number that is not negative, without what is behind the point.
fn whole(value: f64) -> u64 {
    format!("{:.0}", value.max(0.0)).parse().unwrap_or(u64::MAX)
}

/// Draws a plot. It is told in words, too, for those who do not see it.
pub fn draw(plot: &Plot<'_>) -> Markup {
    let Plot { title, unit, bars } = plot;
    let highest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let top = unit.top(highest);
    let (left, up, right, down) = FRAME;
    let height = |value: f64| (down - up) * (value / top).clamp(0.0, 1.0);
    let latest = bars.last().map(|bar| unit.words(bar.value)).unwrap_or_default();
    let told = format!("{title}: {} checkpoints, at most {}", bars.len(), unit.words(highest));
    html! {
        figure.plot {
            figcaption { (title) span.latest { "last " (latest) } }
            svg viewBox={ "0 0 " (SIZE.0) " " (SIZE.1) } role="img" aria-label=(told) {
                @for value in [top, top / 2.0, 0.0] {
                    @let y = number(down - height(value));
                    line.grid x1=(left) x2=(right) y1=(y) y2=(y) {}
                    text.tick x=(left - 8.0) y=(y) text-anchor="end" dominant-baseline="middle" {
                        (unit.label(value))
                    }
                }
                (drawn_bars(bars, *unit, &height))
                @if let (Some(first), Some(last)) = (bars.first(), bars.last()) {
                    text.tick x=(left) y=(SIZE.1 - 8.0) { (options::printable(&first.name)) }
                    @if bars.len() > 1 {
                        text.tick x=(right) y=(SIZE.1 - 8.0) text-anchor="end" {
                            (options::printable(&last.name))
                        }
                    }
                }
            }
        }
    }
}

fn drawn_bars(bars: &[Bar], unit: Unit, height: &dyn Fn(f64) -> f64) -> Markup {
    let (left, _, right, down) = FRAME;
    let together = bars.len().div_ceil(MOST_BARS).max(1);
    let groups: Vec<&[Bar]> = bars.chunks(together).collect();
    // A lonely bar is no wall.
    let pitch = ((right - left) / to_f64(to_u64(groups.len().max(1)))).min(36.0);
    let width = (pitch * 0.8).max(1.0);
    html! {
        @for (place, group) in (0_u32..).zip(&groups) {
            @let highest = group.iter().map(|bar| bar.value).fold(0.0, f64::max);
            // What is there is to be seen.
            @let tall = if highest > 0.0 { height(highest).max(1.5) } else { 0.0 };
            @let full = group.iter().any(|bar| bar.full);
            @let own = group.iter().any(|bar| bar.own);
            rect.bar.full[full].own[own]
                x=(number(left + f64::from(place) * pitch + (pitch - width) / 2.0))
                y=(number(down - tall)) width=(number(width)) height=(number(tall)) rx="1" {
                title { (words(group, unit, highest)) }
            }
        }
    }
}

fn words(group: &[Bar], unit: Unit, highest: f64) -> String {
    let name = |bar: &Bar| options::printable(&bar.name).into_owned();
    match group {
        [] => String::new(),
        [bar] => {
            let way = if bar.full { "in full" } else { "on top of another" };
            format!("{}: {} ({way})", name(bar), unit.words(bar.value))
        }
        [first, .., last] => {
            format!("{} to {}: at most {}", name(first), name(last), unit.words(highest))
        }
    }
}

/// A place in a picture, to a tenth.
pub fn number(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::Unit;

    #[test]
    fn the_top_of_a_plot_is_round() {
        let check = |unit: Unit, highest: f64, expected: &str| {
            assert_eq!(unit.label(unit.top(highest)), expected, "{highest}");
        };
        check(Unit::Time, 0.0, "1 ms");
        check(Unit::Time, 3.2, "4 ms");
        check(Unit::Time, 47.0, "60 ms");
        check(Unit::Time, 999.0, "1 s");
        check(Unit::Time, 12_000.0, "20 s");
        check(Unit::Bytes, 0.0, "2 B");
        check(Unit::Bytes, 1024.0 * 1024.0 * 130.0, "256 MiB");
        check(Unit::Bytes, 1024.0 * 1023.0, "1 MiB");
        check(Unit::Share, 0.03, "100 %");
    }
}
