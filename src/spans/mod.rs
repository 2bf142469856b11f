//! Spans of events for OpenTelemetry: how long an event was in the outbox, and its publish, in the trace of whoever wrote it.
//!
//! ```text
//! relay ──Outcome──▶ record ──try_send──▶ queue ──▶ export (own thread) ──▶ shape ──▶ client ──OTLP/HTTP──▶ collector
//! ```
//!
//! The relay's loop looks at an outcome's `traceparent` (`context`), copies what a span says of it (`record`) and leaves it in
//! a queue that holds 8,192 events. It never waits: with the queue full the record is dropped and counted. All else happens
//! in a thread of its own with its own runtime: gathering, encoding, sending, retrying. Whatever the collector does, the relay
//! publishes the same bytes at the same pace.
//!
//! Without the feature `otel` only [`Spans`] is here, and does nothing.

#[cfg(feature = "otel")]
mod client;
#[cfg(feature = "otel")]
mod context;
#[cfg(feature = "otel")]
mod export;
#[cfg(feature = "otel")]
mod otlp;
#[cfg(feature = "otel")]
mod record;
#[cfg(feature = "otel")]
mod shape;

#[cfg(feature = "otel")]
pub use export::{Exporter, start};
#[cfg(feature = "otel")]
pub use record::Spans;

#[cfg(not(feature = "otel"))]
pub use without::{Exporter, Spans, start};

#[cfg(not(feature = "otel"))]
mod without {
    use prometheus::IntCounter;
    use tokio_util::sync::CancellationToken;

    use crate::config::Config;
    use crate::contract::Outcome;

    /// Where the relay leaves what spans are made of: nowhere.
    #[derive(Debug)]
    pub struct Spans;

    impl Spans {
        /// Nothing is traced.
        pub fn new(_: &IntCounter) -> Spans {
            Spans
        }

        /// Nothing is traced.
        pub fn note(&self, _: &Outcome, _: i64) {}
    }

    /// There is none.
    #[derive(Debug)]
    pub enum Exporter {}

    impl Exporter {
        /// There is none.
        pub fn join(self) {
            match self {}
        }
    }

    /// Nothing is exported.
    pub fn start(_: &Config, _: &Spans, _: &IntCounter, _: CancellationToken) -> Option<Exporter> {
        None
    }
}
