//! A standby: looks twice a second who leads, and takes over when nobody does.
//!
//! It needs both sides: without its broker in reach it stays a standby that is not ready, and leaves the lead to one that
//! has. Takes the advisory lock where it is free. Where the lease is over, and this process has seen it unchanged for its
//! whole length, it takes the row, ends the predecessor's backends and takes the lock they held ([`lease`] says why both).

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::task::AbortOnDropHandle;

use super::Context;
use super::classify::{Class, SessionError, classify};
use super::lead::{ANSWER_TIMEOUT, CLAIM_TIMEOUT, answered, holder};
use crate::gate::{LEASE, RENEW_INTERVAL};
use crate::health::Role;
use crate::postgres::describe;
use crate::sink::{self, SinkError};
use crate::store::cursor::CursorError;
use crate::store::lease::{self, Backend, Holding};
use crate::store::predecessor::{self, Obstacle};

/// How often a standby looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// For PostgreSQL to answer a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a standby makes sure of its broker.
const BROKER_INTERVAL: Duration = Duration::from_secs(30);
/// How often it looks whether a broker that was not there is back.
const BROKER_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// For a predecessor's backends to let go of the advisory lock once they were told to end.
const TAKE_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks meanwhile.
const TAKE_INTERVAL: Duration = Duration::from_millis(20);
/// Component of `/ready`: the broker, for a standby.
const BROKER: &str = "broker";
/// Component of `/ready`: the predecessor.
const TAKEOVER: &str = "takeover";

/// Waits until this connection has the pipeline's advisory lock. Returns the backends that a former leader had.
///
/// # Errors
/// PostgreSQL does not answer, or a predecessor does not end.
pub(super) async fn wait(context: &Context, client: &Client) -> Result<Vec<Backend>, SessionError> {
    let mut standby = Standby {
        context,
        client,
        watch: Watch::default(),
        reach: Reach::begin(context).await?,
        judged: None,
    };
    let taken = standby.wait().await;
    for component in [BROKER, TAKEOVER] {
        context.health.clear_reason(component);
    }
    taken
}

struct Standby<'a> {
    context: &'a Context,
    client: &'a Client,
    watch: Watch,
    reach: Reach,
    /// The leader's epoch that was looked at for obstacles.
    judged: Option<i64>,
}

