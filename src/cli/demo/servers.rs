//! The demo's servers: private ones, or the user's own.

use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::config::{self, Config};

/// Both URLs set: the user's own servers.
const OWN: [&str; 2] = ["STATECAST_POSTGRES__URL", "STATECAST_RABBITMQ__URLS"];
/// The demo's exchange and queue.
pub(super) const EXCHANGE: &str = "statecast.demo";

/// Running servers and the configuration that leads to them.
pub(super) struct Servers {
    pub(super) config: Arc<Config>,
    #[cfg(feature = "sandbox")]
    private: Option<(crate::sandbox::Postgres, crate::sandbox::Rabbitmq)>,
}

impl Servers {
    pub(super) async fn start() -> anyhow::Result<Servers> {
        let own = OWN.map(|name| std::env::var(name).ok().filter(|url| !url.is_empty()));
        match own {
            [Some(postgres), Some(urls)] => {
                println!("using your own servers ({} and {} are set)", OWN[0], OWN[1]);
                Self::with(&postgres, &urls)
            }
            [None, None] => Self::private().await,
            _ => bail!("set both {} and {}, or neither for private servers", OWN[0], OWN[1]),
        }
    }

    fn with(postgres: &str, urls: &str) -> anyhow::Result<Servers> {
        Ok(Servers {
            config: configure(postgres, urls)?,
            #[cfg(feature = "sandbox")]
            private: None,
        })
    }

    #[cfg(feature = "sandbox")]
    async fn private() -> anyhow::Result<Servers> {
        use crate::sandbox::{Postgres, Rabbitmq};
        println!("starting a private PostgreSQL and a private RabbitMQ (about 10 s)");
        let (postgres, rabbitmq) =
            tokio::join!(Postgres::start(Default::default()), Rabbitmq::start(Default::default()));
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        let url = postgres.create_database("shop").await?;
        let mut servers = Self::with(&url, &rabbitmq.url())?;
        println!("PostgreSQL on port {}, RabbitMQ on port {}", postgres.port(), rabbitmq.port());
        servers.private = Some((postgres, rabbitmq));
        Ok(servers)
    }

    #[cfg(not(feature = "sandbox"))]
    async fn private() -> anyhow::Result<Servers> {
        bail!(
            "this build cannot start private servers: build with --features sandbox, or set {} and {}",
            OWN[0],
            OWN[1]
        )
    }

    /// Stops private servers.
    pub(super) fn stop(self) {
        drop(self);
    }
}

/// The demo's configuration: the environment's, with the demo's own names.
fn configure(postgres: &str, urls: &str) -> anyhow::Result<Arc<Config>> {
    let fixed = [
        ("STATECAST_NAME", "demo"),
        (OWN[0], postgres),
        (OWN[1], urls),
        ("STATECAST_RABBITMQ__EXCHANGE", EXCHANGE),
        ("STATECAST_RABBITMQ__DECLARE", "create"),
        ("STATECAST_RABBITMQ__QUEUES", EXCHANGE),
    ];
    let given = config::environment().filter(|(name, _)| fixed.iter().all(|(fixed, _)| fixed != name));
    let defaults = [("STATECAST_HTTP__LISTEN", "127.0.0.1:0"), ("STATECAST_CONSOLE__LISTEN", "127.0.0.1:0")];
    let mut variables: Vec<(String, String)> = given.collect();
    for (name, value) in defaults {
        if variables.iter().all(|(given, _)| given != name) {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Ok(Arc::new(config::load(None, variables.into_iter()).context("the demo's configuration")?))
}

/// A URL that may be shown.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(a connection string)".to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("amqp://guest:se:cret@h:1/v"), "amqp://guest@h:1/v");
        assert_eq!(
            without_password("postgres://statecast@127.0.0.1:5/shop"),
            "postgres://statecast@127.0.0.1:5/shop"
        );
        assert_eq!(without_password("host=h password=x"), "(a connection string)");
    }
}
