//! `values.schema.json` against `values.yaml`, the examples, values that are wrong, and the keys of the configuration.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::Validator;
use serde_json::{Value, json};
use statecast::config::units;

use crate::files;

const SCHEMA: &str = "helm/statecast/values.schema.json";
const VALUES: &str = "helm/statecast/values.yaml";
const EXAMPLES: &str = "helm/statecast/examples";

/// Keys that the chart sets from other values than `config`.
const OF_THE_CHART: [&str; 3] = ["postgres.", "rabbitmq.tls.", "http."];
const OF_THE_CHART_BY_NAME: [&str; 9] = [
    "rabbitmq.urls",
    "rabbitmq.urls_file",
    "rabbitmq.management_url",
    "rabbitmq.management_url_file",
    "console.listen",
    "console.token",
    "console.token_file",
    "console.show_payload",
    "otel.headers",
];

fn validator() -> Validator {
    jsonschema::validator_for(&files::json(SCHEMA)).unwrap()
}

fn mistakes(validator: &Validator, values: &Value) -> Vec<String> {
    validator.iter_errors(values).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// As helm does it: tables are merged, null takes a default away, all else replaces.
fn merged(mut base: Value, over: &Value) -> Value {
    let (Some(into), Some(entries)) = (base.as_object_mut(), over.as_object()) else {
        return over.clone();
    };
    for (key, value) in entries {
        match into.remove(key) {
            _ if value.is_null() => {}
            Some(old) => _ = into.insert(key.clone(), merged(old, value)),
            None if value.is_object() => _ = into.insert(key.clone(), merged(json!({}), value)),
            None => _ = into.insert(key.clone(), value.clone()),
        }
    }
    base
}

/// `values.yaml` and it with each example, by name.
fn complete() -> BTreeMap<String, Value> {
    let values = files::yaml(VALUES);
    let mut all: BTreeMap<String, Value> = files::listed(EXAMPLES, ".yaml")
        .into_iter()
        .map(|name| (name.clone(), merged(values.clone(), &files::yaml(&name))))
        .collect();
    all.insert(VALUES.to_owned(), values);
    all
}

/// `values` with one changed.
fn with(mut values: Value, path: &str, value: Value) -> Value {
    let mut place = &mut values;
    for key in path.split('.') {
        place = &mut place.as_object_mut().unwrap_or_else(|| panic!("{path}"))[key];
    }
    *place = value;
    values
}

/// [`with`] for a path of which some tables are not there yet.
fn put(values: Value, path: &str, value: Value) -> Value {
    let over = path.rsplit('.').fold(value, |value, key| json!({ key: value }));
    merged(values, &over)
}

#[test]
fn defaults_and_examples_pass() {
    let validator = validator();
    for (name, values) in complete() {
        assert_eq!(mistakes(&validator, &values), [] as [String; 0], "{name}");
    }
}

#[test]
fn each_value_of_another_kind_is_refused() {
    fn leaves(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        match value.as_object().filter(|entries| !entries.is_empty()) {
            Some(entries) => {
                for (key, entry) in entries {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    leaves(&path, entry, found);
                }
            }
            None => found.push((path.to_owned(), value.clone())),
        }
    }
    let (validator, values) = (validator(), files::yaml(VALUES));
    let mut found = Vec::new();
    leaves("", &values, &mut found);
    assert!(found.len() > 80);
    for (path, value) in found.iter().filter(|(path, _)| !path.contains('/')) {
        // A list where none is taken, a number in a list or a table, and a key that nobody knows.
        let wrong = if value.is_array() || value.is_object() { json!(7) } else { json!(["x"]) };
        assert!(!validator.is_valid(&with(values.clone(), path, wrong)), "{path} takes anything");
        let beside = path
            .rsplit_once('.')
            .map_or("no_such_value".into(), |(above, _)| format!("{above}.no_such_value"));
        let free = ["labels", "Labels", "annotations", "Annotations", "requests", "limits"];
        if !beside.split('.').any(|key| free.contains(&key)) {
            assert!(!validator.is_valid(&put(values.clone(), &beside, json!("x"))), "{beside} passes");
        }
    }
}

#[test]
fn wrong_values_are_refused() {
    let (validator, values) = (validator(), files::yaml(VALUES));
    for (path, wrong, right) in [
        ("replicas", json!(-1), json!(3)),
        ("replicas", json!("2"), json!(1)),
        ("image.repository", json!("Registry/Statecast"), json!("registry.example.com:5000/a/b")),
        ("image.tag", json!("a tag"), json!("1.2.3-rc.1")),
        ("image.digest", json!("sha256:abc"), json!(format!("sha256:{}", "0".repeat(64)))),
        ("image.pullPolicy", json!("Sometimes"), json!("Always")),
        ("imagePullSecrets", json!(["registry"]), json!([{ "name": "registry" }])),
        ("config.name", json!("Orders"), json!("orders-eu")),
        ("config.name", json!("o".repeat(49)), json!("o".repeat(48))),
        ("config.source.mode", json!("stream"), json!("wal")),
        ("config.source.poll.batch", json!(0), json!(100_000)),
        ("config.source.poll.busy_interval", json!("5 ms"), json!("250us")),
        ("config.source.poll.idle_interval", json!(5), json!("100ms")),
        ("config.source.wal.retain_max", json!("1 Gi"), json!("512MiB")),
        ("config.event.source", json!("/two words"), json!("https://shop.example.com/orders")),
        ("config.event.format", json!("json"), json!("binary")),
        ("config.event.type_prefix", json!("x".repeat(128)), json!("com.example.")),
        ("config.rabbitmq.url", json!("amqp://user:password@mq"), json!(null)),
        ("config.rabbitmq.urls", json!(["amqp://user:password@mq"]), json!(null)),
        ("config.postgres", json!({ "url": "postgres://user:password@db" }), json!(null)),
        ("config.http", json!({ "listen": "0.0.0.0:1" }), json!(null)),
        ("config.rabbitmq.exchange", json!(""), json!("shop.events")),
        ("config.rabbitmq.exchange", json!("amq.default"), json!("amq.topic")),
        (
            "config.rabbitmq.routing_key",
            json!("{aggregate_tpye}"),
            json!("{aggregate_type}.{{x}}.{aggregate_id}"),
        ),
        ("config.rabbitmq.declare", json!(true), json!("create")),
        ("config.rabbitmq.window", json!(65_536), json!(65_535)),
        ("config.rabbitmq.window", json!(1.5), json!(1)),
        ("config.rabbitmq.lanes", json!(65), json!(64)),
        ("config.rabbitmq.fence", json!("yes"), json!(false)),
        (
            "config.rabbitmq.queues",
            json!([{ "name": "a", "binding": "x" }]),
            json!([{ "name": "a", "bindings": ["x"] }, "b"]),
        ),
        ("config.rabbitmq.queues", json!([{ "bindings": ["x"] }]), json!([])),
        ("config.rabbitmq.queues", json!(["amq.gen"]), json!(["amqp"])),
        (
            "config.rabbitmq.queues",
            json!([{ "name": "a", "type": "lazy" }]),
            json!([{ "name": "a", "type": "stream" }]),
        ),
        (
            "config.rabbitmq.queues",
            json!([{ "name": "a", "arguments": { "x-queue-type": "quorum" } }]),
            json!([{ "name": "a", "arguments": { "x-delivery-limit": 20, "x-overflow": "reject-publish" } }]),
        ),
        ("config.retention.chunk_rows", json!(999), json!(1000)),
        ("config.retention.keep", json!("1 day"), json!("7d")),
        ("config.log.level", json!("inof"), json!("info,statecast::sink=debug")),
        ("postgres.url.secret", json!(""), json!("statecast")),
        ("postgres.url.secret", json!("postgres://user:password@db/app"), json!("db.example")),
        ("postgres.url.key", json!("a/b"), json!("postgres-url")),
        ("rabbitmq.urls", json!("amqp://user:password@mq"), json!({ "secret": "a", "key": "b" })),
        ("config.otel.sample", json!(2), json!(0.5)),
        ("config.otel.endpoint", json!("http://user:password@collector"), json!("http://collector:4318")),
        ("postgres.tls.mode", json!("require"), json!("verify")),
        (
            "rabbitmq.tls.ca",
            json!({ "secret": "a", "configMap": "b", "key": "c" }),
            json!({ "configMap": "b" }),
        ),
        ("http.address", json!("127.0.0.1"), json!("0.0.0.0")),
        ("http.address", json!("[::1]"), json!("[::]")),
        ("http.port", json!(80), json!(8080)),
        ("console.enabled", json!(true), json!(false)),
        (
            "console",
            json!({ "enabled": true, "token": { "secret": "" } }),
            json!({ "enabled": true, "token": { "secret": "orders-console" } }),
        ),
        ("console.showPayload", json!("yes"), json!(true)),
        ("command.args", json!(["run"]), json!(["cursor", "rebase", "--yes"])),
        ("command.args", json!("cursor show"), json!(["cursor", "show"])),
        // As helm reads null: without the default.
        ("podSecurityContext", json!(null), json!({})),
        ("podSecurityContext.runAsNonRoot", json!(null), json!(true)),
        ("securityContext", json!(null), json!({})),
        ("securityContext.allowPrivilegeEscalation", json!(null), json!(false)),
        ("securityContext.capabilities", json!(null), json!({ "drop": ["ALL"] })),
        ("securityContext.capabilities.drop", json!(["NET_RAW"]), json!(["ALL", "NET_RAW"])),
        ("podSecurityContext.runAsNonRoot", json!(false), json!(true)),
        ("podSecurityContext.runAsUser", json!(0), json!(1000)),
        ("securityContext.allowPrivilegeEscalation", json!(true), json!(false)),
        ("securityContext.capabilities.add", json!(["NET_ADMIN"]), json!([])),
        ("resources.limits.memory", json!("256MB"), json!("1Gi")),
        ("resources.requests.cpu", json!("0,5"), json!(0.5)),
        ("livenessProbe.periodSeconds", json!(0), json!(1)),
        ("updateStrategy.type", json!("OnDelete"), json!("RollingUpdate")),
        ("updateStrategy.rollingUpdate.maxSurge", json!("25"), json!("25%")),
        (
            "tolerations",
            json!([{ "key": "a", "effect": "NoRun" }]),
            json!([{ "key": "a", "effect": "NoExecute" }]),
        ),
        ("spread", json!("zones"), json!("none")),
        (
            "extraEnv",
            json!([{ "name": "STATECAST_POSTGRES__URL", "value": "x" }]),
            json!([{ "name": "SSL_CERT_FILE", "value": "x" }]),
        ),
        (
            "extraEnv",
            json!([{ "name": "STATECAST_CONSOLE__TOKEN", "value": "0123456789abcdef" }]),
            json!([{ "name": "STATECAST_LOG__LEVEL", "value": "debug" }]),
        ),
        (
            "extraEnv",
            json!([{ "name": "A", "value": 1 }]),
            json!([{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "x" } } }]),
        ),
        (
            "extraVolumes",
            json!([{ "name": "secrets", "emptyDir": {} }]),
            json!([{ "name": "tmp", "emptyDir": {} }]),
        ),
        ("serviceMonitor.interval", json!(15), json!("30s")),
        ("prometheusRule.runbookUrl", json!("wiki"), json!("https://wiki.example.com/runbook")),
        ("prometheusRule.disabled", json!(["NoLeader"]), json!(["StatecastNoLeader"])),
        ("networkPolicy.from", json!([{}]), json!([{ "podSelector": {} }])),
        ("networkPolicy.egress.enabled", json!(true), json!(false)),
        (
            "networkPolicy.egress",
            json!({ "enabled": true, "rules": [] }),
            json!({ "enabled": true, "rules": [{ "ports": [{ "port": 5432, "protocol": "TCP" }] }] }),
        ),
    ] {
        let right = put(values.clone(), path, right);
        assert_eq!(mistakes(&validator, &right), [] as [String; 0], "{path}");
        assert!(!validator.is_valid(&put(values.clone(), path, wrong.clone())), "{path} takes {wrong}");
    }
}

