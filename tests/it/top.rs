//! `statecast top`, as the real binary: one snapshot as text, and live on a pseudo-terminal.

use std::time::Duration;

use statecast::sandbox::free_port;

use crate::process::{Invocation, Relay};
use crate::pty::Pty;
use crate::servers::{Topology, connect, fresh_database, rabbitmq, unique};

const LIMIT: Duration = Duration::from_secs(30);

/// A relay that leads, and what it takes to watch it.
struct Watched {
    url: String,
    statecast: Invocation,
    relay: Relay,
}

impl Watched {
    async fn start() -> Watched {
        let url = fresh_database().await;
        let topology = Topology::new(rabbitmq().await.url());
        topology.declare().await;
        let statecast = Invocation::run(&url, &topology, &unique("top"));
        statecast.arguments(&["install"]).succeed().await;
        let relay = statecast.start();
        relay.wait_ready(LIMIT).await.unwrap();
        Watched { url, statecast, relay }
    }

    async fn publish(&self, events: i32) {
        let client = connect(&self.url).await.unwrap();
        let sql =
            "SELECT statecast.publish('order', n::text, 'order.placed', '{}') FROM generate_series(1, $1) n";
        client.execute(sql, &[&events]).await.unwrap();
    }

    /// Publishes and waits for the confirms.
    async fn confirm(&self, events: i32) {
        let before = self.relay.metric("statecast_events_confirmed_total").await;
        self.publish(events).await;
        let all = before + f64::from(events) - 0.5;
        assert!(self.relay.wait_for_metric("statecast_events_confirmed_total", all, LIMIT).await);
    }
}

#[tokio::test]
async fn one_snapshot_of_relay_and_database() {
    let mut watched = Watched::start().await;
    watched.confirm(7).await;
    let once = watched.statecast.arguments(&["top", "--once", "--interval", "200ms"]);
    let text = once.succeed().await;
    for line in
        ["  leader, ready", "database   leader ", "mode       polling (configured)", "paused     no key"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    // The cursor is written a moment after the confirms.
    let ledger = |text: &str| text.contains("ledger     7 confirmed + 0 parked + 0 discarded + 0 pending");
    let deadline = std::time::Instant::now() + LIMIT;
    while !ledger(&once.succeed().await) {
        assert!(std::time::Instant::now() < deadline, "{}", once.succeed().await);
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // Standard output is no terminal here, which is the same as --once.
    let text = watched.statecast.arguments(&["top", "--interval", "200ms"]).succeed().await;
    assert!(text.contains("window     0 of 500"), "{text}");

    // Without the relay the database answers.
    watched.relay.sigterm();
    assert!(watched.relay.wait(LIMIT).await.unwrap().success());
    let text = once.succeed().await;
    assert!(text.contains("  cannot connect: ") && text.contains("nobody leads") && ledger(&text), "{text}");
}

#[tokio::test]
async fn the_relay_is_shown_without_the_database() {
    let watched = Watched::start().await;
    watched.confirm(3).await;
    let away = format!("postgres://nobody@127.0.0.1:{}/none", free_port().unwrap());
    let beyond = format!("http://127.0.0.1:{}", free_port().unwrap());
    let here = format!("http://{}/metrics", watched.relay.http());
    let once = watched.statecast.with("STATECAST_POSTGRES__URL", &away);
    let arguments = ["top", "--once", "--interval", "200ms", "--metrics", &beyond, "--metrics", &here];
    let text = once.arguments(&arguments).succeed().await;
    assert!(text.contains("  leader, ready") && text.contains("  cannot connect: "), "{text}");
    assert!(
        text.contains("database   cannot connect to PostgreSQL") && text.contains("pending    about 0"),
        "{text}"
    );
}

#[tokio::test]
async fn live_on_a_terminal_until_q() {
    let watched = Watched::start().await;
    let top = watched.statecast.arguments(&["top", "--interval", "100ms"]);
    let mut pty = Pty::start(top.terminal_command(), 100, 30);
    let before = pty.settings();
    pty.wait_for(
        |screen| screen.contains("leader, ready") && screen.contains("0 confirmed + 0 parked"),
        LIMIT,
    );
    assert_ne!(pty.settings(), before, "raw mode");
    watched.publish(5).await;
    pty.wait_for(|screen| screen.contains("5 confirmed + 0 parked + 0 discarded + 0 pending"), LIMIT);

    pty.write(b"?");
    pty.wait_for(|screen| screen.contains(" statecast top "), LIMIT);
    pty.write(b"?p");
    pty.wait_for(|screen| screen.contains("PAUSED") && !screen.contains(" statecast top "), LIMIT);
    pty.resize(40, 10);
    pty.wait_for(|screen| screen.lines().count() == 10 && screen.contains("PAUSED"), LIMIT);
    pty.write(b"q");
    assert!(pty.wait(LIMIT).success());
    assert_eq!(pty.settings(), before, "echo and line mode are back");
    assert!(!pty.alternate_screen() && pty.cursor_visible(), "{}", pty.screen());
}

#[tokio::test]
async fn a_signal_gives_the_terminal_back() {
    let watched = Watched::start().await;
    let top = watched.statecast.arguments(&["top", "--interval", "100ms"]);
    let mut pty = Pty::start(top.terminal_command(), 80, 24);
    let before = pty.settings();
    pty.wait_for(|screen| screen.contains("leader, ready"), LIMIT);
    assert!(pty.alternate_screen());
    pty.sigterm();
    assert!(pty.wait(LIMIT).success());
    assert_eq!(pty.settings(), before);
    assert!(!pty.alternate_screen() && pty.cursor_visible(), "{}", pty.screen());
}
