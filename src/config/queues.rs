//! `[[rabbitmq.queues]]`: queues that are looked for or created.

use std::collections::{BTreeMap, BTreeSet};

use config::ValueKind;

use super::raw::{closest, printable};
use super::reader::{Reader, kind_of, split_words};
use super::template::SHORT_STRING_MAX;
use super::{Argument, Queue, QueueKind};

const PATH: &str = "rabbitmq.queues";
const KEYS: [&str; 4] = ["name", "bindings", "type", "arguments"];
const TYPES: [&str; 3] = ["quorum", "classic", "stream"];

/// Reads the list; a single text is a list of names.
pub(super) fn read(reader: &mut Reader<'_>) -> Vec<Queue> {
    let Some(given) = reader.raw.get(PATH) else {
        return Vec::new();
    };
    let mut queues = Vec::new();
    match &given.value {
        ValueKind::String(text) => {
            for (index, name) in split_words(text).enumerate() {
                queues.extend(queue(reader, index + 1, &ValueKind::String(name.to_owned())));
            }
        }
        ValueKind::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                queues.extend(queue(reader, index + 1, &item.kind));
            }
        }
        other => reader.fail(PATH, format!("is {}; takes a list of tables", kind_of(other))),
    }
    let mut seen = BTreeSet::new();
    for queue in &queues {
        if !seen.insert(&queue.name) {
            reader.fail(PATH, format!("queue `{}` is listed twice", printable(&queue.name)));
        }
    }
    queues
}

fn queue(reader: &mut Reader<'_>, number: usize, item: &ValueKind) -> Option<Queue> {
    let table = match item {
        ValueKind::Table(table) => table,
        ValueKind::String(name) => return Some(plain(name_of(reader, number, name)?)),
        other => {
            reader
                .fail(PATH, format!("entry {number} is {}; takes a table or a queue's name", kind_of(other)));
            return None;
        }
    };
    let table: BTreeMap<&str, &ValueKind> =
        table.iter().map(|(key, value)| (key.as_str(), &value.kind)).collect();
    for key in table.keys().filter(|key| !KEYS.contains(key)) {
        let hint = closest(key, KEYS.into_iter())
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        reader.fail(PATH, format!("entry {number} has no key `{}`{hint}", printable(key)));
    }
    let name = match table.get("name") {
        Some(ValueKind::String(name)) => name_of(reader, number, name),
        Some(other) => {
            reader.fail(PATH, format!("entry {number}: name is {}; put the text in quotes", kind_of(other)));
            None
        }
        None => {
            reader.fail(PATH, format!("entry {number}: name is missing"));
            None
        }
    };
    let bindings = table.get("bindings").map(|value| bindings(reader, number, value));
    let kind = table.get("type").map(|value| kind(reader, number, value));
    let arguments = table.get("arguments").map(|value| arguments(reader, number, value));
    let plain = plain(name?);
    Some(Queue {
        bindings: bindings.unwrap_or(plain.bindings),
        kind: kind.unwrap_or(plain.kind),
        arguments: arguments.unwrap_or(plain.arguments),
        name: plain.name,
    })
}

fn plain(name: String) -> Queue {
    Queue { name, bindings: vec!["#".into()], kind: QueueKind::Quorum, arguments: Vec::new() }
}

fn name_of(reader: &mut Reader<'_>, number: usize, name: &str) -> Option<String> {
    let what = match name {
        "" => "is empty",
        name if name.len() > SHORT_STRING_MAX => "is longer than 255 bytes",
        name if name.starts_with("amq.") => "begins with `amq.`, which the broker reserves",
        name if name.chars().any(char::is_control) => "holds a control character",
        name => return Some(name.to_owned()),
    };
    reader.fail(PATH, format!("entry {number}: name {what}"));
    None
}

fn bindings(reader: &mut Reader<'_>, number: usize, value: &ValueKind) -> Vec<String> {
    let keys: Vec<String> = match value {
        ValueKind::String(text) => split_words(text).map(str::to_owned).collect(),
        ValueKind::Array(items) => {
            let texts = items.iter().filter_map(|item| match &item.kind {
                ValueKind::String(text) => Some(text.clone()),
                _ => None,
            });
            let keys: Vec<String> = texts.collect();
            if keys.len() < items.len() {
                reader.fail(PATH, format!("entry {number}: bindings takes texts"));
            }
            keys
        }
        other => {
            reader
                .fail(PATH, format!("entry {number}: bindings is {}; takes a list of texts", kind_of(other)));
            Vec::new()
        }
    };
    for key in keys.iter().filter(|key| key.len() > SHORT_STRING_MAX || key.chars().any(char::is_control)) {
        let what = format!(
            "entry {number}: binding `{}` is over 255 bytes or holds a control character",
            printable(key)
        );
        reader.fail(PATH, what);
    }
    keys
}

fn kind(reader: &mut Reader<'_>, number: usize, value: &ValueKind) -> QueueKind {
    match value {
        ValueKind::String(text) if text == "quorum" => QueueKind::Quorum,
        ValueKind::String(text) if text == "classic" => QueueKind::Classic,
        ValueKind::String(text) if text == "stream" => QueueKind::Stream,
        other => {
            let shown = printable(&other.to_string());
            reader.fail(
                PATH,
                format!("entry {number}: type `{shown}` is not valid; takes {}", TYPES.join(", ")),
            );
            QueueKind::Quorum
        }
    }
}

fn arguments(reader: &mut Reader<'_>, number: usize, value: &ValueKind) -> Vec<(String, Argument)> {
    let ValueKind::Table(table) = value else {
        reader.fail(PATH, format!("entry {number}: arguments is {}; takes a table", kind_of(value)));
        return Vec::new();
    };
    // The file's order is not kept by the parser; by name it is at least always the same.
    let table: BTreeMap<&String, &config::Value> = table.iter().collect();
    let mut arguments = Vec::new();
    for (name, value) in table {
        let shown = printable(name);
        let value = match &value.kind {
            _ if name.is_empty() || name.len() > SHORT_STRING_MAX => {
                Err("is not a name of 1 to 255 bytes".to_owned())
            }
            _ if name == "x-queue-type" => Err("is given by `type`".to_owned()),
            ValueKind::String(text) => Ok(Argument::Text(text.clone())),
            ValueKind::I64(number) => Ok(Argument::Int(*number)),
            ValueKind::Boolean(truth) => Ok(Argument::Bool(*truth)),
            other => Err(format!("is {}; takes text, a whole number, true or false", kind_of(other))),
        };
        match value {
            Ok(value) => arguments.push((name.clone(), value)),
            Err(what) => reader.fail(PATH, format!("entry {number}: argument `{shown}` {what}")),
        }
    }
    arguments
}
