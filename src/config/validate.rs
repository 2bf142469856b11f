//! The rules: from what was given to a [`Config`], or all that is wrong with it.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use lapin::uri::AMQPUri;
use tokio_postgres::config::SslMode;
use tracing_subscriber::filter::LevelFilter;

use super::raw::Raw;
use super::reader::Reader;
use super::template::{EVENT_TYPE_MAX, SHORT_STRING_MAX};
use super::{
    Config, Console, Declare, EventConfig, Format, Http, Log, LogFormat, Mode, Ordering, Poll, Postgres,
    Rabbitmq, Relay, Retention, SecretString, Shutdown, Source, Template, Tls, TlsMode, Unroutable, Wal,
    otel, queues,
};

const NAME_MAX: usize = 48;
const SOURCE_MAX: usize = 512;
/// Bytes of the console's token, at least: it is all that stands between a stranger and a discard.
const TOKEN_MIN: usize = 16;
/// And at most: it must fit in a request's head.
const TOKEN_MAX: usize = 1024;
/// PostgreSQL's NAMEDATALEN − 1.
const IDENTIFIER_MAX: usize = 63;

/// Validates every key. `errors` holds what is wrong already.
pub(super) fn config(raw: &Raw, errors: Vec<String>) -> Result<Config, Vec<String>> {
    let mut reader = Reader::new(raw, errors);
    let r = &mut reader;
    let name = name(r);
    let config = Config {
        postgres: postgres(r),
        source: source(r),
        event: event(r, &name),
        rabbitmq: rabbitmq(r),
        relay: Relay { read_ahead: r.size("relay.read_ahead") },
        unroutable: Unroutable { park_after: r.duration("unroutable.park_after") },
        retention: Retention {
            keep: r.duration("retention.keep"),
            max_size: r.size("retention.max_size"),
            chunk_rows: r.number("retention.chunk_rows"),
        },
        http: Http { listen: listen(r) },
        console: console(r),
        otel: {
            let tls = tls(r, "otel.tls");
            otel::read(r, tls)
        },
        shutdown: Shutdown { grace: r.duration("shutdown.grace") },
        log: log(r),
        name,
    };
    match reader.errors {
        errors if errors.is_empty() => Ok(config),
        errors => Err(errors),
    }
}

fn name(r: &mut Reader<'_>) -> String {
    let name = r.text("name");
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(valid) {
        r.invalid("name", &name, "");
    }
    name
}

fn postgres(r: &mut Reader<'_>) -> Postgres {
    let tls = tls(r, "postgres.tls");
    let mut url = SecretString::new(String::new());
    match r.secret("postgres.url") {
        None => r.missing("postgres.url"),
        Some(texts) => {
            for given in texts {
                if let Err(what) = check_postgres_url(&given.text, tls.mode) {
                    r.errors.push(format!("{}: {what}", given.place));
                }
                url = SecretString::new(given.text);
            }
        }
    }
    Postgres { url, tls }
}

/// What is wrong with `url`, in words that hold nothing of it but names of options.
fn check_postgres_url(url: &str, tls: TlsMode) -> Result<(), String> {
    let config: tokio_postgres::Config = url.parse().map_err(|error| postgres_mistake(&error))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("names no host".into());
    }
    match (tls, config.get_ssl_mode()) {
        (TlsMode::Verify, SslMode::Disable) => {
            Err("says sslmode=disable, but postgres.tls.mode is verify; keep one".into())
        }
        (TlsMode::Disable, SslMode::Require) => {
            Err("says sslmode=require, but postgres.tls.mode is disable; keep one".into())
        }
        _ => Ok(()),
    }
}

fn postgres_mistake(error: &tokio_postgres::Error) -> String {
    // The parser's reason may quote a piece of the password; only names of options that exist are passed on.
    const TLS_OPTIONS: [&str; 3] = ["sslrootcert", "sslcert", "sslkey"];
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    let option = reason.split('`').nth(1).unwrap_or_default();
    if reason.starts_with("invalid value for option") {
        let hint = match option {
            "sslmode" => {
                " (it knows disable, prefer and require; postgres.tls.mode = \"verify\" verifies certificate and name)"
            }
            _ => "",
        };
        return format!("holds an invalid value for its option {option}{hint}");
    }
    if reason.starts_with("unknown option") && TLS_OPTIONS.contains(&option) {
        return format!("holds the option {option}; use the files under postgres.tls instead");
    }
    if reason.starts_with("unknown option") {
        return "holds an option that does not exist, or an unquoted value with a space".into();
    }
    "cannot be read: takes postgres://user:password@host:5432/database (characters such as @ : / in a password as %40 %3A %2F), or key=value pairs"
        .into()
}

