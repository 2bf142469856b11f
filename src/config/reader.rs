//! Turns one given value into its type, or records what is wrong with it and goes on with the default.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::ValueKind;

use super::keys::{Key, Kind};
use super::raw::{Given, Raw, closest, key, printable, variable_of};
use super::units;

/// Bytes of a file that holds a secret, at most.
const SECRET_FILE_MAX: u64 = 64 << 10;

/// Reads values by key and collects mistakes.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a Raw,
    pub(super) errors: Vec<String>,
}

/// A text and the name of what it came from, for messages.
pub(super) struct Text {
    pub(super) text: String,
    pub(super) place: String,
}

impl<'a> Reader<'a> {
    pub(super) fn new(raw: &'a Raw, errors: Vec<String>) -> Self {
        Reader { raw, errors }
    }

    /// Records that `path` is wrong, with where it was given.
    pub(super) fn fail(&mut self, path: &str, what: impl std::fmt::Display) {
        let place = place(path, self.raw.get(path));
        self.errors.push(format!("{place}: {what}"));
    }

    /// A text or, where it is missing or wrong, the default.
    pub(super) fn text(&mut self, path: &str) -> String {
        let default = || known(path).default.unwrap_or_default().to_owned();
        self.optional(path).unwrap_or_else(default)
    }

    fn optional(&mut self, path: &str) -> Option<String> {
        match &self.raw.get(path)?.value {
            ValueKind::String(text) => Some(text.clone()),
            // Written without quotes, 0123 would have become 123.
            other => {
                let what = format!("is {}; put the text in quotes", kind_of(other));
                self.fail(path, what);
                None
            }
        }
    }

    /// One of the key's words.
    pub(super) fn choice(&mut self, path: &str) -> String {
        let Kind::Choice(names) = &known(path).kind else {
            return String::new();
        };
        let default = || known(path).default.unwrap_or_default().to_owned();
        match self.optional(path) {
            Some(text) if names.contains(&text.as_str()) => text,
            Some(text) => {
                let near = closest(&text, names.iter().copied());
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                self.invalid(path, &text, &hint);
                default()
            }
            None => default(),
        }
    }

    /// A whole number in the key's range.
    pub(super) fn number(&mut self, path: &str) -> i64 {
        let Kind::Number(min, max) = known(path).kind else {
            return 0;
        };
        let default = known(path).default.and_then(|text| text.parse().ok()).unwrap_or(min);
        let Some(given) = self.raw.get(path) else {
            return default;
        };
        let number = match &given.value {
            ValueKind::I64(number) => Some(*number),
            ValueKind::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (min..=max).contains(&number) => number,
            _ => {
                let shown = shown(&given.value);
                self.invalid(path, &shown, "");
                default
            }
        }
    }

    /// A duration in the key's range.
    pub(super) fn duration(&mut self, path: &str) -> Duration {
        let Kind::Duration(min, max) = known(path).kind else {
            return Duration::ZERO;
        };
        let default = known(path).default.and_then(units::duration).unwrap_or(min);
        let Some(given) = self.raw.get(path) else {
            return default;
        };
        let value = match &given.value {
            ValueKind::String(text) => units::duration(text),
            ValueKind::I64(0) => Some(Duration::ZERO),
            _ => None,
        };
        match value {
            Some(value) if (min..=max).contains(&value) => value,
            _ => {
                let shown = shown(&given.value);
                self.invalid(path, &shown, ", written as a whole number and us, ms, s, m, h or d");
                default
            }
        }
    }

    /// A number of bytes in the key's range.
    pub(super) fn size(&mut self, path: &str) -> u64 {
        let Kind::Size(min, max) = known(path).kind else {
            return 0;
        };
        let default = known(path).default.and_then(units::size).unwrap_or(min);
        let Some(given) = self.raw.get(path) else {
            return default;
        };
        let value = match &given.value {
            ValueKind::String(text) => units::size(text),
            ValueKind::I64(bytes) => u64::try_from(*bytes).ok(),
            _ => None,
        };
        match value {
            Some(value) if (min..=max).contains(&value) => value,
            _ => {
                let shown = shown(&given.value);
                self.invalid(path, &shown, ", written as bytes or with KiB, MiB, GiB or TiB");
                default
            }
        }
    }

