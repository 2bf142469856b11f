//! From a connection to a leader: look at the server, wait for the lead, claim the cursor row; and hold the lease until the
//! keeper does.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use super::classify::SessionError;
use super::{Context, standby};
use crate::backend::Part;
use crate::gate::{Gate, Moment, RENEW_INTERVAL};
use crate::postgres;
use crate::relay::memory::History;
use crate::store::cursor::{self, Claim};
use crate::store::lease::{self, Backend};
use crate::store::{predecessor, preflight};

/// For PostgreSQL to answer what a session asks before its parts run. More than their `statement_timeout`.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for the claim, which may count a whole outbox (`--from now`).
pub(super) const CLAIM_TIMEOUT: Duration = Duration::from_secs(11 * 60);

/// A standby waits for a lock no longer than for its next look. A leader that stops between two statements of a
/// transaction keeps the row locked: the server ends it before its successor needs the row.
const STANDBY_SETTINGS: &str =
    "SET synchronous_commit = local; SET lock_timeout = '1s'; SET statement_timeout = '10s';
     SET idle_in_transaction_session_timeout = '3s'";

/// A leader's claim on the pipeline, with the connection that holds it.
pub(super) struct Lead {
    pub(super) client: Client,
    pub(super) guard: postgres::Guard,
    pub(super) claim: Claim,
    pub(super) history: History,
    /// Open while the lease is good.
    pub(super) gate: Arc<Gate>,
    /// What a former leader had.
    predecessor: Vec<Backend>,
}

/// The answer, if there is one in time.
pub(super) async fn answered<T, E: Into<SessionError>>(
    doing: &'static str,
    limit: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, SessionError> {
    match timeout(limit, question).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(SessionError::Silent { doing, limit }),
    }
}

/// Who we are, for people who look at the cursor row.
pub(super) fn holder() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned());
    format!("{host}/{}", std::process::id())
}

/// Connects, looks at the server, waits to be the leader and claims the cursor row.
///
/// # Errors
/// PostgreSQL, or the broker is not in reach.
pub(super) async fn lead(context: &Context) -> Result<Lead, SessionError> {
    let config = &context.config;
    let name = &config.name;
    let (mut client, guard) =
        postgres::connect(&config.postgres, &Part::Standby.application_name(name)).await?;
    let other = postgres::connect(&config.postgres, &format!("statecast {name} preflight")).await?;
    answered("looks for a pooler", ANSWER_TIMEOUT, preflight::own_processes(&client, &other.0)).await?;
    drop(other);
    let settings = async { client.batch_execute(STANDBY_SETTINGS).await.map_err(SessionError::Setup) };
    answered("is set up", ANSWER_TIMEOUT, settings).await?;
    answered("looks at the server", ANSWER_TIMEOUT, preflight::preflight(&client, None)).await?;
    let predecessor = standby::wait(context, &client).await?;

    // Only now can nobody else move the row or the facts that are judged against it.
    let row = answered("reads the cursor", ANSWER_TIMEOUT, lease::look(&client, name, false)).await?.row;
    let last = answered("reads the cursor", ANSWER_TIMEOUT, cursor::last(&client, name)).await?;
    let server = answered("looks at the server", ANSWER_TIMEOUT, preflight::preflight(&client, last)).await?;
    let (start, gap, holder) = (context.options.start, config.source.timeline_gap, holder());
    let epoch = row.map_or(0, |row| row.epoch);
    let claim = cursor::claim(&mut client, name, &server, start, &holder, gap, Some(epoch));
    let claim = answered("claims the cursor", CLAIM_TIMEOUT, claim).await?;
    let lead = Lead {
        client,
        guard,
        claim,
        history: (server.system_identifier, server.timeline),
        gate: Arc::new(Gate::new()),
        predecessor,
    };
    // A claim may take long; the gate opens with what is certain to be short.
    lead.renew(name).await?;
    lead.become_keeper(name).await?;
    tracing::info!(epoch = lead.claim.epoch, "leading");
    Ok(lead)
}

impl Lead {
    /// Renews the lease.
    async fn renew(&self, pipeline: &str) -> Result<(), SessionError> {
        let before = Moment::now();
        let renew = lease::renew(&self.client, None, pipeline, self.claim.epoch);
        answered("renews its lease", ANSWER_TIMEOUT, renew).await?;
        self.gate.renewed(before);
        Ok(())
    }

    async fn become_keeper(&self, pipeline: &str) -> Result<(), SessionError> {
        let name = Part::Keeper.application_name(pipeline);
        let settings =
            "SELECT set_config('application_name', $1, false), set_config('lock_timeout', '5s', false)";
        let setting = async { self.client.query_one(settings, &[&name]).await.map_err(SessionError::Setup) };
        answered("is set up", ANSWER_TIMEOUT, setting).await.map(|_| ())
    }

    /// Ends what a former leader has left on the server.
    ///
    /// # Errors
    /// SQL.
    pub(super) async fn clear(&self, pipeline: &str) -> Result<(), SessionError> {
        let ending = async {
            let ours = Some(self.claim.epoch);
            let ending = predecessor::end_and_wait(&self.client, pipeline, &self.predecessor, ours);
            ending.await.map_err(SessionError::Predecessor)
        };
        let left = answered("ends what its predecessor has left", ANSWER_TIMEOUT, ending).await?;
        if let Some(first) = left.first() {
            tracing::warn!(backends = left.len(), "a former leader is still connected: {first}");
        }
        Ok(())
    }

    /// Renews the lease until that fails, or until it was too slow. For as long as there is no keeper.
    pub(super) async fn keep(&self, pipeline: &str) -> SessionError {
        let renewing = async {
            loop {
                sleep(RENEW_INTERVAL).await;
                if let Err(error) = self.renew(pipeline).await {
                    return error;
                }
            }
        };
        tokio::select! {
            error = renewing => error,
            () = self.gate.run_out() => SessionError::LeaseLost,
        }
    }
}
