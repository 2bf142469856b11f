//! What `/live` and `/ready` say: role, heartbeat, and why not ready.
//!
//! Any task reports by [`Health::set_reason`] and takes back by [`Health::clear_reason`]; neither waits. Not for the path
//! of each event: a reason is set when a state changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A heartbeat older than this means that the process hangs.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(30);

/// Characters of a reason, at most.
const TEXT_MAX: usize = 500;

/// The part this process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Connecting, or starting again after a failure.
    Starting,
    /// Another process leads; this one waits to take over.
    Standby,
    /// Reads and publishes.
    Leader,
}

impl Role {
    /// In one word, as in `/ready`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Starting => "starting",
            Role::Standby => "standby",
            Role::Leader => "leader",
        }
    }
}

/// How much a reason weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// `/ready` answers 503.
    NotReady,
    /// Shown, and `/ready` stays 200.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What reported it, such as `postgres`, `broker`, `blocked`, `refused`, `chunks`.
    pub component: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// One line: what, where, what to do.
    pub text: String,
}

/// The state at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Leader or standby, and nothing that blocks.
    pub ready: bool,
    /// The part this process plays.
    pub role: Role,
    /// By component.
    pub reasons: Vec<Reason>,
}

/// Shared by all tasks of a process.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    role: Role,
    beat: Instant,
    reasons: BTreeMap<&'static str, (Severity, String)>,
}

impl Health {
    /// Starting, alive, nothing wrong.
    pub fn new() -> Arc<Health> {
        let state = State { role: Role::Starting, beat: Instant::now(), reasons: BTreeMap::new() };
        Arc::new(Health { state: Mutex::new(state) })
    }

    /// Changes the role.
    pub fn set_role(&self, role: Role) {
        self.lock().role = role;
    }

    /// The role now.
    pub fn role(&self) -> Role {
        self.lock().role
    }

    /// `component` keeps the process from being ready; replaces what it said before.
    pub fn set_reason(&self, component: &'static str, text: impl AsRef<str>) {
        self.set(component, Severity::NotReady, text.as_ref());
    }

    /// `component` has something to say that does not keep the process from being ready.
    pub fn set_warning(&self, component: &'static str, text: impl AsRef<str>) {
        self.set(component, Severity::Warning, text.as_ref());
    }

    /// `component` is well.
    pub fn clear_reason(&self, component: &'static str) {
        self.lock().reasons.remove(component);
    }

    /// The process moves. Called about once a second by a task of the main runtime.
    pub fn beat(&self) {
        self.lock().beat = Instant::now();
    }

    /// Time since the last [`Health::beat`].
    pub fn silence(&self) -> Duration {
        self.lock().beat.elapsed()
    }

    /// The state now.
    pub fn report(&self) -> Report {
        let state = self.lock();
        let mut reasons: Vec<Reason> = state
            .reasons
            .iter()
            .map(|(component, (severity, text))| Reason {
                component,
                severity: *severity,
                text: text.clone(),
            })
            .collect();
        let blocked = reasons.iter().any(|reason| reason.severity == Severity::NotReady);
        if state.role == Role::Starting && !blocked {
            // Whoever asks why is always told.
            let text = "connecting to PostgreSQL and RabbitMQ".to_owned();
            reasons.push(Reason { component: "starting", severity: Severity::NotReady, text });
        }
        Report { ready: state.role != Role::Starting && !blocked, role: state.role, reasons }
    }

    fn set(&self, component: &'static str, severity: Severity, text: &str) {
        let text = one_line(text);
        self.lock().reasons.insert(component, (severity, text));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and a probe must answer whatever happened.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without line ends, since `/ready` shows one reason a line, and of bounded length.
fn one_line(text: &str) -> String {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_a_role_and_no_reason() {
        let health = Health::new();
        let report = health.report();
        assert_eq!((report.ready, report.reasons[0].component), (false, "starting"));
        health.set_role(Role::Standby);
        assert!(health.report().ready);
        health.set_role(Role::Leader);
        health.set_warning("chunks", "two left");
        assert!(health.report().ready, "a warning is shown only");
        health.set_reason("broker", "amqp://mq: connection refused");
        assert!(!health.report().ready);
        health.set_warning("broker", "slow");
        assert!(health.report().ready, "the later word replaces the earlier");
        health.clear_reason("broker");
        health.clear_reason("broker");
        let report = health.report();
        assert_eq!((report.ready, report.role, report.reasons.len()), (true, Role::Leader, 1));
    }

    #[test]
    fn a_reason_is_one_line() {
        let health = Health::new();
        health.set_reason("postgres", format!("a\nb\r\n\u{1b}[31m{}", "x".repeat(1000)));
        let text = health.report().reasons.remove(0).text;
        assert!(!text.contains(char::is_control));
        assert!(text.starts_with("a b  ") && text.len() == TEXT_MAX);
    }

    #[test]
    fn a_beat_ends_the_silence() {
        let health = Health::new();
        std::thread::sleep(Duration::from_millis(5));
        let before = health.silence();
        assert!(before >= Duration::from_millis(5));
        health.beat();
        assert!(health.silence() < HEARTBEAT_MAX);
    }
}
