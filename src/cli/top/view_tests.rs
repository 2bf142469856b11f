//! What the screen shows, on ratatui's test backend.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::exposition::Exposition;
use super::super::figures::Figures;
use super::super::scrape::{Look, Ready, Reason};
use super::super::state::{Facts, State, Update};
use super::{Screen, draw};
use crate::cli::reading::Wal;
use crate::cli::status::{Broker, Chunks, Report};
use crate::metrics::Metrics;
use crate::store::parked::counts::Count;

const COLOURED: Screen = Screen { paused: false, help: false, scroll: 0, colours: true };

/// The screen's lines, without the blanks at their ends.
fn screen(state: &State, screen: Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| _ = draw(frame, state, screen, Instant::now())).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let lines = (0..height).map(|y| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn empty() -> State {
    State::new("orders".to_owned(), Duration::from_secs(1), 2000, &["relay-1:9465".to_owned()])
}

fn look(metrics: &Metrics, ready: Ready) -> Look {
    Look { figures: Figures::of(&Exposition::parse(metrics.encode().as_bytes())).unwrap(), ready }
}

fn leads() -> Ready {
    Ready { ready: true, role: "leader".to_owned(), reasons: Vec::new() }
}

fn facts() -> Facts {
    let report = Report {
        schema: 1,
        pipeline: "orders".to_owned(),
        leader: Some("host-7".to_owned()),
        epoch: 4,
        lease_ms: Some(3_200),
        mode: "poll",
        mode_reason: "wal_level is replica".to_owned(),
        pending: 1_234,
        parked: 3,
        confirmed: 1_000_000,
        discarded: 2,
        oldest_pending_ms: Some(12_345),
        wal: Wal::default(),
        chunks: Chunks {
            attached: 9,
            empty_ahead: 8,
            bytes: 3 << 20,
            last_seq: 1_001_239,
            floor_seq: None,
            tail_rows: false,
        },
        broker: Broker { exchange: "x".to_owned() },
        ready: true,
        reasons: Vec::new(),
        verify: None,
    };
    let aside = |state: &str, reason: Option<&str>, events| Count {
        state: state.to_owned(),
        reason: reason.map(str::to_owned),
        events,
    };
    Facts {
        report,
        lanes: Some(2),
        aside: vec![
            aside("parked", Some("too_large"), 1),
            aside("parked", Some("unroutable"), 2),
            aside("queued", None, 5),
            aside("waiting", Some("nack"), 4),
        ],
    }
}

/// Two looks at a leader, a second apart, and the database.
fn running() -> State {
    let (mut state, start) = (empty(), Instant::now());
    let metrics = Metrics::new("orders");
    metrics.leader.set(1);
    let relay = |at, look| Update::Relay { index: 0, at, look: Ok(look) };
    state.apply(relay(start, look(&metrics, leads())));
    metrics.events_confirmed.inc_by(1_500);
    metrics.events_read.wal.inc_by(1_000);
    metrics.events_read.poll.inc_by(600);
    metrics.window_in_use.set(77);
    metrics.keys_paused.nack.set(1);
    metrics.broker_nacks.inc_by(6);
    metrics.wal_missed.inc();
    metrics.events_pending.set(50);
    for _ in 0..100 {
        metrics.recorded_to_confirm_seconds.observe(0.007);
        metrics.publish_confirm_seconds.observe(0.002);
    }
    state.apply(relay(start + Duration::from_secs(1), look(&metrics, leads())));
    state.apply(Update::Database { at: start, facts: Ok(facts()) });
    state
}

#[test]
fn before_anybody_answered() {
    let text = screen(&empty(), COLOURED, 80, 24);
    assert!(
        text.starts_with("pipeline   orders\nrelay      relay-1:9465  asking\ndatabase   asking"),
        "{text}"
    );
    assert!(text.ends_with("every 1s   q quit   p pause   ? help"), "{text}");
}

#[test]
fn everything_is_shown_on_80_by_24() {
    let text = screen(&running(), COLOURED, 80, 24);
    for line in [
        "relay      relay-1:9465  leader, ready",
        "database   leader host-7, epoch 4, lease 3.2 s",
        "mode       polling (wal_level is replica)",
        "confirmed  1,500/s",
        "read       1,600/s   stream 1,000/s, poll 600/s",
        "latency    p50 7.5 ms    p99 10 ms     recorded to confirm, last 10 s",
        "pending    1,234, the oldest for 12.3 s",
        "window     77 of 4,000 unconfirmed messages in flight, 2 lanes",
        "paused     1 entity (nack), 0 routing keys (returned)",
        "set aside  waiting 4 nack, 5 queued",
        "parked     3 (1 too_large, 2 unroutable)",
        "stream     none now, 1 missed",
        "broker     takes messages, 6 refused (nack), 0 returned",
        "outbox     9 chunks, 8 empty ahead, 3.0 MiB, last seq 1,001,239",
        "ledger     1,000,000 confirmed + 3 parked + 2 discarded + 1,234 pending",
    ] {
        assert!(
            text.lines()
                .any(|shown| shown == line || (line.starts_with("confirmed") && shown.starts_with(line))),
            "{line}\nis not in\n{text}"
        );
    }
    assert!(!text.contains("below"), "{text}");
}

#[test]
fn a_side_that_is_away_is_said_in_place() {
    let mut state = running();
    state.apply(Update::Database { at: Instant::now(), facts: Err("cannot reach db:5432".to_owned()) });
    let text = screen(&state, COLOURED, 80, 24);
    assert!(text.contains("database   cannot reach db:5432"), "{text}");
    assert!(text.contains("pending    about 50") && text.contains("mode       polling"), "{text}");
    assert!(text.contains("confirmed  1,500/s"), "{text}");

    let mut state = running();
    state.apply(Update::Relay {
        index: 0,
        at: Instant::now(),
        look: Err("cannot connect: refused".to_owned()),
    });
    let text = screen(&state, COLOURED, 80, 24);
    assert!(text.contains("relay      relay-1:9465  cannot connect: refused"), "{text}");
    assert!(
        text.contains("pending    1,234") && !text.contains("confirmed  1,500/s"),
        "old rates are no rates: {text}"
    );
}

#[test]
fn the_relay_that_leads_is_shown_whichever_it_is() {
    let targets = ["a:1".to_owned(), "b:2".to_owned()];
    let mut state = State::new("orders".to_owned(), Duration::from_secs(1), 2000, &targets);
    let (standby, leader) = (Metrics::new("orders"), Metrics::new("orders"));
    leader.leader.set(1);
    leader.window_in_use.set(9);
    let ready = Ready { ready: true, role: "standby".to_owned(), reasons: Vec::new() };
    state.apply(Update::Relay { index: 0, at: Instant::now(), look: Ok(look(&standby, ready)) });
    let text = screen(&state, COLOURED, 80, 24);
    assert!(text.contains("a:1  standby, ready") && !text.contains("broker "), "it knows nothing: {text}");
    state.apply(Update::Relay { index: 1, at: Instant::now(), look: Ok(look(&leader, leads())) });
    state.apply(Update::Relay { index: 2, at: Instant::now(), look: Err("beyond".to_owned()) });
    let text = screen(&state, COLOURED, 80, 24);
    assert!(text.contains("a:1  standby, ready\nrelay      b:2  leader, ready"), "{text}");
    assert!(text.contains("window     9 of"), "{text}");
}

#[test]
fn reasons_cannot_write_on_the_terminal() {
    let mut state = running();
    let evil = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}abc\r\n";
    let mut facts = facts();
    facts.report.leader = Some(evil.to_owned());
    facts.report.mode_reason = evil.to_owned();
    facts.report.reasons = vec![evil.to_owned()];
    facts.aside[0].reason = Some(evil.to_owned());
    state.apply(Update::Database { at: Instant::now(), facts: Ok(facts) });
    state.apply(Update::Relay { index: 0, at: Instant::now(), look: Err(evil.to_owned()) });
    let text = screen(&state, COLOURED, 120, 40);
    let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(text.contains("[2J") && !text.contains(bad), "{text:?}");
    let rows = super::rows(&state, Instant::now(), 80);
    assert!(rows.iter().all(|row| !row.plain().contains(bad) && !row.plain().contains('\n')), "{rows:?}");
}

