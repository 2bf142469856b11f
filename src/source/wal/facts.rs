//! What the server says about streaming: whether a stream could run, what stands in its way, and how one that runs does.
//!
//! Asked over an ordinary connection with the rights of the relay's login; nothing here changes anything.

mod obstacle;

use tokio_postgres::{Client, Error};

use super::standby_names;
use crate::publication::{self, Extra, Fault, Found};
pub use obstacle::{Obstacle, Places};

/// Is the publication fit to stream from?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It brings every event.
    Right,
    /// It would not.
    Wrong(Vec<Fault>),
    /// There is none of that name.
    Missing,
}

impl From<Option<&Found>> for Publication {
    fn from(found: Option<&Found>) -> Publication {
        match found.map(Found::faults) {
            None => Publication::Missing,
            Some(faults) if faults.is_empty() => Publication::Right,
            Some(faults) => Publication::Wrong(faults),
        }
    }
}

impl Publication {
    /// What it is in the way of a stream, under its `name`.
    pub fn obstacle(&self, name: &str) -> Option<Obstacle> {
        let faults = match self {
            Publication::Right => return None,
            Publication::Wrong(faults) => faults.clone(),
            Publication::Missing => Vec::new(),
        };
        Some(Obstacle::Publication { name: name.to_owned(), faults })
    }
}

/// What streaming rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `wal_level`.
    pub wal_level: String,
    /// The login, quoted where it must be.
    pub role: String,
    /// The login has REPLICATION, or is a superuser.
    pub may_replicate: bool,
    /// `max_replication_slots`, and the slots there are.
    pub slots: Places,
    /// `max_wal_senders`, and those that run; base backups count as well.
    pub senders: Places,
    /// Its name.
    pub publication_name: String,
    /// Whether it is fit.
    pub publication: Publication,
    /// What it holds more than is needed.
    pub extras: Vec<Extra>,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
}

impl Facts {
    /// What stands in the way of a stream with this `application_name`: permanent obstacles first; empty: nothing.
    pub fn obstacles(&self, application_name: &str) -> Vec<Obstacle> {
        self.findings(application_name).into_iter().filter_map(Result::err).collect()
    }

    /// One finding for each thing that streaming rests on: what is there, or what stands in the way.
    pub fn findings(&self, application_name: &str) -> Vec<Result<String, Obstacle>> {
        let finding =
            |good: bool, says: String, obstacle: Obstacle| if good { Ok(says) } else { Err(obstacle) };
        let Facts { role, publication_name: name, synchronous_standby_names: names, slots, senders, .. } =
            self;
        let faults = match &self.publication {
            Publication::Wrong(faults) => faults.clone(),
            Publication::Right | Publication::Missing => Vec::new(),
        };
        vec![
            finding(
                self.wal_level == "logical",
                "wal_level is logical".to_owned(),
                Obstacle::WalLevel(self.wal_level.clone()),
            ),
            finding(
                self.may_replicate,
                format!("login {role} may stream"),
                Obstacle::NoReplicationRight { role: role.clone() },
            ),
            finding(
                self.publication == Publication::Right,
                format!("publication {name:?} brings every event"),
                Obstacle::Publication { name: name.clone(), faults },
            ),
            finding(
                !standby_names::is_candidate(names, application_name),
                "no commit waits for the stream (synchronous_standby_names)".to_owned(),
                Obstacle::SynchronousStandby(names.clone()),
            ),
            finding(
                slots.used < slots.max,
                format!("{} of {} replication slots are in use", slots.used, slots.max),
                Obstacle::NoSlot(*slots),
            ),
            finding(
                senders.used < senders.max,
                format!("{} of {} walsenders are in use", senders.used, senders.max),
                Obstacle::NoSender(*senders),
            ),
        ]
    }

    /// What costs work and loses nothing, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let name = &self.publication_name;
        let warning = |extra: &Extra| match extra {
            Extra::Operations(_) => format!(
                "publication {name:?} also publishes {extra}: `statecast install` narrows it, unless it holds other tables"
            ),
            _ => format!(
                "publication {name:?} also publishes {extra}: the server decodes and sends every change there for nothing; better name a publication of its own in source.wal.publication"
            ),
        };
        self.extras.iter().map(warning).collect()
    }
}

