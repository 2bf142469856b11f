//! The extension attributes of an event: its `headers` document, read into checked names and scalar values.
//!
//! The table's CHECK has refused at write time what cannot be carried; this is the second look, so that a row that came
//! past it (a superuser, an older schema) is reported and neither published wrongly nor able to overwrite an attribute.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::HeaderValue;
use super::attributes::Invalid;

/// Bytes of a `headers` document, at most.
pub const HEADERS_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a name, at most (CloudEvents 1.0 recommends 20).
pub const NAME_BYTES_MAX: usize = 20;

/// Names that Statecast or CloudEvents gives a meaning, as in the table's CHECK. (`data_base64` itself cannot be written:
/// it has an underscore.)
pub const RESERVED: [&str; 20] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "database64",
    "partitionkey",
    "sequence",
    "aggregatetype",
    "operation",
    "schemaversion",
    "entityversion",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
];

/// Reads a document into entries, sorted by name. Of a name given twice the last value counts, as in `jsonb`.
///
/// Strings and booleans stay as they are, integers within 32 bits become integers, other numbers text with the digits as
/// they were written (CloudEvents knows only 32-bit integers), nulls are left out.
///
/// # Errors
/// Not a flat JSON object, over the size limit, a name that is reserved or not `[a-z0-9]{1,20}`.
pub fn parse(document: &[u8]) -> Result<Vec<(String, HeaderValue)>, Invalid> {
    if document.len() > HEADERS_BYTES_MAX {
        return Err(Invalid::new(format!(
            "headers have {} bytes, at most {HEADERS_BYTES_MAX} are allowed",
            document.len()
        )));
    }
    let mut reader = serde_json::Deserializer::from_slice(document);
    let mut entries = reader.deserialize_map(Entries).map_err(|e| not_flat(&e))?;
    reader.end().map_err(|e| not_flat(&e))?;
    // Stable sort, reversed: the last of a name comes first, and dedup keeps the first.
    entries.reverse();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let mut checked = Vec::with_capacity(entries.len());
    for (name, raw) in entries {
        check_name(&name)?;
        if let Some(value) = scalar(&name, raw.get())? {
            checked.push((name, value));
        }
    }
    Ok(checked)
}

fn not_flat(error: &serde_json::Error) -> Invalid {
    Invalid::new(format!("headers are not a flat JSON object: {error}"))
}

fn check_name(name: &str) -> Result<(), Invalid> {
    let short: String = name.chars().take(40).collect();
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !fits {
        return Err(Invalid::new(format!("header name {short:?} is not [a-z0-9]{{1,{NAME_BYTES_MAX}}}")));
    }
    if RESERVED.contains(&name) {
        return Err(Invalid::new(format!("header name {short:?} is reserved")));
    }
    Ok(())
}

/// The value of one entry; `None` for null. `raw` is one JSON value without white space around it.
fn scalar(name: &str, raw: &str) -> Result<Option<HeaderValue>, Invalid> {
    let value = match raw.as_bytes().first() {
        Some(b'n') => return Ok(None),
        Some(b't') => HeaderValue::Bool(true),
        Some(b'f') => HeaderValue::Bool(false),
        Some(b'"') => HeaderValue::Text(
            serde_json::from_str::<String>(raw)
                .map_err(|e| Invalid::new(format!("header {name:?} is not text: {e}")))?
                .into(),
        ),
        Some(b'-' | b'0'..=b'9') => match raw.parse::<i32>() {
            // -0 is no integer that AMQP could carry: it stays as it was written.
            Ok(number) if raw != "-0" => HeaderValue::Int(number),
            _ => HeaderValue::Text(raw.into()),
        },
        _ => {
            return Err(Invalid::new(format!("header {name:?} is not a string, number, boolean or null")));
        }
    };
    Ok(Some(value))
}

/// Collects the entries with their values unread: numbers keep their digits.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> HeaderValue {
        HeaderValue::Text(text.into())
    }

    #[test]
    fn numbers_keep_their_digits() {
        let entries = parse(
            br#" { "a": 12345678901234567890123, "b": 1.10, "c": 2147483647, "d": 2147483648, "e": -2147483648,
                   "f": 1e3, "g": -0, "h": 1.0 } "#,
        )
        .unwrap();
        let expected = [
            ("a", text("12345678901234567890123")),
            ("b", text("1.10")),
            ("c", HeaderValue::Int(i32::MAX)),
            ("d", text("2147483648")),
            ("e", HeaderValue::Int(i32::MIN)),
            ("f", text("1e3")),
            ("g", text("-0")),
            ("h", text("1.0")),
        ];
        assert_eq!(entries, expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn other_scalars_stay_as_they_are() {
        let entries = parse(r#"{"s":"a\"\u00e9\n","t":true,"f":false,"n":null,"e":""}"#.as_bytes()).unwrap();
        let expected = [
            ("e", text("")),
            ("f", HeaderValue::Bool(false)),
            ("s", text("a\"é\n")),
            ("t", HeaderValue::Bool(true)),
        ];
        assert_eq!(entries, expected.map(|(name, value)| (name.to_owned(), value)));
        assert!(parse(b"{}").unwrap().is_empty());
    }

    #[test]
    fn the_last_of_a_name_counts() {
        let entries = parse(br#"{"b":1,"a":1,"b":2,"a":null,"b":3}"#).unwrap();
        assert_eq!(entries, [("b".to_owned(), HeaderValue::Int(3))]);
    }

    #[test]
    fn refuses_what_cannot_be_carried() {
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(HEADERS_BYTES_MAX));
        let deep = format!(r#"{{"a":{}}}"#, "[".repeat(10_000));
        let cases = [
            "",
            "null",
            "[]",
            "1",
            "{",
            r#"{"a":1}x"#,
            r#"{"a":}"#,
            r#"{"a":[]}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"A":1}"#,
            r#"{"a_b":1}"#,
            r#"{"":1}"#,
            r#"{"abcdefghijklmnopqrstu":1}"#,
            r#"{"id":"x"}"#,
            r#"{"data":1}"#,
            r#"{"tracestate":"x"}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":01}"#,
            r#"{"a":1,}"#,
            &long,
            &deep,
        ];
        for case in cases {
            assert!(parse(case.as_bytes()).is_err(), "{}", &case[..case.len().min(60)]);
        }
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn reasons_say_which() {
        let reason = |document: &str| parse(document.as_bytes()).unwrap_err().reason;
        assert_eq!(reason(r#"{"id":"x"}"#), r#"header name "id" is reserved"#);
        assert_eq!(reason(r#"{"a":[1]}"#), r#"header "a" is not a string, number, boolean or null"#);
        assert!(reason("[1]").starts_with("headers are not a flat JSON object"), "{}", reason("[1]"));
    }

    proptest! {
        #[test]
        fn never_panics(document in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&document);
        }

        #[test]
        fn near_misses_never_panic(document in r#"[{}\[\]":,a-c0-9eE.+ tfn\\u-]{0,40}"#) {
            let _ = parse(document.as_bytes());
        }

        #[test]
        fn names_and_text_survive(entries in prop::collection::btree_map("x[a-z0-9]{0,19}", "(?s).{0,30}", 0..12)) {
            let document = serde_json::to_vec(&entries).unwrap();
            let expected: Vec<_> = entries.iter().map(|(name, value)| (name.clone(), text(value))).collect();
            prop_assert_eq!(parse(&document).unwrap(), expected);
        }
    }
}
