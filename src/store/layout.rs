//! How the outbox is divided: its partitions as the catalog has them, and names and bounds of new ones.

use tokio_postgres::Client;

use super::upkeep::{UpkeepError, during};

/// One partition of the outbox: `lo <= seq < hi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Table in schema `statecast`.
    pub table: String,
    /// Lowest number.
    pub lo: i64,
    /// One past the highest number; `None` for the tail.
    pub hi: Option<i64>,
    /// A detach has begun and must be finished.
    pub detaching: bool,
    /// Size with indexes and TOAST.
    pub bytes: u64,
}

/// Why upkeep did nothing, or not all of it, this time. The next call tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Postponed {
    /// Another session does upkeep now.
    Elsewhere,
    /// A transaction older than about a second holds a lock on the outbox.
    OldTransaction,
    /// A lock was not free within 50 ms.
    Locked,
    /// A detach has begun and waits for transactions with older snapshots.
    Detaching,
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The writers have reached the tail: `statecast maintain` swaps it.
    TailReached {
        /// Where it begins.
        lo: i64,
    },
    /// Fewer than two empty chunks are left; the tail is not moved any more, and will be reached.
    TailNear {
        /// Where it begins.
        lo: i64,
    },
    /// A table that looks like a chunk, holds rows, and is not attached.
    Stray {
        /// Table in schema `statecast`.
        table: String,
    },
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Alarm::TailReached { lo } => {
                write!(f, "events are written to the outbox's tail (from {lo}): run `statecast maintain`")
            }
            Alarm::TailNear { lo } => write!(
                f,
                "the outbox's last chunks before its tail ({lo}) are in use: run `statecast maintain` once it is reached"
            ),
            Alarm::Stray { table } => {
                write!(f, "statecast.{table} holds rows but is not part of the outbox: archive or drop it")
            }
        }
    }
}

/// What [`ensure_chunks`](super::chunks::ensure_chunks) found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkState {
    /// Attached partitions in order, the tail last.
    pub chunks: Vec<Chunk>,
    /// Whole chunks that the writers have not reached.
    pub empty_ahead: usize,
    /// Size of the outbox with indexes and TOAST.
    pub bytes: u64,
    /// Last number issued; 0 = none.
    pub last_seq: i64,
    /// `min(floor_seq)` of all pipelines; `None` without any. Chunks that end at or below it are settled.
    pub floor_seq: Option<i64>,
    /// The tail holds rows, or the writers have reached its range.
    pub tail_rows: bool,
    /// Chunks made by this call.
    pub created: usize,
    /// Why less was done than there was to do.
    pub postponed: Option<Postponed>,
    /// For people.
    pub alarms: Vec<Alarm>,
}

impl ChunkState {
    /// The tail, if one is attached.
    pub fn tail(&self) -> Option<&Chunk> {
        self.chunks.iter().find(|chunk| chunk.hi.is_none())
    }

    /// Chunks that every pipeline has left behind, oldest first.
    pub fn settled(&self) -> impl Iterator<Item = &Chunk> {
        let floor = self.floor_seq;
        self.chunks.iter().filter(move |chunk| {
            chunk.hi.is_some_and(|hi| floor.is_some_and(|floor| hi <= floor)) && !chunk.detaching
        })
    }

    /// Where the finite chunks end and a tail begins.
    pub(super) fn end(&self) -> i64 {
        self.chunks.iter().filter_map(|chunk| chunk.hi).max().unwrap_or(1)
    }
}

/// Chunks to make: `count` of `rows` each from `from`, then a tail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    from: i64,
    rows: i64,
    pub(super) count: usize,
}

impl Plan {
    pub(super) fn new(from: i64, rows: i64, count: usize) -> Plan {
        Plan { from, rows: rows.max(1), count }
    }

    /// Table and bounds of each, the tail last.
    fn tables(&self) -> Vec<(String, String)> {
        let mut tables = Vec::with_capacity(self.count + 1);
        let mut lo = self.from;
        for _ in 0..self.count {
            let hi = lo.saturating_add(self.rows);
            tables.push((format!("outbox_{lo}"), format!("FROM ({lo}) TO ({hi})")));
            lo = hi;
        }
        tables.push((format!("outbox_tail_{lo}"), format!("FROM ({lo}) TO (MAXVALUE)")));
        tables
    }

    pub(super) fn create_sql(&self) -> String {
        let one = |(table, _): (String, String)| {
            format!(
                "CREATE TABLE statecast.{table} (LIKE statecast.outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS);\n"
            )
        };
        self.tables().into_iter().map(one).collect()
    }

    /// ATTACH, not `PARTITION OF`: that would take ACCESS EXCLUSIVE on the parent.
    pub(super) fn attach_sql(&self) -> String {
        let one = |(table, bound): (String, String)| {
            format!("ALTER TABLE statecast.outbox ATTACH PARTITION statecast.{table} FOR VALUES {bound};\n")
        };
        self.tables().into_iter().map(one).collect()
    }
}

