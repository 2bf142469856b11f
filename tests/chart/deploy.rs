//! What stands in the compose file, the unit and their environment: keys that exist, files that exist.

use crate::files;

const COMPOSE: &str = "docker-compose.yaml";

/// Loads what the variables say, with URLs where they say none.
fn load(place: &str, mut variables: Vec<(String, String)>) -> statecast::config::Config {
    for (name, value) in [
        ("STATECAST_POSTGRES__URL", "postgres://relay@db:5432/app"),
        ("STATECAST_RABBITMQ__URLS", "amqp://relay@mq:5672/%2f"),
    ] {
        if !variables.iter().any(|(known, _)| known == name) {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    statecast::config::load(None, variables.into_iter()).unwrap_or_else(|error| panic!("{place}: {error}"))
}

#[test]
fn the_relays_of_the_compose_file_have_a_valid_configuration() {
    let compose = files::yaml(COMPOSE);
    let table = compose["x-environment"].as_object().unwrap();
    let variables = table.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    let config = load(COMPOSE, variables.collect());
    assert_eq!((config.name.as_str(), config.rabbitmq.queues.len()), ("orders", 1));
    // The port that is published, and what the head of the file says one has to type there.
    assert_eq!(config.console.listen.map(|listen| listen.port()), Some(9466));
    let token = table["STATECAST_CONSOLE__TOKEN"].as_str().unwrap();
    assert!(files::text(COMPOSE).contains(&format!("(token: {token})")));
}

#[test]
fn what_the_compose_file_mounts_is_there() {
    let compose = files::text(COMPOSE);
    let mounts: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ./"))
        .map(|mount| mount.split(':').next().unwrap())
        .collect();
    assert!(mounts.len() >= 6, "{mounts:?}");
    for mount in mounts {
        assert!(files::path(mount).exists(), "{mount}");
    }
    // Where Prometheus looks for rules and Grafana for dashboards is where they are mounted.
    assert!(compose.contains(":/etc/prometheus/rules/statecast.rules.yaml:ro"));
    assert!(files::text("deploy/prometheus/prometheus.yaml").contains("rules/*.rules.yaml"));
    let provider = files::yaml("deploy/grafana/provisioning/dashboards/statecast.yaml");
    let folder = provider["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(compose.contains(&format!("./helm/statecast/dashboards:{folder}:ro")));
    assert!(compose.contains(&format!("{folder}/statecast-overview.json")));
}

#[test]
fn the_environment_of_the_unit_is_valid_also_where_it_is_commented_out() {
    let file = "deploy/systemd/statecast.env";
    let text = files::text(file);
    let lines = text.lines().map(|line| line.trim_start_matches('#'));
    let variables: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("STATECAST_") && *name != "STATECAST_CONFIG")
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect();
    assert!(variables.len() >= 4, "{variables:?}");
    assert_eq!(load(file, variables).name, "orders");
}

/// Also those that are commented out: each variable is a key, and each credential it names is loaded from a file that
/// `statecastctl` hands on as well.
#[test]
fn the_secrets_of_the_unit_are_those_of_statecastctl() {
    let file = "deploy/systemd/statecast.service";
    let unit = files::text(file);
    let lines = unit.lines().map(|line| line.trim_start_matches('#'));
    let loaded: Vec<&str> =
        lines.clone().filter_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next()).collect();
    let secrets: Vec<(&str, &str)> =
        lines.filter_map(|line| line.strip_prefix("Environment=")?.split_once("=%d/")).collect();
    assert_eq!(loaded, secrets.iter().map(|(_, name)| *name).collect::<Vec<_>>());
    assert!(unit.contains("\nEnvironment=STATECAST_POSTGRES__URL_FILE=%d/postgres_url\n"));
    assert!(unit.contains("\nEnvironment=STATECAST_RABBITMQ__URLS_FILE=%d/rabbitmq_urls\n"));
    let wrapper = files::text("deploy/systemd/statecastctl");
    let handed_on: Vec<(String, &str)> = wrapper
        .lines()
        .map(|line| line.trim_end_matches(['\\', ';', ' ']).trim_end_matches("; do").trim())
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.contains("__") && !name.contains(' '))
        .map(|(name, secret)| (format!("STATECAST_{name}"), secret))
        .collect();
    let known: Vec<(String, &str)> =
        secrets.iter().map(|(name, secret)| ((*name).to_owned(), *secret)).collect();
    let sorted = |mut list: Vec<(String, &str)>| {
        list.sort();
        list.into_iter().map(|(name, secret)| (name, secret.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(sorted(handed_on), sorted(known.clone()));
    let folder = std::env::temp_dir().join(format!("statecast-unit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let variables = known.into_iter().map(|(name, secret)| {
        let content = match secret {
            "postgres_url" => "postgres://relay@db:5432/app",
            "rabbitmq_urls" => "amqps://relay@mq:5671/%2f",
            "rabbitmq_management_url" => "https://relay@mq:15671",
            "console_token" => "0123456789abcdef",
            _ => "",
        };
        let path = folder.join(secret);
        std::fs::write(&path, content).unwrap();
        (name, path.to_str().unwrap().to_owned())
    });
    let config = statecast::config::load(None, variables);
    std::fs::remove_dir_all(&folder).unwrap();
    let config = config.unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(config.console.token.is_some() && config.rabbitmq.tls.key_file.is_some());
}
