//! How a stream is known on the server: by these names a successor finds what a dead relay left there.

use crate::backend::Part;

/// Bytes of the pipeline's name in a slot's name: the rest is the prefix and the number of a process.
const SLOT_PIPELINE_BYTES_MAX: usize = 42;

/// `application_name` of a pipeline's stream, as `pg_stat_replication` shows it.
pub fn application_name(pipeline: &str) -> String {
    Part::Stream.application_name(pipeline)
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
        assert!(slot(&longest, i32::MAX).len() <= 63, "NAMEDATALEN - 1");
        assert_eq!(slot("orders-eu", 7), "statecast_orders_eu_7");
    }
}
