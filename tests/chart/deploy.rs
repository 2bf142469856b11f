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
    let unit = files::text("deploy/systemd/statecast.service");
    for variable in
        ["STATECAST_POSTGRES__URL_FILE=%d/postgres_url", "STATECAST_RABBITMQ__URLS_FILE=%d/rabbitmq_urls"]
    {
        assert!(unit.contains(variable), "{variable}");
    }
}
