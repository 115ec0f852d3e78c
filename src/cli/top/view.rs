//! What `rckpt top` draws: a line for each job, and below it the chosen one with what its checkpoints cost.
//! A function of what is known, so that it can be drawn without a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, TableState, Widget, Wrap};

use super::super::list::{Cost, Job};
use super::super::options::{beginning, instant, percent, printable, size, span};

/// Letters of a command line in the table.
const COMMAND_LETTERS: usize = 80;
/// Rows below the jobs: what is told of the chosen one.
const DETAIL_ROWS: u16 = 12;

/// What is known, and what was chosen.
#[derive(Debug, Default)]
pub struct Screen {
    jobs: Vec<Job>,
    /// The root process of the chosen job.
    chosen: Option<i32>,
    /// How many supervisors do not answer.
    pub silent: usize,
    /// Whether anybody has been asked yet.
    pub has_asked: bool,
    /// What was said last.
    pub message: Option<String>,
    /// Seconds since 1970.
    pub now: i64,
}

impl Screen {
    /// Takes in how the jobs are now. The chosen one stays so as long as it is there.
    pub fn set_jobs(&mut self, jobs: Vec<Job>) {
        self.jobs = jobs;
        if self.chosen().is_none() {
            self.chosen = self.jobs.first().map(|job| job.root);
        }
    }

    /// The chosen job.
    pub fn chosen(&self) -> Option<&Job> {
        self.jobs.iter().find(|job| Some(job.root) == self.chosen)
    }

    /// Chooses the one before or after.
    pub fn choose(&mut self, step: isize) {
        let place = self.place().unwrap_or(0);
        let place = place.saturating_add_signed(step).min(self.jobs.len().saturating_sub(1));
        self.chosen = self.jobs.get(place).map(|job| job.root);
    }

    fn place(&self) -> Option<usize> {
        self.jobs.iter().position(|job| Some(job.root) == self.chosen)
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, screen: &mut Screen) {
    let [head, jobs, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(4),
        Constraint::Length(if screen.jobs.is_empty() { 0 } else { DETAIL_ROWS }),
        Constraint::Length(2),
    ])
    .areas(frame.area());
    draw_head(frame, head, screen);
    draw_jobs(frame, jobs, screen);
    if let Some(job) = screen.chosen() {
        draw_detail(frame, detail, job, screen.now);
    }
    draw_foot(frame, foot, screen);
}

/// Draws what there is room for.
fn put(frame: &mut Frame<'_>, widget: impl Widget, area: Rect) {
    let area = area.intersection(frame.area());
    if !area.is_empty() {
        frame.render_widget(widget, area);
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let count = match screen.jobs.len() {
        1 => "1 job".to_owned(),
        count => format!("{count} jobs"),
    };
    let mut words = vec!["rckpt".bold(), Span::from(format!("  {count}  {}", instant(screen.now)))];
    if screen.silent > 0 {
        words.push(format!("  {} supervisors do not answer", screen.silent).yellow());
    }
    put(frame, Line::from(words), area);
}

fn draw_jobs(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    if screen.jobs.is_empty() {
        let words = if screen.has_asked {
            "No job of yours runs under rckpt on this machine. rckpt run -- CMD starts one."
        } else {
            "Looking for jobs."
        };
        put(frame, Paragraph::new(words).wrap(Wrap { trim: true }), area);
        return;
    }
    let header = ["PID", "RUNNING", "NEXT", "LAST", "PAUSE", "SIZE", "KEPT", "COMMAND"];
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::DIM));
    let rows = screen.jobs.iter().map(|job| row(job, screen.now));
    let widths = [
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(4),
        Constraint::Min(12),
    ];
    let table = Table::new(rows, widths)
        .header(header)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(screen.place());
    if !area.intersection(frame.area()).is_empty() {
        frame.render_stateful_widget(table, area, &mut state);
    }
}

fn row(job: &Job, now: i64) -> Row<'static> {
    let next = match (job.held, job.next) {
        (true, _) => "held off".to_owned(),
        (false, Some(next)) if next <= now => "due".to_owned(),
        (false, Some(next)) => format!("in {}", span(next - now)),
        (false, None) => "-".to_owned(),
    };
    let last = match (job.busy, job.last) {
        (true, _) => Cell::from("now".bold()),
        (false, Some(last)) => Cell::from(format!("{} ago", span(now - last))),
        (false, None) => Cell::from("-"),
    };
    Row::new([
        Cell::from(job.root.to_string()),
        Cell::from(span(now - job.started)),
        Cell::from(next),
        last,
        Cell::from(job.pause.map_or("-".to_owned(), |pause| format!("{pause:.3} s"))),
        Cell::from(job.bytes.map_or("-".to_owned(), size)),
        Cell::from(job.kept.to_string()),
        Cell::from(beginning(&printable(&job.command), COMMAND_LETTERS)),
    ])
}

