//! Configuration from the outside: files and variables in, types or messages out.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

mod documents;
mod otel;
mod secrets;

const PG: &str = "postgres://app:hunter2@db:5432/shop";
const MQ: &str = "amqp://app:hunter2@mq:5672/%2f";

fn urls() -> Vec<(&'static str, &'static str)> {
    vec![("STATECAST_POSTGRES__URL", PG), ("STATECAST_RABBITMQ__URLS", MQ)]
}

fn from_env(more: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let all = urls().into_iter().chain(more.iter().copied());
    load(None, all.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

/// The messages for a configuration of the two URLs and `more`.
fn mistakes(more: &[(&str, &str)]) -> Vec<String> {
    from_env(more).unwrap_err().0
}

fn one_mistake(name: &str, value: &str) -> String {
    let mut all = mistakes(&[(name, value)]);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn write(name: &str, text: &str) -> PathBuf {
    let id = uuid::Uuid::now_v7();
    let path = std::env::temp_dir().join(format!("statecast-{id}-{name}"));
    std::fs::write(&path, text).unwrap();
    path
}

fn from_file(name: &str, text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let path = write(name, text);
    let result = load(Some(&path), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    std::fs::remove_file(path).unwrap();
    result
}

fn toml(text: &str) -> Result<Config, ConfigErrors> {
    from_file("a.toml", text, &urls())
}

#[test]
fn two_urls_are_enough() {
    let config = from_env(&[]).unwrap();
    assert_eq!(config.name, "statecast");
    assert_eq!(config.postgres.url.expose(), PG);
    assert_eq!(config.rabbitmq.urls[0].expose(), MQ);
    assert_eq!(config.source.mode, Mode::Auto);
    assert_eq!(config.source.timeline_gap, 1_000_000);
    assert_eq!(config.source.poll.busy_interval, Duration::from_millis(5));
    assert_eq!(config.source.poll.idle_interval, Duration::from_millis(100));
    assert_eq!(config.source.poll.batch, 1000);
    assert_eq!(config.event.source, "/statecast");
    assert_eq!(config.rabbitmq.routing_key.to_string(), "{aggregate_type}.{event_type}");
    assert_eq!((config.rabbitmq.window, config.rabbitmq.lanes, config.rabbitmq.fence), (500, 1, true));
    assert_eq!(config.rabbitmq.max_message_size, 16 << 20);
    assert_eq!(config.rabbitmq.confirm_timeout, Duration::from_secs(30));
    assert_eq!(config.relay.read_ahead, 8 << 20);
    assert_eq!(config.retention.max_size, 10 << 30);
    assert_eq!(config.retention.chunk_rows, 1_000_000);
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:9465");
    assert_eq!(config.console.listen.map(|listen| listen.to_string()).as_deref(), Some("127.0.0.1:9466"));
    assert!(config.console.token.is_none() && !config.console.show_payload);
    assert_eq!(config.shutdown.grace, Duration::from_secs(20));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Text, "info"));
}

#[test]
fn without_anything_both_urls_are_asked_for() {
    let errors = load(None, std::iter::empty()).unwrap_err();
    assert_eq!(errors.0.len(), 2);
    let text = errors.to_string();
    assert!(text.contains("`postgres.url` is missing"), "{text}");
    assert!(text.contains("STATECAST_RABBITMQ__URLS"), "{text}");
}

#[test]
fn only_names_with_two_underscores_count() {
    // What Kubernetes puts into every pod beside a service named `statecast`.
    let config = from_env(&[
        ("STATECAST_SERVICE_HOST", "10.0.0.1"),
        ("STATECAST_PORT", "tcp://10.0.0.1:9465"),
        ("STATECAST_PORT_9465_TCP_ADDR", "10.0.0.1"),
        ("STATECAST__ODD", "x"),
        ("STATECASTX__NAME", "x"),
        ("HOME", "/root"),
        ("STATECAST_NAME", "orders"),
    ])
    .unwrap();
    assert_eq!(config.name, "orders");
    assert_eq!(config.event.source, "/orders");
    let env = [("STATECAST_POSTGRES_URL".to_owned(), PG.to_owned())];
    let errors = load(None, env.into_iter()).unwrap_err().to_string();
    assert!(
        errors.contains("STATECAST_POSTGRES_URL is set, but only names with two underscores count"),
        "{errors}"
    );
}

#[test]
fn the_environment_takes_strings_for_everything() {
    let config = from_env(&[
        ("STATECAST_SOURCE__POLL__BATCH", "250"),
        ("STATECAST_SOURCE__POLL__BUSY_INTERVAL", "1ms"),
        ("STATECAST_RABBITMQ__FENCE", "false"),
        ("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "1048576"),
        ("STATECAST_RELAY__READ_AHEAD", "64KiB"),
        ("STATECAST_RABBITMQ__QUEUES", "orders, audit"),
        ("STATECAST_EVENT__FORMAT", "binary"),
        ("STATECAST_LOG__LEVEL", "warn,statecast::sink=debug"),
    ])
    .unwrap();
    assert_eq!(config.source.poll.batch, 250);
    assert!(!config.rabbitmq.fence);
    assert_eq!(config.rabbitmq.max_message_size, 1 << 20);
    assert_eq!(config.relay.read_ahead, 65_536);
    let names: Vec<&str> = config.rabbitmq.queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(names, ["orders", "audit"]);
    assert_eq!(config.event.format, Format::Binary);
}

#[test]
fn an_empty_variable_is_none_but_its_name_must_exist() {
    assert_eq!(from_env(&[("STATECAST_SOURCE__MODE", "")]).unwrap().source.mode, Mode::Auto);
    let message = one_mistake("STATECAST_SOURCE__MOD", "");
    assert_eq!(message, "`STATECAST_SOURCE__MOD`: no such key; did you mean `STATECAST_SOURCE__MODE`?");
}

#[test]
fn lists_of_urls_as_one_string() {
    let all = "amqp://a:x,y@one/%2f, amqps://b:z@two/v amqp://three,amqp://four:5673,";
    let config = from_env(&[("STATECAST_RABBITMQ__URLS", all)]).unwrap();
    let urls: Vec<&str> = config.rabbitmq.urls.iter().map(SecretString::expose).collect();
    assert_eq!(urls, ["amqp://a:x,y@one/%2f", "amqps://b:z@two/v", "amqp://three", "amqp://four:5673"]);
}

#[test]
fn a_numeric_secret_stays_text() {
    let config = from_env(&[("STATECAST_POSTGRES__URL", "host=db password=0123 user=app")]).unwrap();
    assert!(config.postgres.url.expose().contains("password=0123"));
}

#[test]
fn file_then_environment() {
    let text = "name = \"orders\"\n[source.poll]\nbatch = 10\n[rabbitmq]\nwindow = 7\n";
    let env: Vec<_> = urls().into_iter().chain([("STATECAST_RABBITMQ__WINDOW", "9")]).collect();
    let config = from_file("a.toml", text, &env).unwrap();
    assert_eq!((config.source.poll.batch, config.rabbitmq.window), (10, 9));
    assert_eq!(config.event.source, "/orders");
}

#[test]
fn yaml_says_the_same() {
    let text = "
name: orders
postgres:
  url:
  tls:
rabbitmq:
  fence: false
  exchange: amq.topic
  queues:
    - name: q1
      bindings: [a.*, b.#]
      type: classic
      arguments: { x-max-length: 5, x-overflow: reject-publish, x-single-active-consumer: true }
    - q2
";
    for name in ["a.yaml", "a.yml", "a.YML"] {
        let config = from_file(name, text, &urls()).unwrap();
        assert_eq!(config.rabbitmq.exchange, "amq.topic");
        let queue = &config.rabbitmq.queues[0];
        assert_eq!(queue.bindings, ["a.*", "b.#"]);
        assert_eq!(queue.kind, QueueKind::Classic);
        assert_eq!(
            queue.arguments,
            [
                ("x-max-length".to_owned(), Argument::Int(5)),
                ("x-overflow".to_owned(), Argument::Text("reject-publish".into())),
                ("x-single-active-consumer".to_owned(), Argument::Bool(true)),
            ]
        );
        assert_eq!(config.rabbitmq.queues[1].kind, QueueKind::Quorum);
    }
}

#[test]
fn queues_of_toml() {
    let config =
        toml("[[rabbitmq.queues]]\nname = \"q\"\n[[rabbitmq.queues]]\nname = \"r\"\nbindings = \"a b\"")
            .unwrap();
    assert_eq!(config.rabbitmq.queues[0].bindings, ["#"]);
    assert_eq!(config.rabbitmq.queues[1].bindings, ["a", "b"]);
    let errors = toml(
        "[[rabbitmq.queues]]\nnam = \"q\"\n[[rabbitmq.queues]]\nname = \"amq.x\"\ntype = \"fifo\"\narguments = { x = [1], x-queue-type = \"classic\" }",
    )
    .unwrap_err()
    .to_string();
    for part in [
        "entry 1 has no key `nam`; did you mean `name`?",
        "entry 1: name is missing",
        "entry 2: name begins with `amq.`",
        "entry 2: type `fifo` is not valid; takes quorum, classic, stream",
        "argument `x` is a list",
        "argument `x-queue-type` is given by `type`",
    ] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
}

#[test]
fn unknown_keys_are_mistakes_everywhere() {
    let errors = from_file(
        "a.toml",
        "exchange = \"x\"\nzzz = 1\n[postgers]\nurl = \"postgres://u:hunter2@h/d\"\n[relay]\nread_ahed = \"8MiB\"\n[source.poll]\nbatch = { size = 1 }",
        &[("STATECAST_RABBITMQ__LANE", "2")],
    )
    .unwrap_err()
    .0;
    let text = errors.join("\n");
    for part in [
        "`exchange` (",
        "no such key; did you mean `rabbitmq.exchange`?",
        "`zzz` (",
        "`postgers` (",
        "did you mean `relay.read_ahead`?",
        "`STATECAST_RABBITMQ__LANE`: no such key; did you mean `STATECAST_RABBITMQ__LANES`?",
        "`source.poll.batch` (",
        "takes a whole number from 1 to 100000, not a table",
        "a.toml): no such key",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2"));
}

#[test]
fn a_section_is_no_value() {
    let errors = toml("postgres = \"postgres://u:hunter2@h/d\"").unwrap_err().to_string();
    assert!(errors.contains("is a table of keys: url, url_file, tls.mode"), "{errors}");
    assert!(!errors.contains("hunter2"));
}

#[test]
fn all_mistakes_are_reported_together() {
    let bad = [
        ("STATECAST_NAME", "Orders!"),
        ("STATECAST_SOURCE__MODE", "pol"),
        ("STATECAST_SOURCE__TIMELINE_GAP", "0"),
        ("STATECAST_SOURCE__POLL__BATCH", "many"),
        ("STATECAST_SOURCE__POLL__BUSY_INTERVAL", "5"),
        ("STATECAST_SOURCE__POLL__IDLE_INTERVAL", "61s"),
        ("STATECAST_SOURCE__WAL__RETAIN_MAX", "1 Gigabyte"),
        ("STATECAST_EVENT__SOURCE", "a b"),
        ("STATECAST_EVENT__FORMAT", "xml"),
        ("STATECAST_RABBITMQ__EXCHANGE", "amq.default"),
        ("STATECAST_RABBITMQ__ROUTING_KEY", "{order}"),
        ("STATECAST_RABBITMQ__DECLARE", "maybe"),
        ("STATECAST_RABBITMQ__WINDOW", "65536"),
        ("STATECAST_RABBITMQ__LANES", "0"),
        ("STATECAST_RABBITMQ__FENCE", "perhaps"),
        ("STATECAST_RABBITMQ__TLS__CA_FILE", "/nonexistent/ca.pem"),
        ("STATECAST_RELAY__READ_AHEAD", "1KiB"),
        ("STATECAST_RETENTION__CHUNK_ROWS", "999"),
        ("STATECAST_HTTP__LISTEN", "9465"),
        ("STATECAST_SHUTDOWN__GRACE", "11m"),
        ("STATECAST_LOG__FORMAT", "xml"),
        ("STATECAST_LOG__LEVEL", "inof"),
    ];
    let all = mistakes(&bad);
    for (name, _) in bad {
        assert!(all.iter().any(|line| line.contains(&format!("({name}): "))), "{name} in {all:#?}");
    }
    assert_eq!(all.len(), bad.len(), "{all:#?}");
    assert!(all.iter().all(|line| !line.contains('\n')));
    assert!(all.contains(
        &"`rabbitmq.lanes` (STATECAST_RABBITMQ__LANES): `0` is not valid; takes a whole number from 1 to 64".to_owned()
    ));
    assert!(all.iter().any(|line| line.ends_with("takes auto, wal, poll; did you mean poll?")), "{all:#?}");
}

#[test]
fn what_depends_on_two_keys() {
    let message = one_mistake("STATECAST_SOURCE__POLL__BUSY_INTERVAL", "200ms");
    assert!(message.ends_with("200ms is more than `source.poll.idle_interval`, 100ms"), "{message}");
    let message = one_mistake("STATECAST_RABBITMQ__TLS__MODE", "verify");
    assert!(message.contains("write amqps://"), "{message}");
    let create = ("STATECAST_RABBITMQ__DECLARE", "create");
    let all = mistakes(&[create, ("STATECAST_RABBITMQ__EXCHANGE", "amq.topic")]);
    assert!(all[0].contains("cannot be created"), "{all:?}");
    let file = write("cert.pem", "x");
    let path = file.to_str().unwrap();
    let message = one_mistake("STATECAST_POSTGRES__TLS__CERT_FILE", path);
    assert!(message.ends_with("needs `postgres.tls.key_file` beside it"), "{message}");
    let all =
        mistakes(&[("STATECAST_POSTGRES__TLS__MODE", "disable"), ("STATECAST_POSTGRES__TLS__CA_FILE", path)]);
    assert!(all[0].contains("has no effect"), "{all:?}");
    std::fs::remove_file(file).unwrap();
    let long = "x".repeat(128);
    assert!(one_mistake("STATECAST_EVENT__TYPE_PREFIX", &long).contains("up to 127 bytes"));
    assert!(from_env(&[("STATECAST_EVENT__TYPE_PREFIX", &long[..127])]).is_ok());
}

#[test]
fn values_of_the_wrong_kind() {
    let errors = toml("name = 7\n[postgres]\nurl = 0123\n").unwrap_err().0;
    assert!(errors.len() == 1, "TOML itself refuses 0123: {errors:?}");
    let errors =
        from_file("a.yaml", "name: 7\nrabbitmq:\n  urls: [1]\n  lanes: 1.5\n  fence: 1\n", &urls()[..1]);
    let text = errors.unwrap_err().to_string();
    for part in [
        "is a number; put the text in quotes",
        "entry 1 is a number, not text",
        "`1.5` is not valid",
        "`1` is not",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn broker_urls_mean_what_they_say() {
    let config =
        from_env(&[("STATECAST_RABBITMQ__URLS", "amqp://a:b@mq:5672/ amqp://mq/?heartbeat=5")]).unwrap();
    let read: Vec<&str> = config.rabbitmq.urls.iter().map(SecretString::expose).collect();
    assert_eq!(read, ["amqp://a:b@mq:5672/%2f", "amqp://mq/%2f?heartbeat=5"]);
    for url in read {
        let uri: lapin::uri::AMQPUri = url.parse().unwrap();
        assert_eq!(uri.vhost, "/");
    }
    let two = mistakes(&[("STATECAST_RABBITMQ__URLS", "amqp://mq http://x")]);
    assert!(two[0].contains("entry 2: is neither"), "{two:?}");
    let none = toml("[rabbitmq]\nurls = []").map(|config| config.rabbitmq.urls.len());
    assert_eq!(none.unwrap(), 1, "the environment wins");
    let none = from_file("a.toml", "[rabbitmq]\nurls = []", &urls()[..1]).unwrap_err().0;
    assert!(none[0].ends_with("is empty; at least one URL is needed"), "{none:?}");
}
