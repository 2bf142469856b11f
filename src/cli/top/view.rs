//! Draws the rows on a terminal of any size. Pure: from a [`State`], a moment and what the keys have changed.
//!
//! Rows that are too long are wrapped; what does not fit below is reached by scrolling. Where there is room left, the
//! last minutes are drawn large.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline, Wrap};

use super::rows::{NAME, Row, Tone, keys, rows};
use super::state::State;
use super::text::{count, rate, seconds};

/// Rows of the large plot, with its frame: at least, and at most.
const PLOT: std::ops::RangeInclusive<u16> = 5..=12;

const HELP: [&str; 12] = [
    "q, Esc, Ctrl-C   quit",
    "p                pause: the screen stays as it is",
    "Up, Down, k, j   scroll",
    "?                this help",
    "",
    "confirmed, read  of all relays shown, last interval",
    "latency          from the histograms' buckets",
    "pending          exact with the database, else `about`",
    "in flight        sent to the broker, not yet confirmed",
    "paused           waits for its next try, in order",
    "parked           a person decides: statecast parked",
    "missed           not brought by the stream, but polled",
];

/// What the keys have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Screen {
    pub(super) paused: bool,
    pub(super) help: bool,
    /// Rows scrolled away.
    pub(super) scroll: u16,
    /// Colours may be used.
    pub(super) colours: bool,
}

/// Draws everything. Returns the farthest that it makes sense to scroll.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, screen: Screen, now: Instant) -> u16 {
    let [body, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let rows = rows(state, now, body.width.into());
    let lines: Vec<Line<'_>> = rows.iter().map(|row| line(row, screen.colours)).collect();
    // What hostile relays say may be more lines than can be scrolled to.
    let height = rows.iter().fold(0_u16, |sum, row| sum.saturating_add(height(row, body.width)));
    let most = height.saturating_sub(body.height);
    let room = body.height.saturating_sub(height.saturating_add(1));
    let [text, plot] = if room >= *PLOT.start() {
        let plot = Constraint::Length(room.min(*PLOT.end()));
        Layout::vertical([Constraint::Min(0), plot]).areas(body)
    } else {
        [body, Rect::ZERO]
    };
    // Wrapping cuts at words, so a row may be a line higher than counted: the last scroll shows it.
    let text_widget = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(text_widget.scroll((screen.scroll.min(most), 0)), text);
    if plot.height > 0 {
        large_plot(frame, state, plot, screen.colours);
    }
    footer(frame, state, screen, most, foot);
    if screen.help {
        help(frame, body);
    }
    most
}

fn line(row: &Row, colours: bool) -> Line<'_> {
    let mut spans = vec![Span::styled(format!("{:<NAME$}", row.name), style(Tone::Dim, colours))];
    spans.extend(row.pieces.iter().map(|(tone, text)| Span::styled(text.as_str(), style(*tone, colours))));
    Line::from(spans)
}

/// Lines that a row takes.
fn height(row: &Row, width: u16) -> u16 {
    let cells: usize =
        NAME + row.pieces.iter().map(|(_, text)| Span::raw(text.as_str()).width()).sum::<usize>();
    u16::try_from(cells.div_ceil(usize::from(width.max(1))).max(1)).unwrap_or(u16::MAX)
}

fn style(tone: Tone, colours: bool) -> Style {
    let coloured = |colour| if colours { Style::new().fg(colour) } else { Style::new() };
    match tone {
        Tone::Plain => Style::new(),
        Tone::Dim => Style::new().add_modifier(Modifier::DIM),
        Tone::Strong => Style::new().add_modifier(Modifier::BOLD),
        Tone::Good => coloured(Color::Green),
        Tone::Warning => coloured(Color::Yellow),
        Tone::Bad => coloured(Color::Red).add_modifier(Modifier::BOLD),
    }
}

fn large_plot(frame: &mut Frame<'_>, state: &State, area: Rect, colours: bool) {
    let rates = state.history.confirmed();
    let width = usize::from(area.width);
    let shown = &rates[rates.len().saturating_sub(width)..];
    let peak = shown.iter().copied().fold(0.0, f64::max);
    let span = state.history.slot().as_secs_f64() * width as f64;
    let title = format!(" confirmed in the last {}, peak {} ", seconds(span), rate(peak));
    let block = Block::new().borders(Borders::TOP).title(title).border_style(style(Tone::Dim, colours));
    // A thousandth of an event per second is still seen, and a float as an integer is bounded by `as`.
    let data: Vec<u64> = shown.iter().map(|rate| (rate * 1000.0) as u64).collect();
    let empty = width.saturating_sub(data.len());
    let data: Vec<u64> = std::iter::repeat_n(0, empty).chain(data).collect();
    frame.render_widget(Sparkline::default().data(data).style(style(Tone::Good, colours)).block(block), area);
}

fn footer(frame: &mut Frame<'_>, state: &State, screen: Screen, most: u16, area: Rect) {
    let mut text = keys(state, screen.paused);
    let below = most.saturating_sub(screen.scroll);
    if below > 0 {
        text.push_str(&format!("   {} more below", count(f64::from(below))));
    }
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(text).style(reversed), area);
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (58.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let at =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, at);
    let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" statecast top ")), at);
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