fn tls(r: &mut Reader<'_>, section: &str) -> Tls {
    let mode = match r.choice(&format!("{section}.mode")).as_str() {
        "disable" => TlsMode::Disable,
        "verify" => TlsMode::Verify,
        _ => TlsMode::Url,
    };
    let paths = ["ca_file", "cert_file", "key_file"].map(|name| format!("{section}.{name}"));
    let given = paths.each_ref().map(|path| r.raw.get(path).is_some());
    let [ca_file, cert_file, key_file] = paths.each_ref().map(|path| r.file(path));
    let [_, cert, key] = &paths;
    match given {
        [_, true, false] => r.fail(cert, format!("needs `{key}` beside it")),
        [_, false, true] => r.fail(key, format!("needs `{cert}` beside it")),
        _ => {}
    }
    if mode == TlsMode::Disable {
        for path in paths.iter().zip(given).filter_map(|(path, given)| given.then_some(path)) {
            r.fail(path, format!("has no effect while `{section}.mode` is disable; remove one"));
        }
    }
    Tls { mode, ca_file, cert_file, key_file }
}

fn source(r: &mut Reader<'_>) -> Source {
    let mode = match r.choice("source.mode").as_str() {
        "wal" => Mode::Wal,
        "poll" => Mode::Poll,
        _ => Mode::Auto,
    };
    let busy_interval = r.duration("source.poll.busy_interval");
    let idle_interval = r.duration("source.poll.idle_interval");
    if busy_interval > idle_interval {
        let shown = super::units::show_duration;
        let what = format!(
            "{} is more than `source.poll.idle_interval`, {}",
            shown(busy_interval),
            shown(idle_interval)
        );
        r.fail("source.poll.busy_interval", what);
    }
    let publication = r.text("source.wal.publication");
    if !(1..=IDENTIFIER_MAX).contains(&publication.len()) || publication.contains('\0') {
        r.invalid("source.wal.publication", &publication, "");
    }
    Source {
        mode,
        timeline_gap: r.number("source.timeline_gap"),
        poll: Poll {
            busy_interval,
            idle_interval,
            batch: u32::try_from(r.number("source.poll.batch")).unwrap_or(1),
        },
        wal: Wal {
            publication,
            reconcile_interval: r.duration("source.wal.reconcile_interval"),
            lag_max: r.duration("source.wal.lag_max"),
            retain_max: r.size("source.wal.retain_max"),
        },
    }
}

fn event(r: &mut Reader<'_>, name: &str) -> EventConfig {
    let refused = |c: char| c.is_whitespace() || c.is_control();
    let source = match r.raw.get("event.source") {
        Some(_) => r.text("event.source"),
        None => format!("/{name}"),
    };
    // The characters that RFC 3986 has no place for; a reference that parses is a harder test than consumers make.
    let not_uri = |c: char| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(c);
    if source.is_empty() || source.len() > SOURCE_MAX || source.contains(not_uri) {
        r.invalid("event.source", &source, "");
    }
    let type_prefix = r.text("event.type_prefix");
    if type_prefix.len() + EVENT_TYPE_MAX > SHORT_STRING_MAX || type_prefix.contains(refused) {
        r.invalid("event.type_prefix", &type_prefix, "");
    }
    let format = match r.choice("event.format").as_str() {
        "binary" => Format::Binary,
        _ => Format::Structured,
    };
    EventConfig { source, type_prefix, format }
}

fn rabbitmq(r: &mut Reader<'_>) -> Rabbitmq {
    let tls = tls(r, "rabbitmq.tls");
    let declare = match r.choice("rabbitmq.declare").as_str() {
        "create" => Declare::Create,
        _ => Declare::Check,
    };
    let ordering = match r.choice("rabbitmq.ordering").as_str() {
        "pipelined" => Ordering::Pipelined,
        _ => Ordering::Strict,
    };
    Rabbitmq {
        urls: broker_urls(r, tls.mode),
        exchange: exchange(r, declare),
        routing_key: routing_key(r),
        declare,
        ordering,
        window: usize::try_from(r.number("rabbitmq.window")).unwrap_or(1),
        lanes: usize::try_from(r.number("rabbitmq.lanes")).unwrap_or(1),
        fence: r.boolean("rabbitmq.fence"),
        max_message_size: r.size("rabbitmq.max_message_size"),
        confirm_timeout: r.duration("rabbitmq.confirm_timeout").max(Duration::from_millis(1)),
        tls,
        management_url: management_url(r),
        queues: queues::read(r),
    }
}

fn broker_urls(r: &mut Reader<'_>, tls: TlsMode) -> Vec<SecretString> {
    let before = r.errors.len();
    let Some(texts) = r.secret("rabbitmq.urls") else {
        r.missing("rabbitmq.urls");
        return Vec::new();
    };
    if texts.is_empty() && r.errors.len() == before {
        r.fail("rabbitmq.urls", "is empty; at least one URL is needed");
    }
    let mut urls = Vec::new();
    for given in texts {
        match check_broker_url(given.text, tls) {
            Ok(url) => urls.push(SecretString::new(url)),
            Err(what) => r.errors.push(format!("{}: {what}", given.place)),
        }
    }
    urls
}

