//! What helm makes of the examples, read as the program in the container reads it. `.ci/chart` renders and calls it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use statecast::config::{Config, load};

use crate::files;

/// Where the pods see their Secrets.
const SECRETS: &str = "/run/secrets/statecast";
const CONFIG: &str = "/etc/statecast/statecast.yaml";

/// Manifests of one file by kind and name.
fn manifests(path: &Path) -> BTreeMap<(String, String), Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let named = files::documents(&path.display().to_string(), &text).into_iter().map(|manifest| {
        let part = |value: &Value| value.as_str().unwrap().to_owned();
        ((part(&manifest["kind"]), part(&manifest["metadata"]["name"])), manifest)
    });
    named.collect()
}

/// What the volumes of a pod put into [`SECRETS`].
fn secret_files(pod: &Value) -> Vec<String> {
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
    let sources = volume["projected"]["sources"].as_array().unwrap();
    let items = sources.iter().flat_map(|source| {
        let source = source.as_object().unwrap().values().next().unwrap();
        source["items"].as_array().unwrap()
    });
    items.map(|item| item["path"].as_str().unwrap().to_owned()).collect()
}

/// Loads the configuration of one pod, with `secrets` in place of what is mounted.
fn read(place: &str, pod: &Value, maps: &BTreeMap<(String, String), Value>, secrets: &Path) -> Config {
    for file in secret_files(pod) {
        let content = match file.as_str() {
            "postgres-url" => "postgres://relay@db:5432/app?sslmode=require",
            "rabbitmq-urls" => "amqps://relay@mq:5671/%2f",
            "rabbitmq-management-url" => "https://relay@mq:15671",
            "console-token" => "0123456789abcdef",
            _ => "",
        };
        std::fs::write(secrets.join(file), content).unwrap();
    }
    let volumes = pod["volumes"].as_array().unwrap();
    let mounted = volumes.iter().find(|volume| volume["name"] == "config").unwrap();
    let name = mounted["configMap"]["name"].as_str().unwrap().to_owned();
    let map = &maps[&("ConfigMap".to_owned(), name)];
    let elsewhere = |text: &str| text.replace(SECRETS, secrets.to_str().unwrap());
    let file = secrets.join("statecast.yaml");
    std::fs::write(&file, elsewhere(map["data"]["statecast.yaml"].as_str().unwrap())).unwrap();
    let variables: Vec<(String, String)> = pod["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| {
            (variable["name"].as_str().unwrap().to_owned(), elsewhere(variable["value"].as_str().unwrap()))
        })
        .collect();
    assert!(variables.contains(&("STATECAST_CONFIG".to_owned(), CONFIG.to_owned())), "{place}");
    let variables = variables.into_iter().filter(|(name, _)| name != "STATECAST_CONFIG");
    let config = load(Some(&file), variables).unwrap_or_else(|error| panic!("{place}: {error}"));
    // A path that nothing is mounted at would only be missed when the pod starts.
    for tls in [&config.postgres.tls, &config.rabbitmq.tls] {
        for path in [&tls.ca_file, &tls.cert_file, &tls.key_file].into_iter().flatten() {
            assert!(path.starts_with(secrets) && path.exists(), "{place}: {}", path.display());
        }
    }
    config
}

#[test]
#[ignore = "needs manifests that helm has rendered; `make chart` runs it"]
fn rendered_configurations_load() {
    let folder = std::env::var_os("STATECAST_RENDERED").expect("STATECAST_RENDERED names a folder");
    let mut pods = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let manifests = manifests(&path);
        for ((kind, name), manifest) in &manifests {
            if kind != "Deployment" && kind != "Job" {
                continue;
            }
            let place = format!("{}: {kind} {name}", path.display());
            let secrets =
                std::env::temp_dir().join(format!("statecast-rendered-{}-{pods}", std::process::id()));
            std::fs::create_dir_all(&secrets).unwrap();
            let config = read(&place, &manifest["spec"]["template"]["spec"], &manifests, &secrets);
            std::fs::remove_dir_all(&secrets).unwrap();
            pods += 1;
            let production = path.ends_with("production.yaml");
            assert_eq!(
                config.rabbitmq.management_url.is_some(),
                production || name.ends_with("command"),
                "{place}"
            );
            if kind == "Deployment" {
                assert_eq!(config.http.listen.port(), 9465, "{place}");
                assert_eq!(
                    config.console.listen.map(|listen| listen.port()),
                    production.then_some(9466),
                    "{place}"
                );
            }
        }
    }
    assert!(pods >= 9, "{pods}");
}
