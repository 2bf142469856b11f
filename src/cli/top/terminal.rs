//! The terminal, taken over and given back: when the view ends, on a signal, and on a panic.

use std::io::{self, IsTerminal as _};

use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use ratatui::Frame;

/// What a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Pause,
    Help,
    Up,
    Down,
    /// Another size: draw again.
    Redraw,
}

/// Whether a person looks at standard output, on a terminal that can move its cursor.
pub(super) fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb" || term.is_empty());
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// <https://no-color.org>: set and not empty.
pub(super) fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The terminal in raw mode, on its alternate screen. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct Terminal {
    screen: DefaultTerminal,
    events: EventStream,
}

impl Terminal {
    /// Takes it over. From now on a panic gives it back before its message is printed.
    pub(super) fn enter() -> io::Result<Terminal> {
        let screen = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        Ok(Terminal { screen, events: EventStream::new() })
    }

    /// Draws one frame.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.screen.draw(draw).map(|_| ())
    }

    /// The next thing that a person wants. A terminal that has gone away wants the end.
    pub(super) async fn wish(&mut self) -> Wish {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    if let Some(wish) = wish(&event) {
                        return wish;
                    }
                }
                Some(Err(_)) | None => return Wish::Quit,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nobody left to tell if it fails.
        let _ = self.screen.show_cursor();
        let _ = ratatui::try_restore();
    }
}

fn wish(event: &Event) -> Option<Wish> {
    let key = match event {
        Event::Resize(..) => return Some(Wish::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Quit),
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Wish::Quit),
        KeyCode::Char('p' | 'P' | ' ') => Some(Wish::Pause),
        KeyCode::Char('?' | 'h') => Some(Wish::Help),
        KeyCode::Up | KeyCode::Char('k') => Some(Wish::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Wish::Down),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossterm::event::KeyEvent;

    #[test]
    fn keys_mean_something() {
        let key = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |c| key(KeyCode::Char(c), KeyModifiers::NONE);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::Quit));
        assert_eq!((plain('q'), key(KeyCode::Esc, KeyModifiers::NONE)), (Some(Wish::Quit), Some(Wish::Quit)));
        assert_eq!((plain('p'), plain('?'), plain('c')), (Some(Wish::Pause), Some(Wish::Help), None));
        assert_eq!(wish(&Event::Resize(1, 1)), Some(Wish::Redraw));
        assert_eq!(wish(&Event::FocusLost), None);
    }
}
