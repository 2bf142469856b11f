//! Reads, merges and validates configuration; reports every mistake together.
//!
//! The `config` crate reads file and environment; what they say is kept as it was written (`Raw`), so that each
//! mistake can be reported with the key, the place it came from, what is wrong and what is valid. No message repeats a
//! value that could hold a password, nor a line of the file.

use std::collections::BTreeMap;
use std::path::Path;

use config::{ConfigError, Environment, File, FileFormat, Map, Source, Value};

use super::raw::{Raw, key, variable_of};
use super::{Config, validate};

/// Bytes of a configuration file, at most.
const FILE_MAX: u64 = 1 << 20;

/// Every mistake found, one line each.
#[derive(Debug, thiserror::Error)]
#[error("configuration is not valid:\n{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Reads `file` (TOML or YAML by its ending), then `env`, and validates.
///
/// Of `env` only names with `__` after `STATECAST_` count, and `STATECAST_NAME`; a variable whose value is empty counts
/// as not set. [`environment`] gives that of the process.
///
/// # Errors
/// All mistakes at once.
pub fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut raw = Raw::default();
    if let Some(path) = file {
        match read_file(path) {
            Ok(table) => raw.add_file(&path.display().to_string(), table, &mut errors),
            // Without the file, everything it holds would be reported as missing.
            Err(mistake) => return Err(ConfigErrors(vec![format!("{}: {mistake}", path.display())])),
        }
    }
    add_environment(&mut raw, env, &mut errors);
    validate::config(&raw, errors).map_err(ConfigErrors)
}

/// The environment of this process. Names that are not Unicode are left out, values are read as well as they can be.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

pub(super) fn read_file(path: &Path) -> Result<Map<String, Value>, String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let format = match ending.as_str() {
        "toml" => FileFormat::Toml,
        "yaml" | "yml" => FileFormat::Yaml,
        _ => return Err("the name must end in .toml, .yaml or .yml".into()),
    };
    let size = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if size > FILE_MAX {
        return Err(format!("holds {size} bytes; a configuration file may hold {FILE_MAX}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = text.trim_start_matches('\u{feff}');
    File::from_str(text, format).collect().map_err(|error| syntax(&error))
}

/// What the parser says, without the piece of the file that it shows: that may be a password.
fn syntax(error: &ConfigError) -> String {
    let text = match error {
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let mut lines = text.lines();
    match lines.next() {
        // `TOML parse error at line 1, column 5`, three lines that show it, the reason.
        Some(place) if place.starts_with("TOML parse error") => {
            let reason: Vec<&str> = lines.skip(3).collect();
            format!("{place}: {}", reason.join("; "))
        }
        // `did not find expected key at byte 30 line 3 column 1`
        Some(reason) if reason.contains(" at byte ") && reason.contains(" line ") => {
            format!("YAML parse error: {reason}")
        }
        Some(reason) if reason.starts_with("invalid type") => "is not a table of keys".into(),
        Some(reason) if reason.starts_with("Got ") && reason.contains("YAML documents") => reason.into(),
        Some(reason) if reason.starts_with("Cannot parse") => {
            "YAML: a key is not plain text (put a text that begins with a brace in quotes)".into()
        }
        _ => "cannot be read: a number is out of range, or a value is of a kind that no key takes".into(),
    }
}

fn add_environment(raw: &mut Raw, env: impl Iterator<Item = (String, String)>, errors: &mut Vec<String>) {
    let mut names = BTreeMap::new();
    let mut values = Map::new();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix("STATECAST_") else {
            continue;
        };
        // A leading underscore would be a variable such as `STATECAST__X`, which names no section.
        let counts = rest == "NAME" || (rest.contains("__") && !rest.starts_with('_'));
        if !counts {
            if is_almost_a_key(rest) {
                raw.ignored.push(name);
            }
            continue;
        }
        let path = rest.to_lowercase().replace("__", ".");
        if let Some(other) = names.insert(path, name.clone()).filter(|other| *other != name) {
            errors.push(format!("`{name}` and `{other}` are the same key"));
        }
        values.insert(name, value);
    }
    // `separator` would otherwise become the prefix separator as well. Values stay text: `0123` may be a password.
    let source =
        Environment::with_prefix("STATECAST").prefix_separator("_").separator("__").source(Some(values));
    match source.collect() {
        Ok(table) => {
            let sorted: BTreeMap<String, Value> = table.into_iter().collect();
            for (path, value) in sorted {
                let name = names.get(&path).cloned().unwrap_or_else(|| variable_of(&path));
                let empty = matches!(&value.kind, config::ValueKind::String(text) if text.is_empty());
                // An empty variable is none (`X=${Y:-}`), but its name must exist all the same.
                if !empty || key(&path).is_none() {
                    raw.add_variable(&name, &path, value.kind, errors);
                }
            }
        }
        Err(_) => errors.push("the environment cannot be read".into()),
    }
}

/// `POSTGRES_URL`: the key's name with the wrong separator.
fn is_almost_a_key(rest: &str) -> bool {
    super::keys::KEYS
        .iter()
        .any(|key| key.path.contains('.') && key.path.replace('.', "_").to_uppercase() == rest)
}
