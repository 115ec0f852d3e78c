//! The report for people: the verdict first, then what is wrong, worst first, then what is well. No line
//! is wider than a plain terminal.

use super::line::{Grade, Line, Remedy};
use crate::cli::options;

/// Letters in a line.
const WIDTH: usize = 80;
/// Where what belongs to a line's subject begins, when it does not fit beside it.
const INDENT: &str = "          ";

/// Part of a report: its heading, and its lines.
pub struct Part<'a> {
    /// What the lines are about, in a line of its own.
    pub heading: String,
    /// The lines.
    pub lines: &'a [Line],
}

/// The report.
pub fn render(verdict: &str, parts: &[Part<'_>]) -> String {
    let mut text = wrapped(verdict, "", "");
    for part in parts {
        text.push('\n');
        text.push_str(&wrapped(&part.heading, "", ""));
        text.push_str(&lines(part.lines));
    }
    text
}

fn lines(lines: &[Line]) -> String {
    let letters = |line: &Line| line.subject.chars().count();
    let well = lines.iter().filter(|line| line.grade == Grade::Works);
    let width = well.map(letters).max().unwrap_or_default().min(36);
    let mut text = String::new();
    for grade in [Grade::Fails, Grade::Less, Grade::Works] {
        for line in lines.iter().filter(|line| line.grade == grade) {
            text.push_str(&one(line, width));
        }
    }
    text
}

/// A line, its finding beside it if it works, else under it.
fn one(line: &Line, width: usize) -> String {
    let subject = options::printable(&line.subject);
    let code = line.code.map(|code| format!(" ({code})")).unwrap_or_default();
    let finding = format!("{}{code}", options::printable(&line.finding));
    let mut text = match line.grade {
        Grade::Works => {
            let start = format!("   ok   {subject:width$}  ");
            let rest = " ".repeat(start.chars().count().min(WIDTH / 2 + 8));
            wrapped(&finding, &start, &rest)
        }
        Grade::Less => wrapped(&subject, "  less  ", INDENT) + &wrapped(&finding, INDENT, INDENT),
        Grade::Fails => wrapped(&subject, " FAILS  ", INDENT) + &wrapped(&finding, INDENT, INDENT),
    };
    let remedy = match &line.remedy {
        None => return text,
        Some(Remedy::Do(words)) => format!("do: {words}"),
        Some(Remedy::AskAdministrator(words)) => format!("ask: \"{words}\""),
    };
    text.push_str(&wrapped(&remedy, INDENT, &format!("{INDENT}  ")));
    text
}

/// `words` in lines of at most [`WIDTH`] letters, where a single word is not longer; the first line begins
/// with `first`, all others with `rest`.
fn wrapped(words: &str, first: &str, rest: &str) -> String {
    let mut text = String::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in words.split_whitespace() {
        let length = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if length > WIDTH && !is_empty {
            text.push_str(line.trim_end());
            text.push('\n');
            line = rest.to_owned();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_lines_are_short() {
        let found = [
            Line::works("one", "well"),
            Line::less("another thing", "slower ".repeat(30), Remedy::own("wait")),
            Line::fails("a third", "not at all", Remedy::ask("Please allow it.")),
        ];
        let part = Part { heading: "this machine".to_owned(), lines: &found };
        let text = render("verdict", &[part]);
        let begin: Vec<&str> = text.lines().map(|line| line.trim()).collect();
        assert_eq!(begin[..2], ["verdict", ""]);
        assert_eq!(begin[3..6], ["FAILS  a third", "not at all", "ask: \"Please allow it.\""]);
        assert_eq!(begin[6], "less  another thing");
        assert_eq!(begin.last(), Some(&"ok   one  well"));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn nothing_is_lost_by_wrapping() {
        let words = "a ".repeat(200) + &"b".repeat(100) + " c";
        let text = wrapped(&words, " > ", "   ");
        let found: Vec<&str> = text.trim_start_matches(" > ").split_whitespace().collect();
        assert_eq!(found, words.split_whitespace().collect::<Vec<_>>());
    }
}
