//! Files of the repository, as text or as values.

use std::path::PathBuf;

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// A path below the repository's root.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The one document of a YAML file.
pub(crate) fn yaml(name: &str) -> Value {
    let mut documents = documents(name, &text(name));
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

/// All documents of a YAML text that comes from `place`.
pub(crate) fn documents(place: &str, text: &str) -> Vec<Value> {
    let documents = YamlLoader::load_from_str(text).unwrap_or_else(|error| panic!("{place}: {error}"));
    documents.iter().map(value).collect()
}

/// Names of the files in a folder that end in `ending`, sorted.
pub(crate) fn listed(folder: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut names: Vec<String> =
        entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap())).collect();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    assert!(!names.is_empty(), "{folder}/*{ending}");
    names
}

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Real(number) => serde_json::from_str(number).unwrap(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Array(items) => items.iter().map(value).collect(),
        Yaml::Hash(entries) => {
            let entries = entries.iter().map(|(key, entry)| (key.as_str().unwrap().to_owned(), value(entry)));
            Value::Object(entries.collect::<Map<String, Value>>())
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("no value: {yaml:?}"),
    }
}
