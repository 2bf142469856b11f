//! Routing keys that no queue takes. Pure.
//!
//! A return pauses its *routing key* as one: whoever's next event has it waits, without being tried. One of those that wait
//! is the *probe*: it alone is tried, after a back-off, and the next one after the next back-off. Once the broker takes an
//! event with that routing key (or answers it with a nack, which only a queue does) all go on. A routing key is here as long
//! as somebody waits for it, so there are never more than keys that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::keys::back_off;

/// Hash of a routing key.
pub type RouteId = u64;

/// The hash of a routing key.
pub fn route_id(routing_key: &str) -> RouteId {
    xxh3_64(routing_key.as_bytes())
}

/// A key that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Hash of its partition key.
    pub key: u64,
    /// Its next event is a live one; else it is set aside.
    pub live: bool,
}

#[derive(Debug)]
struct Wait {
    route: RouteId,
    /// Its place among those that wait.
    ticket: u64,
    live: bool,
}

/// A routing key that is paused.
#[derive(Debug)]
pub struct Route {
    /// The routing key itself.
    pub name: String,
    /// The broker's last answer.
    pub answer: String,
    /// When that was, in this session.
    pub refused_at: Option<Instant>,
    /// Keys that wait with a live event.
    pub live: usize,
    /// In the order in which they are tried.
    queue: BTreeMap<u64, u64>,
    /// Who is being tried, with one event.
    probe: Option<u64>,
    sent: bool,
    /// When the next one is, while nobody is.
    due: Option<Instant>,
    refusals: u32,
}

/// See the module head.
#[derive(Debug, Default)]
pub struct Routes {
    routes: HashMap<RouteId, Route>,
    waits: HashMap<u64, Wait>,
    due: BTreeSet<(Instant, RouteId)>,
    next_ticket: u64,
}

impl Routes {
    /// Is no routing key paused? All that the path of each event asks then.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// How many are paused.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// A routing key, if it is paused.
    pub fn get(&self, id: RouteId) -> Option<&Route> {
        self.routes.get(&id)
    }

    /// All that are paused.
    pub fn iter(&self) -> impl Iterator<Item = (RouteId, &Route)> {
        self.routes.iter().map(|(id, route)| (*id, route))
    }

    /// Which routing key a key waits for.
    pub fn awaited_by(&self, key: u64) -> Option<RouteId> {
        self.waits.get(&key).map(|wait| wait.route)
    }

    /// Must this key wait, if its next event has this routing key? Not for what only an earlier leader was told.
    pub fn blocks(&self, id: RouteId, key: u64) -> bool {
        let blocks = |route: &Route| route.refused_at.is_some() && (route.sent || route.probe != Some(key));
        self.routes.get(&id).is_some_and(blocks)
    }

    /// Is this key the one that is tried for it?
    pub fn is_probe(&self, id: RouteId, key: u64) -> bool {
        self.routes.get(&id).is_some_and(|route| route.probe == Some(key))
    }

    /// An event of this key is sent with that routing key: it waits no longer for another, and the probe is under way.
    pub fn sends(&mut self, id: RouteId, key: u64, now: Instant) {
        if self.awaited_by(key).is_some_and(|awaited| awaited != id) {
            self.leave(key, now);
        }
        if let Some(route) = self.routes.get_mut(&id) {
            route.sent |= route.probe == Some(key);
        }
    }

    /// The broker returned an event of `waiter`: it waits, and everybody with that routing key.
    pub fn refused(&mut self, routing_key: &str, answer: &str, waiter: Waiter, now: Instant) {
        let id = route_id(routing_key);
        let again = self.is_probe(id, waiter.key);
        let new = !self.routes.contains_key(&id);
        self.join(routing_key, waiter, now);
        let Some(route) = self.routes.get_mut(&id) else { return };
        answer.clone_into(&mut route.answer);
        route.refused_at = Some(now);
        if new || again {
            let at = now + back_off(route.refusals);
            route.refusals += 1;
            (route.probe, route.sent) = (None, false);
            self.plan(id, at);
        }
    }