#[test]
fn every_size_is_drawn() {
    let mut state = running();
    let reason = Reason {
        component: "broker".to_owned(),
        severity: "not_ready".to_owned(),
        text: "long text ".repeat(30),
    };
    let ready = Ready { ready: false, role: "starting".to_owned(), reasons: vec![reason; 5] };
    let metrics = Metrics::new("orders");
    state.apply(Update::Relay { index: 0, at: Instant::now(), look: Ok(look(&metrics, ready)) });
    for help in [false, true] {
        for scroll in [0, 3, u16::MAX] {
            for (width, height) in [(0, 0), (1, 1), (2, 3), (10, 1), (40, 10), (80, 24), (300, 100)] {
                screen(&state, Screen { help, scroll, ..COLOURED }, width, height);
            }
        }
    }
    let small = screen(&state, COLOURED, 40, 10);
    assert!(small.starts_with("pipeline   orders\nrelay      relay-1:9465  starting, not"), "{small}");
    assert!(screen(&running(), COLOURED, 100, 10).contains("more below"));
    let scrolled = screen(&running(), Screen { scroll: u16::MAX, ..COLOURED }, 100, 10);
    assert!(scrolled.contains("ledger     1,000,000") && !scrolled.contains("more below"), "{scrolled}");
}

#[test]
fn a_tall_terminal_has_a_plot() {
    let text = screen(&running(), COLOURED, 80, 40);
    assert!(text.contains("confirmed in the last 80.0 s, peak 1,500/s"), "{text}");
}