/// The outbox's partitions, in order. Needs no more than USAGE on the schema.
///
/// # Errors
///
/// See [`UpkeepError`].
pub async fn list_chunks(client: &Client) -> Result<Vec<Chunk>, UpkeepError> {
    let doing = "list the chunks of the outbox";
    let rows = client
        .query(
            "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid), i.inhdetachpending,
                    coalesce(pg_total_relation_size(c.oid), 0)
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = 'statecast.outbox'::regclass",
            &[],
        )
        .await
        .map_err(during(doing))?;
    let mut chunks = Vec::with_capacity(rows.len());
    for row in rows {
        let table: String = row.try_get(0).map_err(during(doing))?;
        let bound: Option<String> = row.try_get(1).map_err(during(doing))?;
        let bytes: i64 = row.try_get(3).map_err(during(doing))?;
        // Finished by another session between the two catalogs.
        let Some(bound) = bound else { continue };
        let Some((lo, hi)) = parse_bound(&bound) else {
            return Err(UpkeepError::OddBound { table, bound });
        };
        let detaching = row.try_get(2).map_err(during(doing))?;
        chunks.push(Chunk { table, lo, hi, detaching, bytes: u64::try_from(bytes).unwrap_or(0) });
    }
    chunks.sort_by_key(|chunk| chunk.lo);
    Ok(chunks)
}

/// `FOR VALUES FROM ('1') TO ('1000')`, with MAXVALUE for the tail.
fn parse_bound(bound: &str) -> Option<(i64, Option<i64>)> {
    let inner = bound.strip_prefix("FOR VALUES FROM (")?.strip_suffix(')')?;
    let (lo, hi) = inner.split_once(") TO (")?;
    let number = |text: &str| text.trim_matches('\'').parse::<i64>().ok();
    let hi = if hi == "MAXVALUE" { None } else { Some(number(hi)?) };
    Some((number(lo)?, hi))
}

/// How the outbox stands, without changing anything.
///
/// # Errors
///
/// See [`UpkeepError`].
pub async fn chunk_state(client: &Client) -> Result<ChunkState, UpkeepError> {
    let doing = "read the sequence of the outbox";
    let chunks = list_chunks(client).await?;
    // After the list: the writers only move on, so a chunk is never taken for empty that was in use already.
    let row = client
        .query_one(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END,
                    (SELECT min(floor_seq) FROM statecast.cursor)
             FROM statecast.outbox_seq_seq",
            &[],
        )
        .await
        .map_err(during(doing))?;
    let last_seq: i64 = row.try_get(0).map_err(during(doing))?;
    let floor_seq = row.try_get(1).map_err(during(doing))?;
    let mut state = ChunkState {
        empty_ahead: chunks.iter().filter(|c| c.hi.is_some() && !c.detaching && c.lo > last_seq).count(),
        bytes: chunks.iter().map(|chunk| chunk.bytes).sum(),
        tail_rows: false,
        chunks,
        last_seq,
        floor_seq,
        created: 0,
        postponed: None,
        alarms: Vec::new(),
    };
    if let Some(tail) = state.tail().filter(|tail| !tail.detaching) {
        let lo = tail.lo;
        // The number decides, not the rows: an insert may hold one and not have written yet.
        state.tail_rows = last_seq >= lo || tail_holds_rows(client, lo).await?;
        if state.tail_rows {
            state.alarms.push(Alarm::TailReached { lo });
        }
    }
    Ok(state)
}

/// By way of the parent, on which the relay has SELECT; a literal, so that only the tail is locked and looked at.
async fn tail_holds_rows(client: &Client, lo: i64) -> Result<bool, UpkeepError> {
    let doing = "see whether the tail is empty";
    client
        .query_one(&format!("SELECT EXISTS (SELECT FROM statecast.outbox WHERE seq >= {lo})"), &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_as_postgresql_prints_them() {
        assert_eq!(parse_bound("FOR VALUES FROM ('1') TO ('1001')"), Some((1, Some(1001))));
        assert_eq!(parse_bound("FOR VALUES FROM ('1001') TO (MAXVALUE)"), Some((1001, None)));
        for odd in ["DEFAULT", "FOR VALUES FROM (MINVALUE) TO ('1')", "FOR VALUES IN ('1')", ""] {
            assert_eq!(parse_bound(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_plan_leaves_no_gap() {
        let tables = Plan::new(1001, 1000, 2).tables();
        let names: Vec<_> = tables.iter().map(|(table, _)| table.as_str()).collect();
        assert_eq!(names, ["outbox_1001", "outbox_2001", "outbox_tail_3001"]);
        assert_eq!(tables[2].1, "FROM (3001) TO (MAXVALUE)");
    }
}