#[test]
fn every_table_of_the_schema_is_closed() {
    fn walk(path: &str, schema: &Value, open: &mut Vec<String>) {
        match schema {
            Value::Object(entries) => {
                let closed = entries.get("additionalProperties") == Some(&json!(false));
                // What stands beside a table's own keys (if, then, not) only adds conditions.
                let condition = ["/if", "/then", "/not"].iter().any(|end| path.contains(end));
                if entries.get("properties").is_some_and(Value::is_object) && !closed && !condition {
                    open.push(path.to_owned());
                }
                for (key, entry) in entries {
                    walk(&format!("{path}/{key}"), entry, open);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    walk(&format!("{path}/{index}"), item, open);
                }
            }
            _ => {}
        }
    }
    let mut open = Vec::new();
    walk("", &files::json(SCHEMA), &mut open);
    // A volume has as many kinds as Kubernetes has.
    assert_eq!(open, ["/properties/extraVolumes/items"]);
}

/// The leaves of the schema's `config`, by the key's path.
fn keys_of_the_schema() -> BTreeMap<String, Value> {
    fn walk(path: &str, schema: &Value, keys: &mut BTreeMap<String, Value>) {
        match schema["properties"].as_object() {
            Some(properties) => {
                for (key, entry) in properties {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, entry, keys);
                }
            }
            None => _ = keys.insert(path.to_owned(), schema.clone()),
        }
    }
    let mut keys = BTreeMap::new();
    walk("", &files::json(SCHEMA)["properties"]["config"], &mut keys);
    keys
}