    /// A fraction from 0 to 1.
    pub(super) fn ratio(&mut self, path: &str) -> f64 {
        let default = known(path).default.and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let Some(given) = self.raw.get(path) else {
            return default;
        };
        let value = match &given.value {
            ValueKind::Float(value) => Some(*value),
            ValueKind::I64(value) => Some(*value as f64),
            ValueKind::String(text) => text.trim().parse::<f64>().ok(),
            _ => None,
        };
        match value {
            Some(value) if (0.0..=1.0).contains(&value) => value,
            _ => {
                let shown = shown(&given.value);
                self.invalid(path, &shown, "");
                default
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, path: &str) -> bool {
        let default = known(path).default == Some("true");
        let Some(given) = self.raw.get(path) else {
            return default;
        };
        let value = match &given.value {
            ValueKind::Boolean(value) => Some(*value),
            ValueKind::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
            _ => None,
        };
        value.unwrap_or_else(|| {
            let shown = shown(&given.value);
            self.invalid(path, &shown, "");
            default
        })
    }

    /// The path of a file that can be read.
    pub(super) fn file(&mut self, path: &str) -> Option<PathBuf> {
        let file = PathBuf::from(self.optional(path)?);
        match readable(&file) {
            Ok(_) => Some(file),
            Err(error) => {
                self.fail(path, format!("{}: {error}", file.display()));
                None
            }
        }
    }

    /// The texts of a secret that is given as it is or in a file: several where it is a list.
    pub(super) fn secret(&mut self, path: &str) -> Option<Vec<Text>> {
        let in_file = format!("{path}_file");
        let list = matches!(known(path).kind, Kind::Secrets(_));
        match (self.raw.get(path), self.raw.get(&in_file)) {
            (Some(given), Some(other)) => {
                let (one, two) = (place(path, Some(given)), place(&in_file, Some(other)));
                self.errors.push(format!("{one} and {two}: are both given; keep one"));
                Some(Vec::new())
            }
            (Some(given), None) => Some(self.given_secret(path, given, list)),
            (None, Some(given)) => {
                let place = place(&in_file, Some(given));
                let text = self.optional(&in_file).map(PathBuf::from).map(|file| read_secret(&file));
                match text {
                    Some(Ok(text)) if list => Some(split_urls(&text, &place)),
                    Some(Ok(text)) => Some(vec![Text { text, place }]),
                    Some(Err(what)) => {
                        self.fail(&in_file, what);
                        Some(Vec::new())
                    }
                    None => Some(Vec::new()),
                }
            }
            (None, None) => None,
        }
    }

    fn given_secret(&mut self, path: &str, given: &Given, list: bool) -> Vec<Text> {
        let place = place(path, Some(given));
        match &given.value {
            ValueKind::String(text) if list => split_urls(text, &place),
            ValueKind::String(text) => vec![Text { text: text.trim().to_owned(), place }],
            ValueKind::Array(items) if list => {
                let mut texts = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    match &item.kind {
                        ValueKind::String(text) => {
                            let place = format!("{place} entry {}", index + 1);
                            texts.push(Text { text: text.trim().to_owned(), place });
                        }
                        other => {
                            self.fail(path, format!("entry {} is {}, not text", index + 1, kind_of(other)))
                        }
                    }
                }
                texts
            }
            other => {
                self.fail(path, format!("is {}; put the text in quotes", kind_of(other)));
                Vec::new()
            }
        }
    }

    /// Records that `path` is not what it takes.
    pub(super) fn invalid(&mut self, path: &str, shown: &str, hint: &str) {
        let what = format!("`{}` is not valid; takes {}{hint}", printable(shown), known(path).kind);
        self.fail(path, what);
    }

    /// Records that a required key is missing, with the ways to give it.
    pub(super) fn missing(&mut self, path: &str) {
        let variable = variable_of(path);
        let single = variable.replace("__", "_");
        let mut line = format!(
            "`{path}` is missing: set it in the file, or as {variable}, or in a file named by {variable}_FILE; takes {}",
            known(path).kind
        );
        if self.raw.ignored.contains(&single) {
            line.push_str(&format!(" ({single} is set, but only names with two underscores count)"));
        }
        self.errors.push(line);
    }
}

/// `key (where it was given)`.
fn place(path: &str, given: Option<&Given>) -> String {
    match given {
        Some(given) => format!("`{path}` ({})", given.origin),
        None => format!("`{path}`"),
    }
}

/// The key at `path`. The paths here are constants, and a test reads every one.
fn known(path: &str) -> &'static Key {
    const NONE: Key = Key { path: "", default: None, kind: Kind::Text(""), meaning: "" };
    debug_assert!(key(path).is_some(), "no key {path}");
    key(path).unwrap_or(&NONE)
}

/// How a value is called in messages, without the value.
pub(super) fn kind_of(value: &ValueKind) -> &'static str {
    match value {
        ValueKind::Nil => "empty",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a number",
        ValueKind::Float(_) => "a fraction",
        ValueKind::String(_) => "text",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

fn shown(value: &ValueKind) -> String {
    match value {
        ValueKind::Table(_) | ValueKind::Array(_) => kind_of(value).to_owned(),
        value => value.to_string(),
    }
}

fn readable(path: &Path) -> Result<fs::File, String> {
    let file = fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    match file.metadata() {
        Ok(data) if data.is_dir() => Err("is a directory".into()),
        Ok(_) => Ok(file),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// The content of `path`, trimmed. Messages name the file and never what is in it.
fn read_secret(path: &Path) -> Result<String, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let file = readable(path).map_err(|what| format!("{name}: {what}"))?;
    file.take(SECRET_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name}: cannot be read: {error}"))?;
    if bytes.len() as u64 > SECRET_FILE_MAX {
        return Err(format!("{name}: holds more than {SECRET_FILE_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{name}: is not UTF-8 text"))?;
    match text.trim() {
        "" => Err(format!("{name}: is empty")),
        text => Ok(text.to_owned()),
    }
}

/// URLs separated by white space or commas. A password may hold a comma: only one before the next `amqp` separates.
fn split_urls(text: &str, place: &str) -> Vec<Text> {
    let mut urls = Vec::new();
    for word in text.split_whitespace() {
        let mut start = 0;
        for (at, _) in word.match_indices(',') {
            let rest = &word[at + 1..];
            if rest.is_empty()
                || rest.starts_with(',')
                || rest.starts_with("amqp://")
                || rest.starts_with("amqps://")
            {
                urls.push(&word[start..at]);
                start = at + 1;
            }
        }
        urls.push(&word[start..]);
    }
    let urls: Vec<&str> = urls.into_iter().filter(|url| !url.is_empty()).collect();
    let several = urls.len() > 1;
    let place = |index: usize| {
        if several { format!("{place} entry {}", index + 1) } else { place.to_owned() }
    };
    urls.iter()
        .enumerate()
        .map(|(index, url)| Text { text: (*url).to_owned(), place: place(index) })
        .collect()
}

/// Words separated by white space or commas.
pub(super) fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty())
}
