//! Would `synchronous_standby_names` make a walsender of ours a synchronous standby? Then the application's commits
//! would wait for Statecast, so that stream must not start. Pure.
//!
//! The rules are the server's (`syncrep_scanner.l`, `syncrep_gram.y`, `SyncRepGetStandbyPriority`), and
//! <https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES>: a list of
//! names, or `n (…)`, `FIRST n (…)`, `ANY n (…)` around one.

/// One word of the setting.
#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Any,
    First,
    /// A name as the server keeps it: its quotes gone, doubled ones halved.
    Name(std::borrow::Cow<'a, str>),
    /// Digits: a count, or a name.
    Number(&'a str),
    Comma,
    Open,
    Close,
}

/// May a walsender of this `application_name` be counted for synchronous replication? What cannot be parsed counts as yes.
pub fn is_candidate(setting: &str, application_name: &str) -> bool {
    if setting.is_empty() {
        return false;
    }
    // The server compares by pg_strcasecmp, and makes every application_name ASCII.
    let matches = |name: &str| name == "*" || name.eq_ignore_ascii_case(application_name);
    let tokens = tokens(setting);
    let names = tokens.as_deref().and_then(members);
    names.is_none_or(|names| names.into_iter().any(matches))
}

/// The names of a setting; `None` where the grammar does not fit.
fn members<'a>(tokens: &'a [Token<'a>]) -> Option<Vec<&'a str>> {
    match tokens {
        [Token::Any | Token::First, Token::Number(_), Token::Open, list @ .., Token::Close]
        | [Token::Number(_), Token::Open, list @ .., Token::Close] => list_of_names(list),
        list => list_of_names(list),
    }
}

fn list_of_names<'a>(tokens: &'a [Token<'a>]) -> Option<Vec<&'a str>> {
    let name = |item: &'a [Token<'a>]| match item {
        [Token::Name(name)] => Some(name.as_ref()),
        [Token::Number(digits)] => Some(*digits),
        _ => None,
    };
    tokens.split(|token| *token == Token::Comma).map(name).collect()
}

/// The words of a setting; `None` where the scanner does not know a character.
fn tokens(setting: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = setting;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => (None, 1),
            ',' => (Some(Token::Comma), 1),
            '(' => (Some(Token::Open), 1),
            ')' => (Some(Token::Close), 1),
            '*' => (Some(Token::Name("*".into())), 1),
            '"' => {
                let length = quoted(rest)?;
                let inner = rest.get(1..length - 1)?.replace("\"\"", "\"");
                (Some(Token::Name(inner.into())), length)
            }
            '0'..='9' => {
                let length = run(rest, |c| c.is_ascii_digit());
                (Some(Token::Number(rest.get(..length)?)), length)
            }
            c if begins_identifier(c) => {
                let length = run(rest, |c| begins_identifier(c) || c.is_ascii_digit() || c == '$');
                (Some(word(rest.get(..length)?)), length)
            }
            _ => return None,
        };
        tokens.extend(token);
        rest = rest.get(length..)?;
    }
    Some(tokens)
}

/// Every byte above 127 is a letter to the scanner.
fn begins_identifier(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn word(text: &str) -> Token<'_> {
    match text {
        _ if text.eq_ignore_ascii_case("any") => Token::Any,
        _ if text.eq_ignore_ascii_case("first") => Token::First,
        _ => Token::Name(text.into()),
    }
}

/// Bytes at the beginning of `text` that belong together.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Bytes of the quoted name that `text` begins with, its quotes included.
fn quoted(text: &str) -> Option<usize> {
    let mut quotes = text.match_indices('"').map(|(at, _)| at).skip(1).peekable();
    while let Some(at) = quotes.next() {
        // A doubled quote stands for one; any other ends the name.
        if quotes.next_if_eq(&(at + 1)).is_none() {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const US: &str = "statecast orders stream";

    #[test]
    fn lists_and_counts() {
        for setting in [
            "*",
            "\"*\"",
            "ANY 1 (*)",
            "any 1(*)",
            "FIRST 2 (a, *)",
            "1 (a, \"statecast orders stream\")",
            "\"Statecast Orders STREAM\"",
            "a,\t\"statecast orders stream\" , b",
            "ANY 2 (a, b,\n\"statecast orders stream\")",
        ] {
            assert!(is_candidate(setting, US), "{setting}");
        }
        for setting in [
            "",
            "a",
            "standby1, standby2",
            "FIRST 1 (s1, s2)",
            "Any 2 (s1, \"s 2\", 3)",
            "2 (s1, 2)",
            "\"\"",
            "\"statecast orders\"",
            "\"statecast \"\"orders\"\" stream\"",
            "anybody, first1, \"any\", \"first\"",
            "größe, _x, a$1",
        ] {
            assert!(!is_candidate(setting, US), "{setting}");
        }
    }

    #[test]
    fn quotes_are_halved_and_numbers_are_names() {
        assert!(is_candidate("\"a\"\"b\"", "a\"B"));
        assert!(is_candidate("\"\"\"\"", "\""));
        assert!(is_candidate("42, x", "42"));
        assert!(is_candidate("FIRST 1 (42)", "42") && !is_candidate("FIRST 1 (42)", "1"));
    }

    #[test]
    fn in_doubt_it_is_yes() {
        for setting in [
            " ",
            ",",
            "a,",
            "a b",
            "any",
            "first",
            "FIRST (a)",
            "FIRST 1 a",
            "1 (a",
            "1 ()",
            "a)",
            "1a",
            "\"open",
            "a-b",
            "ANY 1 (any)",
            "1 (a) b",
            ";",
            "\0",
        ] {
            assert!(is_candidate(setting, US), "{setting:?}");
        }
    }

    fn quote(name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    proptest! {
        #[test]
        fn never_panics(setting in "\\PC*|[\"a*,() 1anyfirst\\$é]*", name in "\\PC*") {
            is_candidate(&setting, &name);
        }

        #[test]
        fn finds_exactly_the_names_of_the_list(
            names in prop::collection::vec("[ -~é]{0,12}", 1..5),
            name in "[ -~]{0,12}",
            form in 0..4,
        ) {
            let list = names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
            let setting = match form {
                0 => list,
                1 => format!("1 ({list})"),
                2 => format!("FIRST 2 ({list})"),
                _ => format!("aNy 3( {list} )"),
            };
            let listed = names.iter().any(|n| n == "*" || n.eq_ignore_ascii_case(&name));
            prop_assert_eq!(is_candidate(&setting, &name), listed);
            let with_ours = format!("{}, {}", quote(&name), quote("x"));
            prop_assert!(is_candidate(&with_ours, &name));
        }
    }
}
