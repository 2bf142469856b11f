//! Text of others made safe for a terminal. Names on the servers and answers of relays are anybody's: nothing of them may move
//! the cursor, hide, or turn the direction of what stands beside it.

/// One line: a space for every character that is not [`harmless`].
pub(super) fn plain(text: &str) -> String {
    text.chars().map(harmless).collect()
}

/// `c`, or a space for a control character, a line break, a mark that turns the direction of text, and what nobody sees.
pub(super) fn harmless(c: char) -> char {
    match c {
        '\u{61c}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_a_space() {
        assert_eq!(plain("a\u{1b}[31m\u{9b}2J\u{202e}b\r\n\u{2028}\u{2066}\u{feff}c"), "a [31m 2J b     c");
        assert_eq!(plain("order „ä€“ → 😀 é"), "order „ä€“ → 😀 é");
    }
}