fn draw_detail(frame: &mut Frame<'_>, area: Rect, job: &Job, now: i64) {
    let [title, place, newest, _, plots] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
    ])
    .areas(area);
    put(frame, printable(&job.command).into_owned().bold(), title);
    let directory = printable(&job.directory).into_owned();
    put(frame, Line::from(vec!["in ".dim(), directory.into()]), place);
    let words = match job.history.last() {
        None => "no checkpoint yet".to_owned(),
        Some(Cost { name, time, write_ms, dirty_share, .. }) => format!(
            "{} {} ago, written in {:.2} s, {} of the memory new",
            printable(name),
            span(now - time),
            write_ms / 1000.0,
            percent(*dirty_share)
        ),
    };
    put(frame, words, newest);
    if job.history.is_empty() {
        return;
    }
    let [left, _, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)])
            .areas(plots);
    let microseconds = |cost: &Cost| whole(cost.pause_ms * 1000.0);
    let most = |costs: &[Cost]| costs.iter().map(|cost| cost.pause_ms).fold(0.0, f64::max);
    draw_plot(frame, left, &job.history, &microseconds, |costs| {
        format!("pause, at most {:.1} ms", most(costs))
    });
    draw_plot(frame, right, &job.history, &|cost| cost.bytes, |costs| {
        let most = costs.iter().map(|cost| cost.bytes).max();
        format!("bytes written, at most {}", size(most.unwrap_or(0)))
    });
}

/// A column for each of the newest checkpoints that there is room for, the newest at the right.
fn draw_plot(
    frame: &mut Frame<'_>,
    area: Rect,
    costs: &[Cost],
    value: &dyn Fn(&Cost) -> u64,
    title: impl Fn(&[Cost]) -> String,
) {
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let shown = &costs[costs.len().saturating_sub(usize::from(body.width))..];
    put(frame, title(shown).dim(), head);
    let values: Vec<u64> = shown.iter().map(value).collect();
    put(frame, Sparkline::default().data(values), body);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let [said, keys] = Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(area);
    let message = screen.message.as_deref().unwrap_or_default().replace('\n', " ");
    put(frame, printable(&message).into_owned(), said);
    let key = |name: &'static str, words: &'static str| [name.bold(), words.dim()];
    let words =
        [key("q", " quit   "), key("↑ ↓", " choose   "), key("c", " take a checkpoint now")];
    put(frame, Line::from(words.concat()), keys);
}

/// A number that is not negative, without what is behind the point.
fn whole(value: f64) -> u64 {
    format!("{:.0}", value.max(0.0)).parse().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::super::list::Condition;
    use super::{Cost, Job, Screen, draw};

    fn job(root: i32, command: &str) -> Job {
        let costs = (0_u32..200).map(|place| Cost {
            name: format!("gen-{place:06}"),
            time: 1000 + i64::from(place),
            pause_ms: f64::from(place % 7) + 0.5,
            write_ms: 120.0,
            bytes: u64::from(place % 11) << 20,
            dirty_share: 0.125,
        });
        Job {
            id: "x".to_owned(),
            state: Condition::Supervised,
            root,
            supervisor: root - 1,
            command: command.to_owned(),
            directory: "/scratch/job".to_owned(),
            started: 0,
            every: Some(60),
            next: Some(1250),
            last: Some(1199),
            pause: Some(0.004),
            bytes: Some(3 << 20),
            busy: false,
            held: false,
            stale: Vec::new(),
            kept: 3,
            history: costs.collect(),
        }
    }

    fn drawn(screen: &mut Screen, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_on_a_small_screen() {
        let mut screen = Screen { now: 1210, ..Screen::default() };
        screen.set_jobs(vec![job(41, "./simulate --all"), job(42, "evil\u{1b}[2J\nname")]);
        let shown = drawn(&mut screen, 80, 24);
        for expected in [
            "rckpt  2 jobs",
            "41",
            "in 40 s",
            "11 s ago",
            "/scratch/job",
            "q quit",
            "at most 6.5 ms",
        ] {
            assert!(shown.contains(expected), "no {expected}:\n{shown}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        screen.choose(1);
        assert_eq!(screen.chosen().map(|job| job.root), Some(42));
        screen.choose(1);
        assert_eq!(screen.chosen().map(|job| job.root), Some(42));
        screen.set_jobs(vec![job(41, "./simulate")]);
        assert_eq!(screen.chosen().map(|job| job.root), Some(41));
    }

    #[test]
    fn screens_of_any_size() {
        let mut screen = Screen { message: Some("told\nmore".to_owned()), ..Screen::default() };
        for (columns, rows) in [(1, 1), (3, 2), (10, 5), (40, 12), (300, 100)] {
            drawn(&mut screen, columns, rows);
        }
        screen.set_jobs((1..200).map(|root| job(root, "x")).collect());
        screen.choose(150);
        for (columns, rows) in [(1, 1), (3, 2), (10, 5), (40, 12), (300, 100)] {
            drawn(&mut screen, columns, rows);
        }
        screen.set_jobs(Vec::new());
        screen.choose(1);
        assert!(screen.chosen().is_none());
    }
}
