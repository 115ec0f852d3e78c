//! The figures: medians, beside their floors, as a table and as JSON. It knows nothing of what they are.

use serde_json::{Value, json};

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Mebibytes,
    Percent,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
        }
    }
}

/// A figure taken once in each round.
struct Row {
    scenario: String,
    name: String,
    unit: Unit,
    values: Vec<f64>,
    /// What it is compared with, taken in the same rounds.
    floor: Option<(String, Vec<f64>)>,
}

/// All figures so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds what one round gave for a figure, and for its floor.
    pub fn add(
        &mut self,
        scenario: &str,
        name: &str,
        unit: Unit,
        value: f64,
        floor: Option<(&str, f64)>,
    ) {
        let known = self.rows.iter_mut().find(|row| row.scenario == scenario && row.name == name);
        match known {
            Some(row) => {
                row.values.push(value);
                if let (Some((_, values)), Some((_, floor))) = (&mut row.floor, floor) {
                    values.push(floor);
                }
            }
            None => self.rows.push(Row {
                scenario: scenario.to_owned(),
                name: name.to_owned(),
                unit,
                values: vec![value],
                floor: floor.map(|(name, value)| (name.to_owned(), vec![value])),
            }),
        }
    }

    /// Prints the figures of a scenario.
    pub fn print_last(&self, scenario: &str) {
        println!("\n| {scenario:40} | median | least | most | floor | ratio |");
        println!("|---|---|---|---|---|---|");
        for row in self.rows.iter().filter(|row| row.scenario == scenario) {
            let (least, most) = bounds(&row.values);
            let value = median(&row.values);
            let (floor, ratio) = match &row.floor {
                Some((name, values)) => {
                    let floor = median(values);
                    (format!("{} ({name})", figure(floor)), format!("{:.2}", value / floor))
                }
                None => (String::new(), String::new()),
            };
            let (name, unit) = (&row.name, row.unit.name());
            println!(
                "| {:40} | {} | {} | {} | {floor} | {ratio} |",
                format!("{name}, {unit}"),
                figure(value),
                figure(least),
                figure(most)
            );
        }
    }

    /// Everything, each round's values included.
    pub fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let floor = row.floor.as_ref().map(|(name, values)| {
                    json!({ "name": name, "values": values, "median": median(values) })
                });
                json!({
                    "scenario": row.scenario,
                    "name": row.name,
                    "unit": row.unit.name(),
                    "values": row.values,
                    "median": median(&row.values),
                    "floor": floor,
                })
            })
            .collect();
        format!("{:#}\n", Value::Array(rows))
    }
}

fn figure(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// The middle one; of two in the middle, the lower.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) / 2).copied().unwrap_or(f64::NAN)
}
