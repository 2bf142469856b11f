//! How a stream is known on the server: by these names a successor finds what a dead relay left there.

/// Bytes of a name, at most (`NAMEDATALEN - 1`); the server cuts a longer one.
const NAME_BYTES_MAX: usize = 63;
/// Bytes of the pipeline's name in a slot's name: the rest is the prefix and the number of a process.
const SLOT_PIPELINE_BYTES_MAX: usize = 42;

/// `application_name` of a pipeline's stream, as `pg_stat_replication` shows it. A pipeline's name is ASCII.
pub fn application_name(pipeline: &str) -> String {
    let mut name = format!("statecast {pipeline} stream");
    name.truncate(NAME_BYTES_MAX);
    name
}

/// What the names of a pipeline's slots begin with.
pub fn slot_prefix(pipeline: &str) -> String {
    let mut pipeline = pipeline.replace('-', "_");
    pipeline.truncate(SLOT_PIPELINE_BYTES_MAX);
    format!("statecast_{pipeline}_")
}

/// The slot of a walsender: a temporary slot belongs to one process, so its number makes the name unique.
pub fn slot(pipeline: &str, backend_pid: i32) -> String {
    format!("{}{backend_pid}", slot_prefix(pipeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        let longest = "p-".repeat(24);
        assert_eq!(application_name(&longest).len(), NAME_BYTES_MAX);
        assert!(slot(&longest, i32::MAX).len() <= NAME_BYTES_MAX);
        assert_eq!(slot("orders-eu", 7), "statecast_orders_eu_7");
    }
}