/// The URL as lapin will understand it, or what is wrong with it in words that hold nothing of it.
fn check_broker_url(url: String, tls: TlsMode) -> Result<String, String> {
    const EXAMPLE: &str =
        "takes amqp://user:password@host:5672/%2f (characters such as @ : / in a password as %40 %3A %2F)";
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("is not a URL; {EXAMPLE}"));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match (scheme, tls) {
        ("amqp", TlsMode::Verify) => {
            return Err("is amqp://, but rabbitmq.tls.mode is verify; write amqps://".into());
        }
        ("amqps", TlsMode::Disable) => {
            return Err("is amqps://, but rabbitmq.tls.mode is disable; keep one".into());
        }
        ("amqp" | "amqps", _) => {}
        _ => return Err("is neither amqp:// nor amqps://".into()),
    }
    // lapin takes `localhost` for both.
    if host.starts_with('[') {
        return Err("holds an IPv6 address, which the client cannot read; give a host name".into());
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(format!("names no host; {EXAMPLE}"));
    }
    let uri: AMQPUri = url.parse().map_err(|_: String| format!("cannot be read; {EXAMPLE}"))?;
    // `amqp://host/` would mean the virtual host "", which no broker has: the default one is meant.
    Ok(if uri.vhost.is_empty() {
        url.replacen(&format!("{authority}/"), &format!("{authority}/%2f"), 1)
    } else {
        url
    })
}

fn exchange(r: &mut Reader<'_>, declare: Declare) -> String {
    let path = "rabbitmq.exchange";
    let exchange = r.text(path);
    if exchange.is_empty() || exchange == "amq.default" {
        r.fail(path, "the default exchange is refused: it routes by queue name, and so hides that bindings are missing");
    } else if exchange.len() > SHORT_STRING_MAX || exchange.chars().any(char::is_control) {
        r.invalid(path, &exchange, "");
    } else if declare == Declare::Create && exchange.starts_with("amq.") {
        r.fail(
            path,
            "begins with `amq.`, which the broker reserves: it cannot be created; use declare = \"check\"",
        );
    }
    exchange
}

fn routing_key(r: &mut Reader<'_>) -> Template {
    let text = r.text("rabbitmq.routing_key");
    Template::parse(&text).unwrap_or_else(|error| {
        r.fail("rabbitmq.routing_key", error);
        Template { parts: Vec::new() }
    })
}

fn management_url(r: &mut Reader<'_>) -> Option<SecretString> {
    let given = r.secret("rabbitmq.management_url")?.pop()?;
    let rest = given.text.strip_prefix("http://").or_else(|| given.text.strip_prefix("https://"));
    let host = rest
        .map(|rest| rest.split(['/', '?']).next().unwrap_or_default().rsplit('@').next().unwrap_or_default());
    let refused = given.text.chars().any(|c| c.is_whitespace() || c.is_control());
    match host {
        Some(host) if !host.is_empty() && !host.starts_with(':') && !refused => {}
        _ => r.errors.push(format!("{}: takes a URL such as http://user:password@host:15672", given.place)),
    }
    Some(SecretString::new(given.text))
}

fn listen(r: &mut Reader<'_>) -> SocketAddr {
    let text = r.text("http.listen");
    text.trim().parse().unwrap_or_else(|_| {
        r.invalid("http.listen", &text, "");
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn console(r: &mut Reader<'_>) -> Console {
    const PATH: &str = "console.listen";
    let before = r.errors.len();
    let token = token(r);
    let token_is_wrong = r.errors.len() > before;
    let text = r.text(PATH);
    let listen = match text.trim() {
        "off" => None,
        text => match text.parse::<SocketAddr>() {
            Ok(listen) => Some(listen),
            Err(_) => {
                r.invalid(PATH, text, "");
                None
            }
        },
    };
    if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback())
        && token.is_none()
        && !token_is_wrong
    {
        let what = format!(
            "{listen} can be reached from other machines, and reading there needs a token: set `console.token_file`, or listen on 127.0.0.1:9466, or say \"off\""
        );
        r.fail(PATH, what);
    }
    Console { listen, token, show_payload: r.boolean("console.show_payload") }
}

fn token(r: &mut Reader<'_>) -> Option<SecretString> {
    let given = r.secret("console.token")?.pop()?;
    // A browser sends it in a header.
    let sendable = given.text.bytes().all(|byte| byte.is_ascii_graphic());
    if !(TOKEN_MIN..=TOKEN_MAX).contains(&given.text.len()) || !sendable {
        r.errors.push(format!(
            "{}: takes {TOKEN_MIN} to {TOKEN_MAX} letters, digits or signs of ASCII without spaces, such as `openssl rand -hex 24` prints",
            given.place
        ));
    }
    Some(SecretString::new(given.text))
}

fn log(r: &mut Reader<'_>) -> Log {
    let format = match r.choice("log.format").as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let level = r.text("log.level");
    // A filter takes a word that is no level (`inof`) for a target, and would log next to nothing.
    let word = |directive: &str| directive.contains('=') || directive.trim().parse::<LevelFilter>().is_ok();
    let parses = tracing_subscriber::EnvFilter::builder().parse(&level).is_ok();
    if level.trim().is_empty() || !level.split(',').all(word) || !parses {
        r.invalid("log.level", &level, "");
    }
    Log { format, level }
}
