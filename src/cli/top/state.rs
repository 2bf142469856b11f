//! What is known, and from when. The pollers send updates; the view draws this and asks nobody.

use std::time::{Duration, Instant};

use super::buckets::Buckets;
use super::figures::Figures;
use super::sample::{History, Rates, Series};
use super::scrape::{Look, clean};
use crate::cli::status::Report;
use crate::store::parked::counts::Count;

/// From one side, at one moment.
#[derive(Debug)]
pub(super) enum Update {
    /// A relay, by its place among the targets; or why it could not be asked.
    Relay { index: usize, at: Instant, look: Result<Look, String> },
    /// The database; or why it could not be asked.
    Database { at: Instant, facts: Result<Facts, String> },
}

/// What the database knows.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) report: Report,
    /// Of the leader's session; `None` before the first.
    pub(super) lanes: Option<i32>,
    /// Set aside, by state and reason.
    pub(super) aside: Vec<Count>,
}

/// One relay.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    pub(super) target: String,
    /// `None`: not asked yet.
    pub(super) look: Option<Result<Look, String>>,
    pub(super) series: Series,
}

/// The database's side.
#[derive(Clone, Debug)]
pub(super) enum Database {
    /// Not asked yet.
    Asking,
    Here {
        at: Instant,
        facts: Box<Facts>,
    },
    Away(String),
}

/// Everything that is drawn.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) pipeline: String,
    pub(super) interval: Duration,
    /// `rabbitmq.window`, as configured here.
    pub(super) window: f64,
    pub(super) relays: Vec<Relay>,
    /// Why no relay is asked, if so.
    pub(super) no_relay: Option<String>,
    pub(super) database: Database,
    pub(super) history: History,
}

impl State {
    /// Nothing is known yet.
    pub(super) fn new(pipeline: String, interval: Duration, window: usize, targets: &[String]) -> State {
        let relay = |target: &String| Relay { target: target.clone(), look: None, series: Series::default() };
        State {
            pipeline,
            interval,
            window: window as f64,
            relays: targets.iter().map(relay).collect(),
            no_relay: None,
            database: Database::Asking,
            history: History::new(Instant::now(), interval),
        }
    }

    /// Takes an update in.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::Relay { index, at, look } => {
                let Some(relay) = self.relays.get_mut(index) else { return };
                if let Ok(look) = &look
                    && let Some(delta) = relay.series.add(at, &look.figures)
                {
                    self.history.add(delta);
                }
                relay.look = Some(look.map_err(|why| clean(&why)));
            }
            Update::Database { at, facts: Ok(facts) } => {
                self.database = Database::Here { at, facts: Box::new(facts) };
            }
            Update::Database { facts: Err(why), .. } => self.database = Database::Away(clean(&why)),
        }
    }

    /// The database's facts, if it is reachable.
    pub(super) fn facts(&self) -> Option<&Facts> {
        match &self.database {
            Database::Here { facts, .. } => Some(facts),
            Database::Asking | Database::Away(_) => None,
        }
    }

    /// Relays that answered last time they were asked.
    fn reachable(&self) -> impl Iterator<Item = (&Relay, &Look)> {
        self.relays.iter().filter_map(|relay| match &relay.look {
            Some(Ok(look)) => Some((relay, look)),
            _ => None,
        })
    }

    /// Of the relay that leads: only its gauges say anything about the pipeline.
    pub(super) fn leader(&self) -> Option<&Figures> {
        self.reachable().map(|(_, look)| &look.figures).find(|figures| figures.leader)
    }

    /// Some relay answers.
    pub(super) fn any_reachable(&self) -> bool {
        self.reachable().next().is_some()
    }

    /// Of all relays that answer together; `None` before the second look.
    pub(super) fn rates(&self) -> Option<Rates> {
        let rates = self.reachable().filter_map(|(relay, _)| relay.series.rates());
        rates.reduce(|a, b| Rates {
            read_poll: a.read_poll + b.read_poll,
            read_wal: a.read_wal + b.read_wal,
            confirmed: a.confirmed + b.confirmed,
        })
    }

    /// From recording to confirm and from publishing to confirm, of all relays that answer.
    pub(super) fn latency(&self) -> (Buckets, Buckets) {
        let latencies = self.reachable().map(|(relay, _)| relay.series.latency());
        latencies.reduce(|a, b| (a.0.plus(&b.0), a.1.plus(&b.1))).unwrap_or_default()
    }

    /// A counter of all relays that answer, since each of them started.
    pub(super) fn total(&self, counter: impl Fn(&Figures) -> f64) -> f64 {
        self.reachable().map(|(_, look)| counter(&look.figures)).sum()
    }

    /// Both sides have been asked, and each relay often enough for its rates.
    pub(super) fn complete(&self) -> bool {
        let asked = |relay: &Relay| match &relay.look {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(_)) => relay.series.rates().is_some(),
        };
        !matches!(self.database, Database::Asking) && self.relays.iter().all(asked)
    }
}