#[test]
fn config_takes_the_keys_of_the_configuration() {
    let reference = statecast::config::reference();
    let rows = reference.lines().skip(2).map(|row| {
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        (cells[0].trim_matches(|c| c == '|' || c == ' ' || c == '`'), cells[2])
    });
    let of_the_chart =
        |key: &str| OF_THE_CHART.iter().any(|of| key.starts_with(of)) || OF_THE_CHART_BY_NAME.contains(&key);
    let documented: BTreeMap<&str, &str> = rows.filter(|(key, _)| !of_the_chart(key)).collect();
    let keys = keys_of_the_schema();
    let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect::<BTreeSet<String>>();
    assert_eq!(
        keys.keys().cloned().collect::<BTreeSet<_>>(),
        names(documented.keys().copied().collect()),
        "helm/statecast/values.schema.json, `config`, must hold the keys of docs/configuration.md"
    );
    for (key, takes) in documented {
        let schema = &keys[key];
        let expected = if let Some(range) = takes.strip_prefix("a whole number from ") {
            let (min, max) = range.split_once(" to ").unwrap();
            json!({ "type": "integer", "minimum": min.parse::<i64>().unwrap(), "maximum": max.parse::<i64>().unwrap() })
        } else if takes.starts_with("a duration from ") {
            json!({ "$ref": "#/definitions/duration" })
        } else if takes.starts_with("a size from ") {
            json!({ "$ref": "#/definitions/size" })
        } else if takes == "true or false" {
            json!({ "type": "boolean" })
        } else if schema.get("enum").is_some() {
            json!({ "type": "string", "enum": takes.split(", ").collect::<Vec<_>>() })
        } else {
            continue;
        };
        assert_eq!(*schema, expected, "{key} takes {takes}");
    }
}

