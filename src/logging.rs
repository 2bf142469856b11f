//! Log lines on standard error, text or JSON, without payloads and secrets.
//!
//! What the configured level lets through is filtered once more, and no configuration turns that off: lapin logs every
//! returned message with its body at WARN, frames at TRACE, and tokio-postgres logs the parameters of statements at DEBUG.

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};

/// Where lapin logs returned messages, bodies included. The sink logs a return itself, once, with the event's id.
const RETURNS: &str = "lapin::returned_messages";

/// Logs from now on as `config` says; colours only on a terminal.
///
/// # Errors
/// Logging was set up already.
pub fn init(config: &Log) -> Result<(), TryInitError> {
    subscriber(config, std::io::stderr, std::io::stderr().is_terminal()).try_init()
}

fn subscriber<W>(config: &Log, writer: W, ansi: bool) -> impl Subscriber + Send + Sync + 'static
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The configuration has checked the level; should it not parse, what parses of it counts.
    let level = EnvFilter::builder().parse_lossy(&config.level);
    // lapin reports each closed channel itself, in its own words; the sink says it once, with what to do.
    let lapin = config.level.contains("lapin");
    let filter = level.and(filter_fn(move |metadata| allowed(metadata, lapin)));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Registry::default().with(lines.with_filter(filter))
}

/// Debug and trace only of Statecast itself: those of the libraries may hold payloads and passwords. Lines of lapin only
/// where the configuration names it.
fn allowed(metadata: &Metadata<'_>, lapin: bool) -> bool {
    let target = metadata.target();
    let own = target == "statecast" || target.starts_with("statecast::");
    let wanted = (lapin || !target.starts_with("lapin")) && !target.starts_with(RETURNS);
    own || (*metadata.level() <= Level::INFO && wanted)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log(format: LogFormat, level: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = Log { format, level: level.into() };
        tracing::subscriber::with_default(subscriber(&config, move || writer.clone(), false), || {
            tracing::info!(event_id = 7, "hello");
            tracing::debug!("own debug");
            tracing::warn!(target: "lapin::returned_messages", message = "PAYLOAD");
            tracing::trace!(target: "lapin::channels", "PAYLOAD");
            tracing::debug!(target: "tokio_postgres::query", "PAYLOAD");
            tracing::error!(target: "lapin::io_loop", "broken pipe");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn payloads_never_get_through() {
        for level in ["info", "trace", "info,lapin=trace,lapin::returned_messages=trace,tokio_postgres=debug"]
        {
            let text = log(LogFormat::Text, level);
            assert!(!text.contains("PAYLOAD"), "{text}");
            assert!(text.contains("hello event_id=7"), "{text}");
            assert_eq!(text.contains("broken pipe"), level.contains("lapin"), "{text}");
            assert_eq!(text.contains("own debug"), level == "trace", "{text}");
            assert!(!text.contains('\u{1b}'), "no colours");
        }
        assert_eq!(log(LogFormat::Text, "off"), "");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = log(LogFormat::Json, "info");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["message"], "hello");
        assert_eq!(first["event_id"], 7);
        assert_eq!(first["level"], "INFO");
    }

    #[test]
    fn the_target_is_still_where_lapin_logs_returns() {
        // The module of lapin 4 that logs them; a new major version needs a new look.
        assert!(include_str!("../Cargo.toml").contains("lapin = { version = \"4\""));
    }
}
