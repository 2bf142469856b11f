//! Examples and reference say what the code does.

use std::path::{Path, PathBuf};

use super::super::keys::KEYS;
use super::super::{load, raw};
use super::*;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn examples_hold_the_defaults() {
    let example_urls = [
        ("STATECAST_POSTGRES__URL", "postgres://statecast:change-me@localhost:5432/app"),
        ("STATECAST_RABBITMQ__URLS", "amqp://statecast:change-me@localhost:5672/%2f"),
    ];
    let plain = from_env(&example_urls).unwrap();
    for name in ["config/statecast.example.toml", "config/statecast.example.yaml"] {
        let example = load(Some(&repository(name)), std::iter::empty()).unwrap();
        assert_eq!(format!("{example:?}"), format!("{plain:?}"), "{name}");
        assert_eq!(example.postgres.url.expose(), plain.postgres.url.expose());
        assert_eq!(example.rabbitmq.urls[0].expose(), plain.rabbitmq.urls[0].expose());
    }
}

/// A key that is commented out: its `#` is not followed by one space and a word, as that of a sentence is.
fn uncommented(line: &str) -> String {
    let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
    match rest.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && (!rest.starts_with(' ') || rest.starts_with("  ")) => {
            format!("{indent}{rest}")
        }
        _ => line.to_owned(),
    }
}

#[test]
fn examples_show_every_key() {
    for (name, ending) in
        [("config/statecast.example.toml", "a.toml"), ("config/statecast.example.yaml", "a.yaml")]
    {
        let text = std::fs::read_to_string(repository(name)).unwrap();
        let uncommented: Vec<String> = text.lines().map(uncommented).collect();
        let path = write(ending, &uncommented.join("\n"));
        let mut raw = raw::Raw::default();
        let mut errors = Vec::new();
        raw.add_file(name, load::read_file(&path).unwrap(), &mut errors);
        std::fs::remove_file(path).unwrap();
        assert_eq!(errors, [""; 0], "{name}");
        for key in KEYS {
            assert!(raw.get(key.path).is_some(), "{} in {name}", key.path);
        }
    }
}

/// `UPDATE_DOCS=1 cargo test the_reference` writes the table.
#[test]
fn the_reference_is_the_table_of_keys() {
    let path = repository("docs/configuration.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find("| key |").unwrap();
    let end = text[start..].find("\n\n").map_or(text.len(), |at| start + at + 1);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{}{}", &text[..start], reference(), &text[end..])).unwrap();
    } else {
        assert_eq!(text[start..end], reference(), "run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn defaults_are_valid() {
    for key in KEYS {
        let Some(default) = key.default.filter(|text| !["/<name>", "[]", ""].contains(text)) else {
            continue;
        };
        from_env(&[(&raw::variable_of(key.path), default)]).unwrap();
    }
}

#[test]
fn the_readme_names_keys_that_exist() {
    let text = std::fs::read_to_string(repository("README.md")).unwrap();
    let mut found = 0;
    for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        // STATECAST_CONFIG names the file itself.
        if let Some(rest) = word.strip_prefix("STATECAST_").filter(|rest| *rest != "CONFIG") {
            let path = rest.to_lowercase().replace("__", ".");
            assert!(raw::key(&path).is_some(), "{word}");
            found += 1;
        }
    }
    let table = text.lines().skip_while(|line| *line != "## Configuration").skip(1);
    for line in table.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let names: Vec<&str> = cells[1].split('`').skip(1).step_by(2).collect();
        let section = names[0].rsplit_once('.').map_or(String::new(), |(section, _)| format!("{section}."));
        let defaults: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !name.ends_with('*')) {
            let path = if name.contains('.') || index == 0 {
                (*name).to_owned()
            } else {
                format!("{section}{name}")
            };
            let key = raw::key(&path).unwrap_or_else(|| panic!("{path}"));
            if let Some(default) = defaults.get(index) {
                assert_eq!(key.default, Some(*default), "{path}");
            }
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}