impl Standby<'_> {
    async fn wait(&mut self) -> Result<Vec<Backend>, SessionError> {
        let name = &self.context.config.name;
        loop {
            let reached = self.reach.look(self.context).await?;
            let look = lease::look(self.client, name, reached);
            let look = answered("looks who leads", LOOK_TIMEOUT, look).await?;
            if look.locked {
                return Ok(look.row.map(|row| row.backends).unwrap_or_default());
            }
            self.context.health.clear_reason("session");
            self.context.health.set_role(Role::Standby);
            let unchanged = self.watch.unchanged(&look.row, Instant::now());
            if reached && look.over && unchanged >= patience(&look.row) {
                if let Some(backends) = self.seize(&look.row).await? {
                    return Ok(backends);
                }
            } else if !look.over {
                self.judge(&look.row).await?;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Says in good time that a leader could not be followed.
    async fn judge(&mut self, row: &Option<Holding>) -> Result<(), SessionError> {
        let Some(row) = row.as_ref().filter(|row| self.judged != Some(row.epoch)) else {
            return Ok(());
        };
        match self.obstacle(&row.backends).await? {
            Some(Obstacle::MayNotEnd { .. }) if row.backends.is_empty() => {}
            Some(obstacle @ Obstacle::MayNotEnd { .. }) => {
                tracing::warn!("a leader that stops answering could not be followed: {obstacle}");
                self.context.health.set_warning(TAKEOVER, obstacle.to_string());
            }
            Some(Obstacle::Foreign(_)) | None => self.context.health.clear_reason(TAKEOVER),
        }
        self.judged = Some(row.epoch);
        Ok(())
    }

    async fn obstacle(&self, known: &[Backend]) -> Result<Option<Obstacle>, SessionError> {
        let looking = predecessor::obstacle(self.client, &self.context.config.name, known);
        let found = timeout(ANSWER_TIMEOUT, looking).await;
        found
            .map_err(|_| SessionError::Silent {
                doing: "looks at the leader's backends",
                limit: ANSWER_TIMEOUT,
            })?
            .map_err(SessionError::Predecessor)
    }

    /// Takes over from a leader that does not renew. `None`: not now.
    async fn seize(&mut self, row: &Option<Holding>) -> Result<Option<Vec<Backend>>, SessionError> {
        let name = &self.context.config.name;
        let known = row.as_ref().map(|row| row.backends.clone()).unwrap_or_default();
        if let Some(obstacle) = self.obstacle(&known).await? {
            // Nothing is taken that could not be kept: the leader may be back one day.
            self.context.health.set_reason(TAKEOVER, obstacle.to_string());
            if self.judged.replace(-1) != Some(-1) {
                tracing::warn!("the lease is over and cannot be taken: {obstacle}");
            }
            return Ok(None);
        }
        let epoch = match row {
            // Nobody has led yet: whoever has the lock has not come further than that.
            None => None,
            Some(seen) => match self.take_row(seen).await? {
                Taken::Row(epoch) => Some(epoch),
                Taken::Discarded => None,
                Taken::Not => return Ok(None),
            },
        };
        let former = row.as_ref().and_then(|row| row.holder.as_deref()).unwrap_or("nobody");
        tracing::warn!(former, epoch, "the leader does not renew its lease: taking over");
        let (until, mut renewed) = (Instant::now() + TAKE_LIMIT, Instant::now());
        loop {
            let look = lease::look(self.client, name, true);
            let look = answered("takes the lock", LOOK_TIMEOUT, look).await?;
            if look.row.as_ref().map(|row| row.epoch) != epoch {
                tracing::info!("another standby was faster");
                return Ok(None);
            }
            if look.locked {
                return Ok(Some(known));
            }
            // Only now: whoever was faster must not be ended.
            let ending = async {
                let ending = predecessor::end(self.client, name, &known, epoch);
                ending.await.map_err(SessionError::Predecessor)
            };
            let left = answered("ends its predecessor", ANSWER_TIMEOUT, ending).await?;
            if Instant::now() > until {
                let left = left.first().map_or_else(|| "its predecessor".to_owned(), ToString::to_string);
                return Err(SessionError::StillThere { left, limit: TAKE_LIMIT });
            }
            if let Some(epoch) = epoch.filter(|_| renewed.elapsed() > RENEW_INTERVAL) {
                renewed = Instant::now();
                answered("renews its lease", ANSWER_TIMEOUT, lease::renew(self.client, None, name, epoch))
                    .await?;
            }
            sleep(TAKE_INTERVAL).await;
        }
    }

    async fn take_row(&self, seen: &Holding) -> Result<Taken, SessionError> {
        let (name, holder) = (&self.context.config.name, holder());
        let taking = async {
            if seen.epoch == 0 {
                let discarded = lease::discard(self.client, name, seen).await?;
                return Ok(if discarded { Taken::Discarded } else { Taken::Not });
            }
            let seized = lease::seize(self.client, name, seen, &holder).await?;
            Ok::<_, CursorError>(seized.map_or(Taken::Not, Taken::Row))
        };
        match answered("takes the lease", ANSWER_TIMEOUT, taking).await {
            // Somebody is writing the row: the next look shows what.
            Err(SessionError::Cursor(CursorError::Sql { source, .. }))
                if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) =>
            {
                Ok(Taken::Not)
            }
            taken => taken,
        }
    }
}

/// What became of a row whose lease is over.
enum Taken {
    /// Ours, in this epoch.
    Row(i64),
    /// Nobody has led by it: it is gone.
    Discarded,
    /// Somebody has it.
    Not,
}

/// How long a lease has to be seen unchanged. While a new pipeline is made nobody renews.
fn patience(row: &Option<Holding>) -> Duration {
    if row.as_ref().is_some_and(|row| row.creating) { CLAIM_TIMEOUT } else { LEASE }
}

/// For how long the row has said the same about its leader, by this process's clock. Pure.
#[derive(Debug, Default)]
struct Watch(Option<(Option<Holding>, Instant)>);

impl Watch {
    /// `row` is what was seen just before `now`.
    fn unchanged(&mut self, row: &Option<Holding>, now: Instant) -> Duration {
        match &self.0 {
            Some((seen, since)) if seen == row => now.duration_since(*since),
            _ => {
                self.0 = Some((row.clone(), now));
                Duration::ZERO
            }
        }
    }
}

/// Whether this process reaches its broker: asked in the background, and not often.
struct Reach {
    asking: Option<AbortOnDropHandle<Result<(), SinkError>>>,
    next: Instant,
    reached: bool,
}

impl Reach {
    /// # Errors
    /// The broker is not there: nothing that this process could do as a leader.
    async fn begin(context: &Context) -> Result<Reach, SessionError> {
        ask(context).await.map_err(|error| SessionError::Task(error.to_string()))??;
        Ok(Reach { asking: None, next: Instant::now() + BROKER_INTERVAL, reached: true })
    }

    /// Was it there when it was last asked? Never waits.
    ///
    /// # Errors
    /// Only a change of our own configuration can help.
    async fn look(&mut self, context: &Context) -> Result<bool, SessionError> {
        if self.asking.as_ref().is_some_and(|asking| asking.is_finished())
            && let Some(asking) = self.asking.take()
        {
            let answer = asking.await.map_err(|error| SessionError::Task(error.to_string()))?;
            self.learn(context, answer)?;
        } else if self.asking.is_none() && Instant::now() >= self.next {
            self.asking = Some(AbortOnDropHandle::new(ask(context)));
        }
        Ok(self.reached)
    }

    fn learn(&mut self, context: &Context, answer: Result<(), SinkError>) -> Result<(), SessionError> {
        let pause = if answer.is_ok() { BROKER_INTERVAL } else { BROKER_RETRY_INTERVAL };
        self.next = Instant::now() + pause;
        let was = std::mem::replace(&mut self.reached, answer.is_ok());
        let Err(error) = answer.map_err(SessionError::Sink) else {
            context.health.clear_reason(BROKER);
            return Ok(());
        };
        if classify(&error) == Class::Permanent {
            return Err(error);
        }
        let text = describe(&error);
        if was {
            tracing::warn!("this standby does not reach its broker, and would not lead: {text}");
        }
        context.health.set_reason(BROKER, text);
        Ok(())
    }
}

fn ask(context: &Context) -> JoinHandle<Result<(), SinkError>> {
    let config = context.config.clone();
    tokio::spawn(async move {
        sink::connect::reach(&config.rabbitmq, &format!("statecast {} standby", config.name)).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: i64, lease_until: &str) -> Option<Holding> {
        Some(Holding {
            epoch,
            lease_until: Some(lease_until.to_owned()),
            holder: None,
            backends: Vec::new(),
            creating: false,
        })
    }

    #[test]
    fn any_change_begins_anew() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let s = Duration::from_secs;
        let mut watch = Watch::default();
        assert_eq!(watch.unchanged(&row(1, "10"), at(0)), s(0));
        assert_eq!(watch.unchanged(&row(1, "10"), at(3)), s(3));
        assert_eq!(watch.unchanged(&row(1, "11"), at(4)), s(0), "renewed, in the past or not");
        assert_eq!(watch.unchanged(&row(1, "11"), at(9)), s(5));
        assert_eq!(watch.unchanged(&row(2, "11"), at(10)), s(0), "another leader");
        assert_eq!(watch.unchanged(&None, at(11)), s(0), "dropped by a person");
        assert_eq!(watch.unchanged(&None, at(12)), s(1));
    }

    #[test]
    fn a_pipeline_that_is_being_made_has_time() {
        let creating = Some(Holding { creating: true, ..row(0, "Infinity").unwrap() });
        assert_eq!(patience(&creating), CLAIM_TIMEOUT);
        assert_eq!((patience(&row(1, "5")), patience(&None)), (LEASE, LEASE));
    }
}
