//! What the encoders share: the attributes of one event, and the reason why one cannot be published.

use super::{Event, HeaderValue};

/// Why an event cannot be published, ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Invalid {
    /// What is wrong with it, for a person.
    pub reason: String,
}

impl Invalid {
    pub(super) fn new(reason: String) -> Self {
        Invalid { reason }
    }
}

impl From<std::io::Error> for Invalid {
    fn from(error: std::io::Error) -> Self {
        Invalid::new(format!("cannot be written: {error}"))
    }
}

/// What the two encodings write.
pub(super) struct Attributes<'a> {
    pub(super) event: &'a Event,
    /// CloudEvents `type`: prefix + event type.
    pub(super) kind: &'a str,
    pub(super) time: &'a str,
    pub(super) partition_key: &'a str,
    pub(super) sequence: &'a str,
    pub(super) extensions: &'a [(String, HeaderValue)],
}

impl Attributes<'_> {
    pub(super) fn operation(&self) -> &'static str {
        if self.event.payload.is_some() { "upsert" } else { "delete" }
    }

    /// Attributes that the application may or may not have given.
    pub(super) fn optional(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let event = self.event;
        [
            ("correlationid", event.correlation_id.as_deref()),
            ("causationid", event.causation_id.as_deref()),
            ("traceparent", event.traceparent.as_deref()),
            ("tracestate", event.tracestate.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}