/// Everything but the publication. Slots, the number of walsenders and their application names are shown to every login.
const LOOK: &str = "
WITH own AS (
    -- this pipeline's stream, if one runs now: what it holds does not stand in its way
    SELECT r.pid
      FROM pg_stat_replication r
      JOIN pg_replication_slots s ON s.active_pid = r.pid
     WHERE r.application_name = $1 AND s.database = current_database()
)
SELECT current_setting('wal_level'),
       quote_ident(current_user),
       -- on Amazon RDS, membership in a role stands for the attribute
       EXISTS (SELECT FROM pg_roles r
                WHERE r.rolname = current_user AND (r.rolsuper OR r.rolreplication)
                   OR r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER')),
       -- every slot counts, whether it is active or not
       (SELECT count(*) FROM pg_replication_slots s WHERE NOT EXISTS (SELECT FROM own WHERE own.pid = s.active_pid)),
       current_setting('max_replication_slots')::bigint,
       (SELECT count(*) FROM pg_stat_replication r WHERE NOT EXISTS (SELECT FROM own WHERE own.pid = r.pid)),
       current_setting('max_wal_senders')::bigint,
       current_setting('synchronous_standby_names')";

/// Looks at all of it. `publication` is `source.wal.publication`, `application_name` the stream's.
///
/// # Errors
/// SQL.
pub async fn look(client: &Client, publication: &str, application_name: &str) -> Result<Facts, Error> {
    let row = client.query_one(LOOK, &[&application_name]).await?;
    let found = publication::find(client, publication).await?;
    Ok(Facts {
        wal_level: row.try_get(0)?,
        role: row.try_get(1)?,
        may_replicate: row.try_get(2)?,
        slots: Places { used: row.try_get(3)?, max: row.try_get(4)? },
        senders: Places { used: row.try_get(5)?, max: row.try_get(6)? },
        publication_name: publication.to_owned(),
        publication: Publication::from(found.as_ref()),
        extras: found.map(|found| found.extras()).unwrap_or_default(),
        synchronous_standby_names: row.try_get(7)?,
    })
}

/// Is the publication still fit? Cheap: one statement on the catalogs, by index.
///
/// # Errors
/// SQL.
pub async fn publication(client: &Client, name: &str) -> Result<Publication, Error> {
    Ok(Publication::from(publication::find(client, name).await?.as_ref()))
}

/// A stream that runs now, as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// `creating` (the slot), then `startup`, `catchup`, `streaming`, `stopping`; `None`: this login may not see it
    /// (it lacks `pg_read_all_stats`).
    pub state: Option<String>,
    /// Bytes of WAL that the relay has not confirmed; `None` before the slot is there.
    pub lag_bytes: Option<i64>,
    /// Bytes of WAL that the server keeps for it.
    pub retained_bytes: Option<i64>,
    /// Above 0: commits wait for it. `None`: this login may not see it.
    pub sync_priority: Option<i32>,
}

impl StreamState {
    /// Does it bring events? Without the right to see the state: it has a slot.
    pub fn streams(&self) -> bool {
        match self.state.as_deref() {
            Some(state) => matches!(state, "streaming" | "catchup"),
            None => true,
        }
    }
}

/// A walsender belongs to this database by its slot. The columns of `pg_stat_replication` but for pid and
/// application_name are NULL without `pg_read_all_stats`; those of the slot are for everybody.
const STREAM: &str = "
SELECT CASE WHEN s.confirmed_flush_lsn IS NULL THEN 'creating' ELSE r.state END,
       pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(r.flush_lsn, s.confirmed_flush_lsn))::bigint,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint,
       r.sync_priority
  FROM pg_stat_replication r
  JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE r.application_name = $1 AND s.database = current_database()
 -- a leader that was just followed may still be on its way out
 ORDER BY s.confirmed_flush_lsn DESC NULLS LAST
 LIMIT 1";

/// The stream with this `application_name` in this database, if there is one.
///
/// # Errors
/// SQL.
pub async fn stream_state(client: &Client, application_name: &str) -> Result<Option<StreamState>, Error> {
    let Some(row) = client.query_opt(STREAM, &[&application_name]).await? else {
        return Ok(None);
    };
    // What is in the WAL of now may be known to the stream already.
    let bytes = |column| Ok::<_, Error>(row.try_get::<_, Option<i64>>(column)?.map(|bytes| bytes.max(0)));
    Ok(Some(StreamState {
        state: row.try_get(0)?,
        lag_bytes: bytes(1)?,
        retained_bytes: bytes(2)?,
        sync_priority: row.try_get(3)?,
    }))
}
