//! One server of several: each host of `postgres.url`, and each address of its name, is tried for a time of its own.
//!
//! The client's own list of hosts will not do. Its timeout covers the TCP connection alone, and the kernel of a host whose
//! PostgreSQL is frozen accepts: the first such host would use up all the time there is, and the promoted one behind it
//! would never be asked.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tokio_postgres::config::{Config, Host, LoadBalanceHosts};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{CONNECT_TIMEOUT, Guard, Settings, chain, run, set_up};
use crate::reached::{Answer, Reached};

/// [`CONNECT_TIMEOUT`] where there is another server to try.
const HURRIED_TIMEOUT: Duration = Duration::from_secs(3);
/// How a server is refused that accepts no writes: tokio-postgres has no kind to match on, only this text.
pub(super) const READ_ONLY: &str = "does not allow writes";

/// Of this process.
static REACHED: Reached = Reached::new();

/// Why no server is ours.
#[derive(Debug)]
pub(super) enum Failure {
    /// What the last one said.
    Said(tokio_postgres::Error),
    /// The last one has not answered in time.
    Silent,
}

/// One address, as the only one of a configuration.
#[derive(Clone)]
struct Server {
    config: Config,
    /// To remember it by.
    at: String,
}

/// How long [`connect`] takes at most for `count` servers.
pub(super) fn patience(count: usize) -> Duration {
    let each = HURRIED_TIMEOUT + CONNECT_TIMEOUT;
    CONNECT_TIMEOUT + each * u32::try_from(count).unwrap_or(u32::MAX)
}

/// Connects to the first server that takes us, in the order of the list, but for those that failed last.
///
/// Where nobody says anything all are asked once more, with more patience: they may be slow. Where a server speaks and
/// refuses, such as a standby that is about to be promoted, only those are that said nothing the last time either: the
/// caller tries again.
pub(super) async fn connect(settings: &Settings) -> Result<(Client, Guard), Failure> {
    let mut servers = servers(&settings.config).await;
    let at = servers.iter().map(|server| &server.at);
    let known_silent: Vec<String> = at.filter(|at| REACHED.last(at) == Answer::None).cloned().collect();
    REACHED.order(&mut servers, |server| &server.at);
    let alone = servers.len() == 1;
    let (mut last, mut silent, mut spoken) = (Failure::Silent, Vec::new(), false);
    for server in servers {
        match attempt(settings, &server, if alone { CONNECT_TIMEOUT } else { HURRIED_TIMEOUT }).await {
            Ok(pair) => return Ok(pair),
            Err(Failure::Silent) => silent.push(server),
            Err(Failure::Said(error)) => {
                spoken |= error.as_db_error().is_some() || chain(&error).contains(READ_ONLY);
                last = Failure::Said(error);
            }
        }
    }
    if alone {
        return Err(last);
    }
    for server in silent.into_iter().filter(|server| !spoken || known_silent.contains(&server.at)) {
        match attempt(settings, &server, CONNECT_TIMEOUT).await {
            Ok(pair) => return Ok(pair),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// From the TCP connection to a session that is set up and writable, all within `limit`.
async fn attempt(settings: &Settings, server: &Server, limit: Duration) -> Result<(Client, Guard), Failure> {
    let opening = async {
        let (client, guard) = open(settings, &server.config).await?;
        set_up(&client).await?;
        Ok((client, guard))
    };
    let (answer, result) = match timeout(limit, opening).await {
        Ok(Ok(pair)) => (Answer::Good, Ok(pair)),
        Ok(Err(error)) => (Answer::Refused, Err(Failure::Said(error))),
        Err(_) => (Answer::None, Err(Failure::Silent)),
    };
    REACHED.note(&server.at, answer);
    result
}

async fn open(settings: &Settings, config: &Config) -> Result<(Client, Guard), tokio_postgres::Error> {
    match &settings.tls {
        Some(tls) => {
            let (client, connection) = config.connect(MakeRustlsConnect::new(tls.clone())).await?;
            Ok((client, Guard(tokio::spawn(run(connection)))))
        }
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            Ok((client, Guard(tokio::spawn(run(connection)))))
        }
    }
}

/// Each entry of the list of hosts as the only one. A list that does not fit together stays as it is.
pub(super) fn entries(config: &Config) -> Vec<Config> {
    let Some(count) = count(config) else { return vec![config.clone()] };
    let entry = |i: usize| {
        let mut only = single(config, config.get_hosts().get(i), port(config, i));
        config.get_hostaddrs().get(i).map(|address| only.hostaddr(*address));
        only
    };
    (0..count).map(entry).collect()
}

/// Entries of the list; `None` where hosts, addresses and ports do not fit together.
fn count(config: &Config) -> Option<usize> {
    let (hosts, addresses, ports) =
        (config.get_hosts().len(), config.get_hostaddrs().len(), config.get_ports().len());
    let count = hosts.max(addresses);
    let fits = |len: usize| len == count || len == 0;
    (count > 0 && fits(hosts) && fits(addresses) && (fits(ports) || ports == 1)).then_some(count)
}

fn port(config: &Config, i: usize) -> u16 {
    let ports = config.get_ports();
    ports.get(i).or(ports.first()).copied().unwrap_or(5432)
}

/// Every address of every host, in the order of the list (`load_balance_hosts=random`: in none).
///
/// A name that cannot be looked up stays a name, and a list that does not fit together stays as it is: the client says
/// what is wrong with them.
async fn servers(config: &Config) -> Vec<Server> {
    let Some(count) = count(config) else {
        return vec![Server { config: config.clone(), at: String::new() }];
    };
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let limit = if count == 1 { CONNECT_TIMEOUT } else { HURRIED_TIMEOUT };
    let looking_up = (0..count).map(async |i| {
        let port = port(config, i);
        let only = single(config, hosts.get(i), port);
        let found = match (addresses.get(i), hosts.get(i)) {
            (Some(address), _) => vec![*address],
            (None, Some(Host::Tcp(name))) => match timeout(limit, lookup_host((name.as_str(), port))).await {
                Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            },
            (None, _) => Vec::new(),
        };
        let host = match hosts.get(i) {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => String::new(),
        };
        if found.is_empty() {
            return vec![Server { config: only, at: format!("{host}:{port}") }];
        }
        let addressed = |address: std::net::IpAddr| {
            let mut config = only.clone();
            config.hostaddr(address);
            Server { config, at: format!("{host} {address}:{port}") }
        };
        found.into_iter().map(addressed).collect()
    });
    let mut servers: Vec<Server> = join_all(looking_up).await.into_iter().flatten().collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut servers);
    }
    servers
}