#[test]
fn pause_and_help_are_seen() {
    assert!(screen(&running(), Screen { paused: true, ..COLOURED }, 80, 24).contains("PAUSED"));
    let text = screen(&running(), Screen { help: true, ..COLOURED }, 80, 24);
    assert!(text.contains(" statecast top ") && text.contains("q, Esc, Ctrl-C   quit"), "{text}");
}

#[test]
fn without_colours_there_are_none() {
    let colours = |colours| {
        let mut terminal = Terminal::new(TestBackend::new(80, 40)).unwrap();
        let screen = Screen { colours, ..COLOURED };
        terminal.draw(|frame| _ = draw(frame, &running(), screen, Instant::now())).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let plain = [ratatui::style::Color::Reset; 2];
        buffer.content().iter().filter(|cell| [cell.fg, cell.bg] != plain).count()
    };
    assert_eq!(colours(false), 0);
    assert!(colours(true) > 0);
}

#[test]
fn many_relays_with_much_to_say_do_not_overflow_a_narrow_terminal() {
    let names: Vec<String> = (0..16).map(|n| format!("relay-{n}:9465")).collect();
    let mut state = State::new("orders".to_owned(), Duration::from_secs(1), 2000, &names);
    let metrics = Metrics::new("orders");
    for index in 0..names.len() {
        let reason = |_| Reason {
            component: "stream".to_owned(),
            severity: "warning".to_owned(),
            text: "x".repeat(300),
        };
        let ready = Ready { reasons: (0..32).map(reason).collect(), ..leads() };
        state.apply(Update::Relay { index, at: Instant::now(), look: Ok(look(&metrics, ready)) });
    }
    // More lines than a screen's coordinates can count.
    screen(&state, Screen { scroll: u16::MAX, ..COLOURED }, 1, 5);
}
