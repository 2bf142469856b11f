//! The one place where text becomes HTML.
//!
//! Markup is `&'static str`: only the program's own. Everything else goes through [`Html::text`], which is right for both
//! content and quoted attribute values, so there is no choice to get wrong.

use std::fmt::{Display, Write as _};

/// A document in the making.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// The program's own markup.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Anything else, as text: content, or the value of an attribute in double quotes.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Html {
        // Writing to a String cannot fail; a Display that does leaves out what is its own.
        let _ = write!(Escaping(&mut self.0), "{text}");
        self
    }

    /// An attribute with a leading space.
    pub(super) fn attr(&mut self, name: &'static str, value: impl Display) -> &mut Html {
        self.raw(" ").raw(name).raw("=\"").text(value).raw("\"")
    }

    /// The document.
    pub(super) fn finish(self) -> String {
        self.0
    }

    /// Takes over what another one holds.
    pub(super) fn append(&mut self, other: &Html) -> &mut Html {
        self.0.push_str(&other.0);
        self
    }
}

struct Escaping<'a>(&'a mut String);

impl std::fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                c if c.is_control() || turns_text(c) => write!(self.0, "\\u{{{:x}}}", u32::from(c))?,
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Characters that change the direction of what follows, or that nobody sees: text could show as other than it is.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A value of a query, percent-encoded.
pub(super) struct Encoded<'a>(pub(super) &'a str);

impl Display for Encoded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    f.write_char(char::from(byte))?;
                }
                byte => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut html = Html::default();
        html.text(text);
        html.finish()
    }

    #[test]
    fn what_others_wrote_stays_text() {
        for (text, expected) in [
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("\"><img src=x onerror=alert(1)>", "&quot;&gt;&lt;img src=x onerror=alert(1)&gt;"),
            ("' onfocus='alert(1)", "&#39; onfocus=&#39;alert(1)"),
            ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
            ("a\u{202e}b\u{0}c\u{9b}", "a\\u{202e}b\\u{0}c\\u{9b}"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        let mut html = Html::default();
        html.raw("<a").attr("title", "\"x\" <y>").raw(">");
        assert_eq!(html.finish(), "<a title=\"&quot;x&quot; &lt;y&gt;\">");
    }

    #[test]
    fn links_hold_what_they_mean() {
        assert_eq!(Encoded("order:a&b=ü/\"").to_string(), "order%3Aa%26b%3D%C3%BC%2F%22");
    }

    proptest! {
        #[test]
        fn no_text_makes_markup(text in any::<String>()) {
            let html = escaped(&text);
            prop_assert!(!html.contains(['<', '>', '"', '\'']), "{}", html);
        }
    }
}
