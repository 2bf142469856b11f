//! The one checker: what was committed against what a consumer received.
//!
//! The order criterion is the counter that the writer took under its entity's lock and put into the payload (`n`), not
//! `seq`: a relay that ordered wrongly and numbered its output accordingly would pass a check by its own numbers.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::Client;
use uuid::Uuid;

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub event_id: Uuid,
    pub seq: i64,
    /// `aggregate_type:aggregate_id`.
    pub key: String,
    /// The entity's counter from the payload, if it has one.
    pub n: Option<i64>,
}

/// A delivery, in the order of reception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `message_id`.
    pub event_id: Uuid,
    /// Header `partitionkey`.
    pub key: String,
    /// Header `sequence`.
    pub sequence: i64,
    /// The entity's counter from the body.
    pub n: Option<i64>,
    /// The broker's flag: delivered before, not acknowledged.
    pub redelivered: bool,
}

/// A first delivery that came after that of a later event of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inversion {
    pub late: Uuid,
    pub late_rank: i64,
    /// The highest rank of the key delivered before it.
    pub overtaken_by: i64,
}

/// What is wrong, if anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub committed: usize,
    pub deliveries: usize,
    /// Committed, never delivered.
    pub lost: Vec<Uuid>,
    /// Delivered, never committed.
    pub invented: Vec<Uuid>,
    /// The same key and counter under two ids: (first id, other id).
    pub renamed: Vec<(Uuid, Uuid)>,
    /// Key, sequence or counter of a delivery differ from the committed row's.
    pub altered: Vec<Uuid>,
    /// Inversions among first deliveries, per key.
    pub inversions: BTreeMap<String, Vec<Inversion>>,
    /// Deliveries beyond the first of their event.
    pub duplicates: usize,
    /// How often, at most for one key, an older event followed a newer one, repeats included and the broker's own
    /// redeliveries left out. Each takeover may cause one per key (its successor starts at the cursor); more means
    /// that a dead relay's messages landed among its successor's.
    pub descents_max: usize,
}

impl Verdict {
    /// Number of inversions over all keys.
    pub fn inversion_count(&self) -> usize {
        self.inversions.values().map(Vec::len).sum()
    }

    /// Nothing lost, invented, renamed, altered or out of order. Duplicates are allowed.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.invented.is_empty()
            && self.renamed.is_empty()
            && self.altered.is_empty()
            && self.inversions.is_empty()
    }

    /// Panics unless [`Verdict::is_clean`].
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{}\n{self:#?}", self.summary());
    }

    /// One line.
    pub fn summary(&self) -> String {
        format!(
            "committed {} · deliveries {} · lost {} · invented {} · renamed {} · altered {} · inversions {} · \
             duplicates {} · descents at most {}",
            self.committed,
            self.deliveries,
            self.lost.len(),
            self.invented.len(),
            self.renamed.len(),
            self.altered.len(),
            self.inversion_count(),
            self.duplicates,
            self.descents_max,
        )
    }
}

/// Compares what was committed with what was received.
pub fn check(committed: &[Committed], seen: &[Seen]) -> Verdict {
    let rows: HashMap<Uuid, &Committed> = committed.iter().map(|row| (row.event_id, row)).collect();
    let mut verdict = Verdict { committed: committed.len(), deliveries: seen.len(), ..Verdict::default() };
    find_renamed(committed, seen, &mut verdict);

    let mut first: HashSet<Uuid> = HashSet::new();
    let mut highest: HashMap<&str, i64> = HashMap::new();
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut descents: HashMap<&str, usize> = HashMap::new();
    for delivery in seen {
        let row = rows.get(&delivery.event_id);
        let rank = row.and_then(|row| row.n).or(delivery.n).unwrap_or(delivery.sequence);
        let key = delivery.key.as_str();
        if !delivery.redelivered && last.insert(key, rank).is_some_and(|before| rank < before) {
            *descents.entry(key).or_default() += 1;
        }
        if !first.insert(delivery.event_id) {
            verdict.duplicates += 1;
        } else {
            let top = highest.entry(key).or_insert(rank);
            if rank < *top {
                let inversion = Inversion { late: delivery.event_id, late_rank: rank, overtaken_by: *top };
                verdict.inversions.entry(key.to_owned()).or_default().push(inversion);
            }
            *top = rank.max(*top);
            if row.is_none() {
                verdict.invented.push(delivery.event_id);
            }
        }
        if row.is_some_and(|row| differs(row, delivery)) {
            verdict.altered.push(delivery.event_id);
        }
    }
    verdict.lost = committed.iter().map(|row| row.event_id).filter(|id| !first.contains(id)).collect();
    verdict.descents_max = descents.into_values().max().unwrap_or(0);
    verdict
}

fn differs(row: &Committed, delivery: &Seen) -> bool {
    row.key != delivery.key || row.seq != delivery.sequence || row.n != delivery.n
}

