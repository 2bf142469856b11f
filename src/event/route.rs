//! Renders the routing key. What it may contain is decided by the configuration; here only its length can be wrong.

use super::attributes::Invalid;
use super::{Event, Text};
use crate::config::Template;
use crate::config::template::Part;

/// Bytes of an AMQP short string, at most (AMQP 0-9-1, section 4.2.5.3). Routing key, `type` and `correlation_id` are
/// short strings.
pub const SHORT_STRING_BYTES_MAX: usize = 255;

/// The routing key of `event`.
///
/// # Errors
/// It is longer than AMQP allows.
pub fn routing_key(template: &Template, event: &Event) -> Result<Text, Invalid> {
    let bytes = template.parts.iter().map(|part| text(part, event).len()).sum();
    if bytes > SHORT_STRING_BYTES_MAX {
        return Err(Invalid::new(format!(
            "the routing key would have {bytes} bytes, AMQP allows {SHORT_STRING_BYTES_MAX}"
        )));
    }
    let mut key = Text::with_capacity(bytes);
    for part in &template.parts {
        key.push_str(text(part, event));
    }
    Ok(key)
}

fn text<'a>(part: &'a Part, event: &'a Event) -> &'a str {
    match part {
        Part::Literal(text) => text,
        Part::AggregateType => &event.aggregate_type,
        Part::AggregateId => &event.aggregate_id,
        Part::EventType => &event.event_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::assemble::tests::event;

    fn template(parts: Vec<Part>) -> Template {
        Template { parts }
    }

    #[test]
    fn renders_every_part() {
        let parts = vec![
            Part::Literal("shop.".into()),
            Part::AggregateType,
            Part::Literal(".".into()),
            Part::AggregateId,
            Part::Literal(".".into()),
            Part::EventType,
        ];
        assert_eq!(routing_key(&template(parts), &event()).unwrap(), "shop.order.4711.order.placed");
        assert_eq!(routing_key(&template(vec![]), &event()).unwrap(), "");
    }

    #[test]
    fn refuses_what_amqp_cannot_carry() {
        let mut event = event();
        let template = template(vec![Part::AggregateId]);
        event.aggregate_id = "x".repeat(255).into();
        assert_eq!(routing_key(&template, &event).unwrap().len(), 255);
        event.aggregate_id.push('x');
        let reason = routing_key(&template, &event).unwrap_err().reason;
        assert!(reason.contains("256") && reason.contains("255"), "{reason}");
    }
}