    /// A key waits for a routing key: that of its next event, or (for one that was set aside by an earlier leader) that of
    /// the event that was returned. If nobody else waits for it, it is tried at once.
    pub fn join(&mut self, routing_key: &str, waiter: Waiter, now: Instant) {
        let id = route_id(routing_key);
        self.remove(waiter.key, Some(id), now);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waits.insert(waiter.key, Wait { route: id, ticket, live: waiter.live });
        let new = !self.routes.contains_key(&id);
        let route = self.routes.entry(id).or_insert_with(|| Route {
            name: routing_key.to_owned(),
            answer: String::new(),
            refused_at: None,
            live: 0,
            queue: BTreeMap::new(),
            probe: None,
            sent: false,
            due: None,
            refusals: 0,
        });
        route.queue.insert(ticket, waiter.key);
        route.live += usize::from(waiter.live);
        if new {
            self.plan(id, now);
        }
    }

    /// A key waits no more: its next event is another one, or nobody's business any more.
    pub fn leave(&mut self, key: u64, now: Instant) {
        self.remove(key, None, now);
    }

    /// A key that waits is set aside, or lives again.
    pub fn set_live(&mut self, key: u64, live: bool) {
        let Some(wait) = self.waits.get_mut(&key) else { return };
        let was = std::mem::replace(&mut wait.live, live);
        if let Some(route) = self.routes.get_mut(&wait.route) {
            route.live = route.live + usize::from(live) - usize::from(was);
        }
    }

    /// The broker takes events with this routing key: who has waited for it.
    pub fn proved(&mut self, id: RouteId) -> Vec<Waiter> {
        let Some(route) = self.routes.remove(&id) else { return Vec::new() };
        if let Some(due) = route.due {
            self.due.remove(&(due, id));
        }
        let waiter = |key| self.waits.remove(&key).map(|wait| Waiter { key, live: wait.live });
        route.queue.into_values().filter_map(waiter).collect()
    }

    /// The next key to try, if one is due.
    pub fn probe(&mut self, now: Instant) -> Option<Waiter> {
        let (_, id) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        let route = self.routes.get_mut(&id)?;
        route.due = None;
        let key = *route.queue.first_key_value()?.1;
        (route.probe, route.sent) = (Some(key), false);
        let live = self.waits.get(&key).is_some_and(|wait| wait.live);
        Some(Waiter { key, live })
    }

