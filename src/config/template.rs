//! Routing key templates: `{aggregate_type}.{event_type}`.

/// A parsed routing key template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Parts in order.
    pub parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text as it stands.
    Literal(String),
    /// `{aggregate_type}`.
    AggregateType,
    /// `{aggregate_id}`.
    AggregateId,
    /// `{event_type}`.
    EventType,
}