/// `config` with this host alone and no address. (A configuration cannot be told to forget its hosts.)
fn single(config: &Config, host: Option<&Host>, port: u16) -> Config {
    let mut only = Config::new();
    only.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .load_balance_hosts(config.get_load_balance_hosts())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .port(port);
    match host {
        Some(Host::Tcp(name)) => only.host(name),
        Some(Host::Unix(path)) => only.host_path(path),
        None => &mut only,
    };
    config.get_user().map(|user| only.user(user));
    config.get_password().map(|password| only.password(password));
    config.get_dbname().map(|name| only.dbname(name));
    config.get_options().map(|options| only.options(options));
    config.get_application_name().map(|name| only.application_name(name));
    config.get_connect_timeout().map(|limit| only.connect_timeout(*limit));
    config.get_tcp_user_timeout().map(|limit| only.tcp_user_timeout(*limit));
    config.get_keepalives_interval().map(|interval| only.keepalives_interval(interval));
    config.get_keepalives_retries().map(|retries| only.keepalives_retries(retries));
    only
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listed(url: &str) -> Vec<String> {
        servers(&url.parse().unwrap()).await.into_iter().map(|server| server.at).collect()
    }

    #[tokio::test]
    async fn every_host_and_address_in_order_with_its_port() {
        assert_eq!(
            listed("postgres://u@127.0.0.2:5433,127.0.0.1:5434/d").await,
            ["127.0.0.2 127.0.0.2:5433", "127.0.0.1 127.0.0.1:5434"]
        );
        assert_eq!(listed("host=/run/pg,/other port=5440 user=u").await, ["/run/pg:5440", "/other:5440"]);
        assert_eq!(listed("hostaddr=::1,127.0.0.1 user=u").await, [" ::1:5432", " 127.0.0.1:5432"]);
        assert_eq!(listed("host=a hostaddr=127.0.0.1 user=u").await, ["a 127.0.0.1:5432"]);
        assert_eq!(listed("host=name.invalid,127.0.0.1 user=u").await[0], "name.invalid:5432");
        // The client says what is wrong with these.
        for url in ["user=u", "host=a,b hostaddr=127.0.0.1", "host=a,b,c port=1,2"] {
            assert_eq!(listed(url).await, [""], "{url}");
        }
        let random = "host=127.0.0.1,127.0.0.2 load_balance_hosts=random";
        let mut first = std::collections::HashSet::new();
        while first.len() < 2 {
            first.insert(listed(random).await.swap_remove(0));
        }
    }

    #[test]
    fn each_entry_alone() {
        let entries = |url: &str| entries(&url.parse().unwrap());
        let two = entries("postgres://u@a:1,b:2/d");
        assert_eq!(two.len(), 2);
        assert_eq!((two[1].get_hosts().len(), two[1].get_ports()), (1, &[2][..]));
        let addressed = entries("host=a,b hostaddr=127.0.0.1,127.0.0.2 user=u");
        assert_eq!(addressed[1].get_hostaddrs(), ["127.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
        for url in ["user=u", "host=a,b hostaddr=127.0.0.1"] {
            assert_eq!(entries(url), [url.parse().unwrap()], "{url}");
        }
    }

    /// Nothing that the URL says is lost on the way.
    #[tokio::test]
    async fn one_server_has_the_settings_of_all() {
        let config: Config = "host=h hostaddr=127.0.0.1 port=7 user=u password=p dbname=d options='-c a=b'
            application_name=n sslmode=require sslnegotiation=direct connect_timeout=3 tcp_user_timeout=4 keepalives=0
            keepalives_idle=5 keepalives_interval=6 keepalives_retries=7 target_session_attrs=read-write
            channel_binding=require load_balance_hosts=random"
            .parse()
            .unwrap();
        let servers = servers(&config).await;
        assert!(servers.len() == 1 && servers[0].config == config);
    }
}
