//! How a relay's connections are known on the server: by these names people tell them apart in `pg_stat_activity`, and a
//! successor finds what a leader left there.

/// Bytes of a name, at most (`NAMEDATALEN - 1`); the server cuts a longer one.
const NAME_BYTES_MAX: usize = 63;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Waits to lead. The same connection is the keeper's later.
    Standby,
    /// Holds the advisory lock, the lease and the cursor.
    Keeper,
    /// Reads the outbox.
    Source,
    /// Looks after chunks.
    Upkeep,
    /// Streams (a walsender).
    Stream,
}

impl Part {
    /// What only a leader has, and only once everything of its predecessor has ended.
    pub const OF_A_LEADER: [Part; 3] = [Part::Source, Part::Upkeep, Part::Stream];
    /// What can hold the advisory lock.
    pub const OF_A_CANDIDATE: [Part; 2] = [Part::Standby, Part::Keeper];

    /// `application_name` of this part of a pipeline. (A pipeline's name is ASCII, has no space and at most 48 bytes, so
    /// that what the server cuts off is never the whole of the last word.)
    pub fn application_name(self, pipeline: &str) -> String {
        let part = match self {
            Part::Standby => "standby",
            Part::Keeper => "keeper",
            Part::Source => "source",
            Part::Upkeep => "upkeep",
            Part::Stream => "stream",
        };
        let mut name = format!("statecast {pipeline} {part}");
        name.truncate(NAME_BYTES_MAX);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_fit_and_differ() {
        let longest = "p-".repeat(24);
        for pipeline in ["a", longest.as_str()] {
            let all = Part::OF_A_LEADER.into_iter().chain(Part::OF_A_CANDIDATE);
            let names: HashSet<String> = all.map(|part| part.application_name(pipeline)).collect();
            assert_eq!(names.len(), 5, "{names:?}");
            assert!(names.iter().all(|name| name.len() <= NAME_BYTES_MAX), "{names:?}");
        }
        assert_eq!(Part::Keeper.application_name("orders"), "statecast orders keeper");
    }
}
