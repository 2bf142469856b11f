//! Routing key templates: `{aggregate_type}.{event_type}`.
//!
//! `{{` and `}}` stand for the braces themselves. A template whose longest rendering could pass 255 bytes, the limit of
//! an AMQP short string (AMQP 0-9-1 specification, §4.2.5.3), is refused: an event must never fail for its length.

use std::fmt;

/// Bytes of an AMQP short string, at most.
pub const SHORT_STRING_MAX: usize = 255;
/// Bytes of an aggregate type, at most: the table's check.
pub const AGGREGATE_TYPE_MAX: usize = 64;
/// Bytes of an aggregate id, at most: the table's check.
pub const AGGREGATE_ID_MAX: usize = 200;
/// Bytes of an event type, at most: the table's check.
pub const EVENT_TYPE_MAX: usize = 128;

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

/// Why a template is refused. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{` without its `}`.
    #[error("`{{` at position {0} is not closed; write `{{{{` for the character itself")]
    Open(usize),
    /// `}` without its `{`.
    #[error("`}}` at position {0} closes nothing; write `}}}}` for the character itself")]
    Close(usize),
    /// Not one of the three names.
    #[error(
        "no placeholder `{{{name}}}` (position {position}); there are {{aggregate_type}}, {{aggregate_id}} and {{event_type}}"
    )]
    Unknown {
        /// What stands between the braces.
        name: String,
        /// Of the opening brace.
        position: usize,
    },
    /// A character that no routing key should hold.
    #[error("control character at position {0}")]
    Control(usize),
    /// The longest rendering is over the limit.
    #[error(
        "can render to {0} bytes (aggregate_type up to 64, aggregate_id 200, event_type 128), and a routing key holds 255"
    )]
    Long(usize),
}

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// Syntax, with its position, or a rendering that could be too long.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let chars: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(&char) = chars.get(at) {
            let doubled = chars.get(at + 1) == Some(&char);
            match char {
                '{' | '}' if doubled => {
                    literal.push(char);
                    at += 2;
                }
                '}' => return Err(TemplateError::Close(at + 1)),
                '{' => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    let name: String = chars[at + 1..].iter().take_while(|c| **c != '}').collect();
                    let end = at + 1 + name.chars().count();
                    if end == chars.len() || name.contains('{') {
                        return Err(TemplateError::Open(at + 1));
                    }
                    parts.push(Part::named(&name).ok_or(TemplateError::Unknown { name, position: at + 1 })?);
                    at = end + 1;
                }
                c if c.is_control() => return Err(TemplateError::Control(at + 1)),
                c => {
                    literal.push(c);
                    at += 1;
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        let template = Template { parts };
        match template.longest() {
            length if length > SHORT_STRING_MAX => Err(TemplateError::Long(length)),
            _ => Ok(template),
        }
    }

    /// Bytes of the longest key this template can render.
    pub fn longest(&self) -> usize {
        let longest = |part: &Part| match part {
            Part::Literal(text) => text.len(),
            Part::AggregateType => AGGREGATE_TYPE_MAX,
            Part::AggregateId => AGGREGATE_ID_MAX,
            Part::EventType => EVENT_TYPE_MAX,
        };
        self.parts.iter().map(longest).sum()
    }
}

impl Part {
    fn named(name: &str) -> Option<Part> {
        match name {
            "aggregate_type" => Some(Part::AggregateType),
            "aggregate_id" => Some(Part::AggregateId),
            "event_type" => Some(Part::EventType),
            _ => None,
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Part::AggregateType => f.write_str("{aggregate_type}"),
            Part::AggregateId => f.write_str("{aggregate_id}"),
            Part::EventType => f.write_str("{event_type}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_what_it_shows() {
        for text in
            ["{aggregate_type}.{event_type}", "fixed", "", "a.{aggregate_id}.z", "{{{event_type}}}", "ü.{{}}"]
        {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.to_string(), text);
        }
        assert_eq!(
            Template::parse("{{{event_type}}}").unwrap().parts,
            [Part::Literal("{".into()), Part::EventType, Part::Literal("}".into())]
        );
    }

    #[test]
    fn mistakes_have_a_position() {
        for (text, error) in [
            ("ab{event_type", TemplateError::Open(3)),
            ("{", TemplateError::Open(1)),
            ("{a{event_type}", TemplateError::Open(1)),
            ("ab}c", TemplateError::Close(3)),
            ("ü.{type}", TemplateError::Unknown { name: "type".into(), position: 3 }),
            ("{}", TemplateError::Unknown { name: String::new(), position: 1 }),
            ("a\nb", TemplateError::Control(2)),
        ] {
            assert_eq!(Template::parse(text), Err(error), "{text}");
        }
        let message = Template::parse("{type}").unwrap_err().to_string();
        assert_eq!(
            message,
            "no placeholder `{type}` (position 1); there are {aggregate_type}, {aggregate_id} and {event_type}"
        );
        assert!(
            Template::parse("{")
                .unwrap_err()
                .to_string()
                .starts_with("`{` at position 1 is not closed; write `{{`")
        );
    }

    #[test]
    fn the_longest_key_fits() {
        assert_eq!(Template::parse("{aggregate_type}.{event_type}").unwrap().longest(), 193);
        assert_eq!(Template::parse("{aggregate_type}.{aggregate_id}"), Err(TemplateError::Long(265)));
        assert!(Template::parse(&"x".repeat(255)).is_ok());
        assert_eq!(Template::parse(&"ü".repeat(128)), Err(TemplateError::Long(256)));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,60}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(&template.to_string()), Ok(template));
            }
        }
    }
}