fn find_renamed(committed: &[Committed], seen: &[Seen], verdict: &mut Verdict) {
    let mut names: HashMap<(&str, i64), Uuid> = HashMap::new();
    let rows = committed.iter().map(|row| (row.key.as_str(), row.n, row.event_id));
    let deliveries = seen.iter().map(|delivery| (delivery.key.as_str(), delivery.n, delivery.event_id));
    for (key, n, id) in rows.chain(deliveries) {
        let Some(n) = n else { continue };
        let known = *names.entry((key, n)).or_insert(id);
        if known != id && !verdict.renamed.contains(&(known, id)) {
            verdict.renamed.push((known, id));
        }
    }
}

/// Everything in the outbox, in `seq` order.
pub async fn read_committed(client: &Client) -> Result<Vec<Committed>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT event_id, seq, aggregate_type || ':' || aggregate_id, payload ->> 'n' \
               FROM statecast.outbox ORDER BY seq",
            &[],
        )
        .await?;
    let committed = rows.iter().map(|row| Committed {
        event_id: row.get(0),
        seq: row.get(1),
        key: row.get(2),
        n: row.get::<_, Option<String>>(3).and_then(|n| n.parse().ok()),
    });
    Ok(committed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three events of key `a`, one of key `b`.
    fn committed() -> Vec<Committed> {
        [(1, "a", 1), (2, "a", 2), (3, "b", 1), (4, "a", 3)]
            .map(|(seq, key, n)| Committed {
                event_id: Uuid::from_u128(seq as u128),
                seq,
                key: key.to_owned(),
                n: Some(n),
            })
            .into()
    }

    fn deliver(seqs: &[i64]) -> Vec<Seen> {
        let rows = committed();
        let row = |seq: &i64| rows.iter().find(|row| row.seq == *seq).unwrap();
        let seen = |row: &Committed| Seen {
            event_id: row.event_id,
            key: row.key.clone(),
            sequence: row.seq,
            n: row.n,
            redelivered: false,
        };
        seqs.iter().map(|seq| seen(row(seq))).collect()
    }

    #[test]
    fn a_complete_run_in_key_order_is_clean() {
        let verdict = check(&committed(), &deliver(&[3, 1, 2, 4]));
        verdict.assert_clean();
        assert_eq!((verdict.duplicates, verdict.descents_max), (0, 0));
    }

    #[test]
    fn repeats_are_counted_and_clean() {
        let verdict = check(&committed(), &deliver(&[1, 2, 1, 2, 3, 4]));
        verdict.assert_clean();
        assert_eq!((verdict.duplicates, verdict.descents_max), (2, 1));
    }

    #[test]
    fn the_brokers_redelivery_is_no_descent() {
        let mut seen = deliver(&[1, 2, 1, 2, 3, 4]);
        seen[2].redelivered = true;
        seen[3].redelivered = true;
        assert_eq!(check(&committed(), &seen).descents_max, 0);
    }

    #[test]
    fn a_straggler_among_a_successors_messages_is_a_second_descent() {
        // 1 2 | 1 2 4, and the dead relay's 2 lands after 4.
        assert_eq!(check(&committed(), &deliver(&[1, 2, 1, 2, 4, 2, 3])).descents_max, 2);
    }

    #[test]
    fn sees_a_lost_event() {
        let verdict = check(&committed(), &deliver(&[1, 3, 4]));
        assert_eq!(verdict.lost, [Uuid::from_u128(2)]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn sees_an_invented_event() {
        let mut seen = deliver(&[1, 2, 3, 4]);
        seen.push(Seen { event_id: Uuid::from_u128(99), n: Some(4), ..seen[3].clone() });
        let verdict = check(&committed(), &seen);
        assert_eq!(verdict.invented, [Uuid::from_u128(99)]);
        assert!(verdict.renamed.is_empty() && !verdict.is_clean());
    }

    #[test]
    fn sees_the_same_event_under_another_id() {
        let mut seen = deliver(&[1, 2, 3, 4]);
        seen.push(Seen { event_id: Uuid::from_u128(99), ..seen[3].clone() });
        let verdict = check(&committed(), &seen);
        assert_eq!(verdict.renamed, [(Uuid::from_u128(4), Uuid::from_u128(99))]);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn sees_an_inversion_of_first_deliveries_and_names_it() {
        let verdict = check(&committed(), &deliver(&[2, 3, 1, 4]));
        let inversion = Inversion { late: Uuid::from_u128(1), late_rank: 1, overtaken_by: 2 };
        assert_eq!(verdict.inversions, BTreeMap::from([("a".to_owned(), vec![inversion])]));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn sees_an_inversion_that_agrees_with_seq() {
        // The writer's counter says 2 before 1 although seq rises.
        let mut rows = committed();
        let mut seen = deliver(&[1, 2, 3, 4]);
        (rows[0].n, rows[1].n) = (Some(2), Some(1));
        (seen[0].n, seen[1].n) = (Some(2), Some(1));
        assert_eq!(check(&rows, &seen).inversion_count(), 1);
    }

    #[test]
    fn sees_an_altered_delivery() {
        let mut seen = deliver(&[1, 2, 3, 4]);
        seen[0].sequence = 7;
        assert_eq!(check(&committed(), &seen).altered, [Uuid::from_u128(1)]);
        let mut seen = deliver(&[1, 2, 3, 4]);
        seen[2].key = "c".to_owned();
        assert_eq!(check(&committed(), &seen).altered, [Uuid::from_u128(3)]);
    }
}