#[test]
fn durations_and_sizes_are_those_that_the_program_reads() {
    let validator = validator();
    let values = files::yaml(VALUES);
    let takes = |path: &str, text: &str| validator.is_valid(&put(values.clone(), path, json!(text)));
    for text in
        ["5ms", "0", "1us", "10s", "24h", "7d", "", "5", "5 ms", "-1s", "1.5s", "5M", "ms", "1h30m", "٣s"]
    {
        let read = units::duration(text).is_some();
        // The program also takes spaces.
        assert_eq!(takes("config.retention.keep", text), read && !text.contains(' '), "{text:?}");
    }
    for text in
        ["8MiB", "64kB", "7B", "10GiB", "1TiB", "65536", "8M", "8 Mio", "1.5GiB", "-1", "", "GiB", "1KB"]
    {
        let taken = takes("config.retention.max_size", text);
        assert!(!taken || units::size(text).is_some(), "{text:?}");
        assert_eq!(taken, !["8M", "8 Mio", "1.5GiB", "-1", "", "GiB", "1KB"].contains(&text), "{text:?}");
    }
}

#[test]
fn the_configuration_of_each_example_loads() {
    for (name, values) in complete() {
        let path = std::env::temp_dir().join(format!(
            "statecast-chart-{}-{}.yaml",
            std::process::id(),
            name.replace('/', "-")
        ));
        // JSON is YAML.
        std::fs::write(&path, values["config"].to_string()).unwrap();
        let variables = [
            ("STATECAST_POSTGRES__URL", "postgres://relay@db:5432/app"),
            ("STATECAST_RABBITMQ__URLS", "amqp://relay@mq:5672/%2f"),
            ("STATECAST_HTTP__LISTEN", "0.0.0.0:9465"),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let loaded = statecast::config::load(Some(&path), variables);
        std::fs::remove_file(&path).unwrap();
        let config = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(values["config"]["name"], config.name.as_str(), "{name}");
        let grace_s = config.shutdown.grace.as_secs();
        assert!(
            values["terminationGracePeriodSeconds"].as_u64() > Some(grace_s),
            "{name}: killed before the end"
        );
    }
}
