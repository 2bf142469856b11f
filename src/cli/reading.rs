//! How events are read now, as the server shows it, and why so.

use std::fmt;

use serde::Serialize;
use tokio_postgres::{Client, Error};

use crate::config::units::about_size;
use crate::config::{Config, Mode};
use crate::source::wal::facts::{StreamState, look, stream_state};
use crate::source::wal::names::application_name;

/// How events are read, and why so.
#[derive(Debug)]
pub(super) struct Reading {
    /// `wal` or `poll`.
    pub(super) mode: &'static str,
    /// In a line.
    pub(super) reason: String,
    /// The stream.
    pub(super) wal: Wal,
}

/// The stream; empty where there is none.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Wal {
    /// It brings events now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) streaming: Option<bool>,
    /// `creating`, `startup`, `catchup`, `streaming`; absent where this login may not see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    /// Not confirmed by the relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lag_bytes: Option<i64>,
    /// Kept by the server for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retained_bytes: Option<i64>,
    /// Above 0: commits wait for it. Absent where this login may not see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sync_priority: Option<i32>,
}

impl From<StreamState> for Wal {
    fn from(stream: StreamState) -> Wal {
        Wal {
            streaming: Some(stream.streams()),
            state: stream.state,
            lag_bytes: stream.lag_bytes,
            retained_bytes: stream.retained_bytes,
            sync_priority: stream.sync_priority,
        }
    }
}

impl fmt::Display for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.state.as_deref().unwrap_or("there (its state needs pg_read_all_stats)"))?;
        let sizes = [(self.lag_bytes, "behind"), (self.retained_bytes, "of WAL kept")];
        for (bytes, what) in sizes {
            if let Some(bytes) = bytes.and_then(|bytes| u64::try_from(bytes).ok()) {
                write!(f, ", {} {what}", about_size(bytes))?;
            }
        }
        match self.sync_priority {
            Some(1..) => f.write_str(", commits wait for it (synchronous_standby_names)"),
            _ => Ok(()),
        }
    }
}

/// Asks the server: the relay may run elsewhere, and with another configuration. `led`: some relay leads.
///
/// # Errors
/// SQL.
pub(super) async fn reading(client: &Client, config: &Config, led: bool) -> Result<Reading, Error> {
    let application = application_name(&config.name);
    let stream = stream_state(client, &application).await?;
    if stream.is_some() || config.source.mode == Mode::Poll {
        return Ok(judge(stream, config.source.mode, None, led));
    }
    let facts = look(client, &config.source.wal.publication, &application).await?;
    let first = facts.obstacles(&application).first().map(ToString::to_string);
    Ok(judge(None, config.source.mode, first, led))
}

fn judge(stream: Option<StreamState>, mode: Mode, obstacle: Option<String>, led: bool) -> Reading {
    let polls = |reason: &str, wal| Reading { mode: "poll", reason: reason.to_owned(), wal };
    let none = Wal::default();
    match (stream.map(Wal::from), obstacle) {
        (Some(wal), _) if wal.streaming == Some(true) => {
            Reading { mode: "wal", reason: "streaming".to_owned(), wal }
        }
        (Some(wal), _) => polls("a stream is being started", wal),
        (None, _) if mode == Mode::Poll => polls("configured", none),
        (None, Some(obstacle)) => polls(&obstacle, none),
        (None, None) if !led => polls("no relay leads", none),
        (None, None) => polls("no stream now: see the leader's log", none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(state: Option<&str>) -> StreamState {
        let state = state.map(str::to_owned);
        StreamState { state, lag_bytes: Some(10), retained_bytes: Some(2048), sync_priority: None }
    }

    #[test]
    fn the_mode_has_a_reason() {
        let says = |stream, mode, obstacle: Option<&str>, led| {
            let reading = judge(stream, mode, obstacle.map(str::to_owned), led);
            (reading.mode, reading.reason)
        };
        assert_eq!(says(None, Mode::Poll, None, true), ("poll", "configured".into()));
        assert_eq!(
            says(Some(stream(Some("streaming"))), Mode::Auto, None, true),
            ("wal", "streaming".into())
        );
        assert_eq!(says(Some(stream(None)), Mode::Wal, None, true).0, "wal", "hidden from this login");
        assert_eq!(says(Some(stream(Some("creating"))), Mode::Auto, None, true).0, "poll");
        assert_eq!(says(None, Mode::Auto, Some("why"), false), ("poll", "why".into()));
        assert_eq!(says(None, Mode::Wal, None, false).1, "no relay leads");
        assert!(says(None, Mode::Auto, None, true).1.contains("the leader's log"));
    }

    #[test]
    fn a_stream_is_one_line() {
        let line = Wal::from(stream(Some("catchup"))).to_string();
        assert_eq!(line, "catchup, 10 B behind, 2.0 KiB of WAL kept");
        let starting = StreamState { lag_bytes: None, sync_priority: Some(1), ..stream(Some("creating")) };
        let line = Wal::from(starting).to_string();
        assert!(line.starts_with("creating, 2.0 KiB of WAL kept, commits wait"), "{line}");
    }
}
