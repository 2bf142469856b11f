//! `statecast top`: the pipeline as it runs, on a terminal.
//!
//! It asks two sides, neither of which has to be there: the relays' own `/metrics` and `/ready`, and the database for what
//! `status` shows. A side that is away is said to be away where its rows would be, and asked again; the view ends only when
//! somebody ends it. Nothing is written anywhere.
//!
//! Pollers (`watch`) send updates; `state` takes them in; `rows` turns it into text, `view` draws that. Where standard output
//! is no terminal, or with `--once`, the same rows are printed once, as soon as everybody was asked.

mod buckets;
mod exposition;
mod figures;
mod rows;
mod sample;
mod scrape;
mod state;
mod terminal;
mod text;
mod view;
mod watch;

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::scrape::Target;
use self::state::{State, Update};
use self::terminal::{Terminal, Wish};
use self::view::Screen;
use super::Context;
use super::run::stop_on_signals;
use crate::config::units::duration;

/// How long `--once` waits for a side that does not answer.
const ONCE_MAX: Duration = Duration::from_secs(15);
/// Columns of a row in plain text that has no terminal's width.
const PLAIN_WIDTH: usize = 80;
/// Relays shown, at most.
const TARGETS_MAX: usize = 16;

/// Options of `top`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A relay's metrics, e.g. http://10.0.0.7:9465; may be said more than once [default: http.listen, on this machine]
    #[arg(long = "metrics", value_name = "URL")]
    metrics: Vec<Target>,
    /// Between two looks, 100ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one snapshot as plain text, and end; so it is as well where standard output is no terminal
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_millis(100)..=Duration::from_secs(60);
    duration(text)
        .filter(|interval| bounds.contains(interval))
        .ok_or_else(|| "an interval is between 100ms and 1m, e.g. 500ms or 2s".to_owned())
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let config = Arc::new(context.load()?);
    if args.metrics.len() > TARGETS_MAX {
        return Err(super::Usage(format!("at most {TARGETS_MAX} relays are shown")).into());
    }
    let mut targets = args.metrics.clone();
    let mut no_relay = None;
    if targets.is_empty() {
        match Target::local(config.http.listen) {
            Some(target) => targets.push(target),
            None => no_relay = Some("not asked: http.listen has port 0; give --metrics URL".to_owned()),
        }
    }
    let names: Vec<String> = targets.iter().map(Target::to_string).collect();
    let mut state = State::new(config.name.clone(), args.interval, config.rabbitmq.window, &names);
    state.no_relay = no_relay;
    let stop = stop_on_signals()?;
    let (_pollers, updates) = watch::start(&config, &targets, args.interval);
    if args.once || !terminal::is_there() {
        once(state, updates, &stop).await
    } else {
        live(state, updates, &stop).await
    }
}

/// Waits until everybody was asked, and prints.
async fn once(
    mut state: State,
    mut updates: mpsc::Receiver<Update>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let asked = async {
        while !state.complete() {
            match updates.recv().await {
                Some(update) => state.apply(update),
                None => break,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        // Who has not answered by then is shown as being asked.
        _ = tokio::time::timeout(ONCE_MAX, asked) => {}
    }
    let mut text = String::new();
    for row in rows::rows(&state, Instant::now(), PLAIN_WIDTH) {
        text.push_str(&row.plain());
        text.push('\n');
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Draws until somebody ends it.
async fn live(
    mut state: State,
    mut updates: mpsc::Receiver<Update>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminal = Terminal::enter()?;
    let mut screen = Screen { colours: terminal::colours(), ..Screen::default() };
    let mut frozen: Option<(State, Instant)> = None;
    // At least so often, so that ages grow although nobody answers.
    let mut ticks = tokio::time::interval(state.interval.min(Duration::from_secs(1)));
    loop {
        let (shown, now) = frozen.as_ref().map_or((&state, Instant::now()), |(state, at)| (state, *at));
        let mut most = 0;
        terminal.draw(|frame| most = view::draw(frame, shown, screen, now))?;
        screen.scroll = screen.scroll.min(most);
        tokio::select! {
            // 1. The end comes first, however much there is to draw.
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            // 2. Then the person.
            wish = terminal.wish() => match wish {
                Wish::Quit => return Ok(()),
                Wish::Pause => {
                    frozen = frozen.is_none().then(|| (state.clone(), Instant::now()));
                    screen.paused = frozen.is_some();
                }
                Wish::Help => screen.help = !screen.help,
                Wish::Up => screen.scroll = screen.scroll.saturating_sub(1),
                Wish::Down => screen.scroll = screen.scroll.saturating_add(1).min(most),
                Wish::Redraw => {}
            },
            // 3. Then what is new; all of it that is there, for one drawing.
            update = updates.recv() => if let Some(update) = update {
                state.apply(update);
                while let Ok(update) = updates.try_recv() {
                    state.apply(update);
                }
            },
            _ = ticks.tick() => {}
        }
    }
}
