//! `application/x-www-form-urlencoded`: queries and bodies, as pairs. Total: whatever the bytes, there are pairs.

/// Pairs that are read; the rest is left out.
const PAIRS_MAX: usize = 128;

/// What a query or a form said, decoded.
#[derive(Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(text: &str) -> Form {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(PAIRS_MAX);
        Form(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of `name`, trimmed; empty ones are none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.trim());
        values.find(|value| !value.is_empty())
    }

    /// The first value of `name` that is not empty, as it came.
    pub(super) fn untrimmed(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        values.find(|value| !value.is_empty())
    }

    /// Every value of `name`, trimmed; empty ones are none.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.0.iter().filter(move |(key, _)| key == name);
        values.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => match after.split_at_checked(2).and_then(|(hex, rest)| Some((hex_byte(hex)?, rest))) {
                Some((decoded, after)) => {
                    bytes.push(decoded);
                    rest = after;
                }
                None => bytes.push(b'%'),
            },
            byte => bytes.push(byte),
        }
    }
    // PostgreSQL has no NUL in text.
    String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}")
}

fn hex_byte(hex: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let &[high, low] = hex else { return None };
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::html::Encoded;
    use super::*;

    #[test]
    fn pairs() {
        let form = Form::parse("q=order%3A4711&x=a+b&x=&x=%zz%4&&id=1&y");
        assert_eq!(form.get("q"), Some("order:4711"));
        assert_eq!(form.all("x").collect::<Vec<_>>(), ["a b", "%zz%4"]);
        assert_eq!((form.get("id"), form.get("y"), form.get("none")), (Some("1"), None, None));
        assert_eq!(Form::parse("a=%00%ff").get("a"), Some("\u{fffd}\u{fffd}"));
        assert_eq!(Form::parse(&"a=1&".repeat(1000)).0.len(), PAIRS_MAX);
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(text in "[^\0]{0,40}") {
            let form = Form::parse(&format!("q={}", Encoded(&text)));
            prop_assert_eq!(form.get("q").unwrap_or_default(), text.trim());
            prop_assert_eq!(form.untrimmed("q").unwrap_or_default(), text.as_str());
        }

        #[test]
        fn any_text_is_read(text in any::<String>()) {
            Form::parse(&text);
        }
    }
}