    /// When the next probe is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// All are tried now.
    pub fn retry(&mut self, now: Instant) {
        let idle = self.routes.iter().filter(|(_, route)| route.probe.is_none());
        let ids: Vec<RouteId> = idle.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.plan(id, now));
    }

    /// Takes a key out of where it waits. Whatever it waited for goes on with another, or is gone with it, unless it is
    /// `kept`.
    fn remove(&mut self, key: u64, kept: Option<RouteId>, now: Instant) {
        let Some(wait) = self.waits.remove(&key) else { return };
        let Some(route) = self.routes.get_mut(&wait.route) else { return };
        route.queue.remove(&wait.ticket);
        route.live -= usize::from(wait.live);
        if kept == Some(wait.route) {
            return;
        }
        if route.queue.is_empty() {
            self.proved(wait.route);
        } else if route.probe == Some(key) {
            (route.probe, route.sent) = (None, false);
            self.plan(wait.route, now);
        }
    }

    fn plan(&mut self, id: RouteId, at: Instant) {
        let Some(route) = self.routes.get_mut(&id) else { return };
        if let Some(due) = route.due.replace(at) {
            self.due.remove(&(due, id));
        }
        self.due.insert((at, id));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn live(key: u64) -> Waiter {
        Waiter { key, live: true }
    }

    fn aside(key: u64) -> Waiter {
        Waiter { key, live: false }
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_tried_and_its_confirm_resumes_all() {
        let (mut routes, now) = (Routes::default(), Instant::now());
        routes.refused("a", "312 NO_ROUTE", live(1), now);
        routes.join("a", aside(2), now);
        routes.refused("a", "312 NO_ROUTE", live(3), now);
        let a = route_id("a");
        assert!([1, 2, 3, 4].iter().all(|key| routes.blocks(a, *key)));
        assert!(!routes.blocks(route_id("b"), 1));
        assert_eq!((routes.probe(now), routes.next_wake()), (None, Some(now + Duration::from_secs(1))));
        let later = now + Duration::from_secs(1);
        assert_eq!((routes.probe(later), routes.probe(later)), (Some(live(1)), None));
        assert!(!routes.blocks(a, 1) && routes.blocks(a, 2));
        routes.sends(a, 1, later);
        assert!(routes.blocks(a, 1), "with one event");
        routes.refused("a", "312 NO_ROUTE", live(1), later);
        let wait = routes.next_wake().unwrap() - later;
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        assert_eq!(routes.probe(later + wait), Some(aside(2)), "the next in turn");
        assert_eq!(routes.get(a).unwrap().live, 2);
        assert_eq!(routes.proved(a), [aside(2), live(3), live(1)]);
        assert!(routes.is_empty() && routes.waits.is_empty() && routes.due.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_leaves_hands_over() {
        let (mut routes, now) = (Routes::default(), Instant::now());
        routes.join("a", live(1), now);
        routes.join("a", live(2), now);
        assert_eq!(routes.probe(now), Some(live(1)), "what an earlier leader left is tried at once");
        routes.set_live(1, false);
        assert_eq!(routes.get(route_id("a")).unwrap().live, 1);
        routes.leave(1, now);
        assert_eq!(routes.probe(now), Some(live(2)));
        // It moves on to another routing key.
        routes.refused("b", "no", live(2), now);
        assert_eq!((routes.len(), routes.awaited_by(2)), (1, Some(route_id("b"))));
        routes.leave(2, now);
        assert!(routes.is_empty() && routes.due.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_tried_when_the_broker_is_well_again() {
        let (mut routes, now) = (Routes::default(), Instant::now());
        (1..=3).for_each(|key| routes.refused(&key.to_string(), "no", live(key), now));
        assert_eq!(routes.probe(now), None);
        routes.retry(now);
        let mut keys: Vec<u64> = std::iter::from_fn(|| routes.probe(now)).map(|waiter| waiter.key).collect();
        keys.sort_unstable();
        assert_eq!(keys, [1, 2, 3]);
        routes.retry(now);
        assert_eq!(routes.probe(now), None, "they are under way");
    }

    proptest! {
        /// Whoever waits can be reached: a routing key has waiters, and either a probe among them or a time for the next.
        #[test]
        fn nobody_waits_in_vain(ops in prop::collection::vec((0..6u8, 0..5u64, 0..3u8), 1..80)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let mut now = runtime.block_on(async { Instant::now() });
            let mut routes = Routes::default();
            for (op, key, name) in ops {
                let name = name.to_string();
                match op {
                    0 => routes.refused(&name, "no", live(key), now),
                    1 => routes.join(&name, aside(key), now),
                    2 => routes.leave(key, now),
                    3 => drop(routes.probe(now)),
                    4 => drop(routes.proved(route_id(&name))),
                    _ => routes.set_live(key, false),
                }
                now += Duration::from_millis(400);
                let waiting: usize = routes.routes.values().map(|route| route.queue.len()).sum();
                prop_assert_eq!(waiting, routes.waits.len());
                for (id, route) in routes.iter() {
                    prop_assert!(!route.queue.is_empty());
                    prop_assert_eq!(route.probe.is_some(), route.due.is_none());
                    prop_assert!(route.probe.is_none_or(|key| routes.awaited_by(key) == Some(id)));
                    prop_assert!(route.due.is_none_or(|due| routes.due.contains(&(due, id))));
                    let live = route.queue.values().filter(|key| routes.waits[key].live).count();
                    prop_assert_eq!(route.live, live);
                }
                prop_assert_eq!(routes.due.len(), routes.iter().filter(|(_, route)| route.due.is_some()).count());
            }
        }
    }
}
