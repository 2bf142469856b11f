//! The keys that exist, and the values as they were given.
//!
//! [`KEYS`] is the one table of keys: defaults, ranges and meanings are read from it by the validation, by the error
//! messages and by the reference in `docs/configuration.md`. [`Raw`] holds what file and environment say, with the place
//! each value came from; nothing is judged here but the names.

use std::collections::BTreeMap;
use std::fmt;

use config::ValueKind;

use super::keys::{KEYS, Key, Kind};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A configuration file, by the name it was opened with.
    File(String),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(name) | Origin::Variable(name) => f.write_str(name),
        }
    }
}

/// A value as it was given.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) value: ValueKind,
    pub(super) origin: Origin,
}

/// What file and environment say.
#[derive(Debug, Default)]
pub(super) struct Raw {
    values: BTreeMap<&'static str, Given>,
    /// Set variables without `__` that spell a key, which is easily mistaken for the right form.
    pub(super) ignored: Vec<String>,
}

impl Raw {
    /// The value of `path`, if it was given.
    pub(super) fn get(&self, path: &str) -> Option<&Given> {
        self.values.get(path)
    }

    /// Takes over a table from a file. Reports every key that does not exist.
    pub(super) fn add_file(
        &mut self,
        name: &str,
        table: config::Map<String, config::Value>,
        errors: &mut Vec<String>,
    ) {
        let root = config::Value::new(None, ValueKind::Table(table));
        self.add_table("", root, &Origin::File(name.to_owned()), errors);
    }

    fn add_table(&mut self, path: &str, value: config::Value, origin: &Origin, errors: &mut Vec<String>) {
        if let Some(key) = key(path) {
            // An empty YAML value (`url:`) is a key that was left out.
            match value.kind {
                ValueKind::Nil => {}
                ValueKind::Table(_) => {
                    errors.push(format!("`{path}` ({origin}): takes {}, not a table", key.kind));
                }
                value => {
                    self.values.insert(key.path, Given { value, origin: origin.clone() });
                }
            }
            return;
        }
        match value.kind {
            ValueKind::Table(table) if path.is_empty() || is_section(path) => {
                let sorted: BTreeMap<String, config::Value> = table.into_iter().collect();
                for (name, value) in sorted {
                    let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                    self.add_table(&path, value, origin, errors);
                }
            }
            ValueKind::Nil if is_section(path) => {}
            _ if is_section(path) => {
                errors.push(format!("`{path}` ({origin}): is a table of keys: {}", keys_of(path)));
            }
            _ => errors.push(format!(
                "`{}` ({origin}): no such key{}",
                printable(path),
                suggestion(path, |key| key.into())
            )),
        }
    }

    /// Takes over a variable. Reports a key that does not exist.
    pub(super) fn add_variable(
        &mut self,
        variable: &str,
        path: &str,
        value: ValueKind,
        errors: &mut Vec<String>,
    ) {
        match key(path) {
            Some(key) => {
                let origin = Origin::Variable(variable.to_owned());
                self.values.insert(key.path, Given { value, origin });
            }
            None => errors.push(format!(
                "`{}`: no such key{}",
                printable(variable),
                suggestion(path, variable_of)
            )),
        }
    }
}

/// The key at `path`.
pub(super) fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The variable that sets `path`.
pub(super) fn variable_of(path: &str) -> String {
    format!("STATECAST_{}", path.to_uppercase().replace('.', "__"))
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

fn keys_of(section: &str) -> String {
    let names: Vec<&str> =
        KEYS.iter().filter_map(|key| key.path.strip_prefix(section)?.strip_prefix('.')).collect();
    names.join(", ")
}

/// `; did you mean …?`, or nothing when no key is close.
fn suggestion(path: &str, show: impl Fn(&str) -> String) -> String {
    let names = KEYS.iter().map(|key| key.path);
    match closest(path, names).or_else(|| same_leaf(path)) {
        Some(near) => format!("; did you mean `{}`?", show(near)),
        None => String::new(),
    }
}

/// A key whose last word is that of `path`: the right name in the wrong section.
fn same_leaf(path: &str) -> Option<&'static str> {
    let leaf = path.rsplit('.').next()?;
    let mut same = KEYS.iter().map(|key| key.path).filter(|path| path.rsplit('.').next() == Some(leaf));
    same.next().filter(|_| same.next().is_none())
}

/// The name nearest to `wrong`, unless even that one is far.
pub(super) fn closest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 4).clamp(1, 4);
    let (distance, name) = names.map(|name| (distance(wrong, name), name)).min()?;
    (distance <= limit).then_some(name)
}

/// Levenshtein distance, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // Names are short; a long one is no misspelling.
    for (i, x) in a.chars().take(100).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// One line, of bounded length, without control characters.
pub(super) fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use super::units::{show_duration, show_size};
        match self {
            Kind::Number(min, max) => write!(f, "a whole number from {min} to {max}"),
            Kind::Duration(min, max) => {
                write!(f, "a duration from {} to {}", show_duration(*min), show_duration(*max))
            }
            Kind::Size(min, max) => write!(f, "a size from {} to {}", show_size(*min), show_size(*max)),
            Kind::Ratio => f.write_str("a fraction from 0 to 1, such as 0.01"),
            Kind::Bool => f.write_str("true or false"),
            Kind::Choice(names) => f.write_str(&names.join(", ")),
            Kind::Text(what) | Kind::Secret(what) | Kind::Secrets(what) => f.write_str(what),
            Kind::File => f.write_str("the path of a readable file"),
            Kind::Queues => f.write_str("tables with name, bindings, type, arguments"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = || KEYS.iter().map(|key| key.path);
        assert_eq!(closest("rabbitmq.exchang", names()), Some("rabbitmq.exchange"));
        assert_eq!(closest("postgers.url", names()), Some("postgres.url"));
        assert_eq!(closest("relay.readahead", names()), Some("relay.read_ahead"));
        assert_eq!(closest("kafka.brokers", names()), None);
        assert_eq!(same_leaf("exchange"), Some("rabbitmq.exchange"));
        assert_eq!(same_leaf("tls.mode"), None, "several keys end in mode");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn every_key_has_its_own_variable() {
        let variables: std::collections::BTreeSet<String> =
            KEYS.iter().map(|key| variable_of(key.path)).collect();
        assert_eq!(variables.len(), KEYS.len());
        assert!(variables.contains("STATECAST_NAME"));
        assert!(variables.contains("STATECAST_SOURCE__POLL__BUSY_INTERVAL"));
    }
}
