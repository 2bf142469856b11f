//! Is it one event that is unwell, or the broker? Pure.
//!
//! A key that is refused for long is set aside, so that the others pass. When nothing works that would only move the outbox
//! into a table, event by event. So an *outage* is told from it: more than half of the routing keys that were tried in the
//! last minute are paused, or something is refused and nothing was confirmed for five seconds. It ends when neither holds.
//! After that what waits must be refused once more before it counts as unwell.
//!
//! Routing keys are known by their hash, and touched once a second at most. Beyond some thousands only a part of them is
//! looked at, chosen by hash: the same part of those that are paused as of those that are not.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::routes::{RouteId, route_id};

/// A key that is refused for longer than this is set aside.
pub const SET_ASIDE_AFTER: Duration = Duration::from_secs(5);
/// Something is refused, and nothing was confirmed for this long.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a routing key counts as tried.
const TRIED_FOR: Duration = Duration::from_secs(60);
/// Routing keys that are looked at, at most.
const TRIED_MAX: usize = 4096;
/// A routing key that was seen within this is not looked up again.
const RECENT_FOR: Duration = Duration::from_secs(1);
/// Places for those.
const RECENT: usize = 256;

/// See the module head.
#[derive(Debug)]
pub struct Outage {
    /// When each routing key was tried, about.
    tried: HashMap<RouteId, Instant>,
    /// Only hashes without these bits are looked at.
    mask: RouteId,
    /// Seen since `recent_at`.
    recent: Box<[RouteId; RECENT]>,
    recent_at: Instant,
    last_confirm: Option<Instant>,
    began: Option<Instant>,
    ended: Option<Instant>,
}

/// What [`Outage::judge`] has found to be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It begins.
    Begins,
    /// It is over.
    Ends,
}

impl Outage {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Outage {
            tried: HashMap::new(),
            mask: 0,
            recent: Box::new([0; RECENT]),
            recent_at: now,
            last_confirm: None,
            began: None,
            ended: None,
        }
    }

    /// A live event with this routing key was answered. On the path of each event: a few nanoseconds, no allocation.
    pub fn tried(&mut self, routing_key: &str, now: Instant) {
        if now.duration_since(self.recent_at) >= RECENT_FOR {
            self.recent.fill(0);
            self.recent_at = now;
        }
        let id = route_id(routing_key);
        // Two places for each, so that two busy routing keys do not push each other out.
        let place = (id >> 32) as usize % RECENT;
        let other = place ^ 1;
        if self.recent[place] != id && self.recent[other] != id {
            self.recent[other] = std::mem::replace(&mut self.recent[place], id);
            self.touch(id, now);
        }
    }

    /// The broker has confirmed something.
    pub fn confirmed(&mut self, now: Instant) {
        self.last_confirm = Some(now);
    }

    /// Since when, while there is one.
    pub fn since(&self) -> Option<Instant> {
        self.began
    }

    /// Looks again. `paused` are the routing keys that are, and whether a live event waits for each; `refused_since` is when
    /// the oldest refusal of a live event was that still stands.
    pub fn judge(
        &mut self,
        now: Instant,
        paused: impl Iterator<Item = (RouteId, bool)>,
        refused_since: Option<Instant>,
    ) -> Option<Turn> {
        let silent = refused_since.is_some_and(|since| {
            let last = self.last_confirm.map_or(since, |confirm| confirm.max(since));
            now.duration_since(last) >= SILENCE
        });
        let on = self.most_are(now, paused) || silent;
        match (self.began, on) {
            (None, true) => {
                self.began = Some(now);
                Some(Turn::Begins)
            }
            (Some(_), false) => {
                (self.began, self.ended) = (None, Some(now));
                Some(Turn::Ends)
            }
            _ => None,
        }
    }

    /// May a key be set aside that has been paused since then, and was refused then (in this session)?
    pub fn may_leave(&self, since: Instant, refused_at: Option<Instant>, now: Instant) -> bool {
        now.duration_since(since) > SET_ASIDE_AFTER
            && self.last_confirm.is_some_and(|confirm| confirm > since)
            && self.counts(refused_at)
    }

    /// Does a refusal tell anything about what was refused: there is no outage, and it came after the last one?
    pub fn counts(&self, refused_at: Option<Instant>) -> bool {
        let after = |at: Instant| self.ended.is_none_or(|ended| at >= ended);
        self.began.is_none() && refused_at.is_some_and(after)
    }

    /// Are more than half of the routing keys that were tried paused?
    fn most_are(&mut self, now: Instant, paused: impl Iterator<Item = (RouteId, bool)>) -> bool {
        let mut ids = Vec::new();
        for (id, live) in paused {
            // Whoever waits for it will be tried.
            if live {
                self.touch(id, now);
            }
            ids.push(id);
        }
        if ids.is_empty() {
            return false;
        }
        self.forget(now);
        let of_those = ids.into_iter().filter(|id| self.tried.contains_key(id)).count();
        2 * of_those > self.tried.len()
    }

    fn touch(&mut self, id: RouteId, now: Instant) {
        if id & self.mask != 0 {
            return;
        }
        self.tried.insert(id, now);
        if self.tried.len() > TRIED_MAX {
            self.forget(now);
        }
        while self.tried.len() > TRIED_MAX {
            self.mask = self.mask << 1 | 1;
            let mask = self.mask;
            self.tried.retain(|id, _| id & mask == 0);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.tried.retain(|_, at| now.duration_since(*at) < TRIED_FOR);
        if self.tried.len() < TRIED_MAX / 8 {
            self.mask >>= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async { Instant::now() })
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn paused<'a>(names: &'a [&'a str], live: bool) -> impl Iterator<Item = (RouteId, bool)> + 'a {
        names.iter().map(move |name| (route_id(name), live))
    }

    #[test]
    fn more_than_half_of_what_was_tried_live() {
        let (mut outage, at) = (Outage::new(now()), now());
        ["a", "b", "c"].into_iter().for_each(|name| outage.tried(name, at));
        assert_eq!(outage.judge(at, paused(&["a"], true), None), None);
        assert_eq!(outage.judge(at, paused(&["a", "b"], true), None), Some(Turn::Begins));
        assert_eq!(outage.judge(at, paused(&["a", "b"], true), None), None, "it is known");
        assert_eq!(outage.since(), Some(at));
        assert_eq!(outage.judge(at, paused(&["a"], true), None), Some(Turn::Ends));
        // Half is not more than half.
        outage.tried("d", at);
        assert_eq!(outage.judge(at, paused(&["a", "b"], true), None), None);
        // c and d were tried a minute ago, and a and b are waited for.
        let later = at + TRIED_FOR;
        assert_eq!(outage.judge(later, paused(&["a", "b"], true), None), Some(Turn::Begins));
    }

    #[test]
    fn what_is_only_probed_for_what_is_set_aside_does_not_count() {
        let (mut outage, at) = (Outage::new(now()), now());
        ["a", "b", "c"].into_iter().for_each(|name| outage.tried(name, at));
        assert_eq!(outage.judge(at, paused(&["a", "b"], false), None), Some(Turn::Begins), "they were");
        outage.tried("c", at + seconds(50));
        let later = at + TRIED_FOR;
        assert_eq!(outage.judge(later, paused(&["a", "b"], false), None), Some(Turn::Ends));
    }

    #[test]
    fn nothing_confirmed_while_something_is_refused() {
        let (mut outage, at) = (Outage::new(now()), now());
        let refused = Some(at);
        let none = || paused(&[], true);
        assert_eq!(outage.judge(at + seconds(4), none(), refused), None);
        outage.confirmed(at + seconds(4));
        assert_eq!(outage.judge(at + seconds(8), none(), refused), None);
        assert_eq!(outage.judge(at + seconds(9), none(), refused), Some(Turn::Begins));
        assert!(!outage.may_leave(at, refused, at + seconds(9)));
        outage.confirmed(at + seconds(10));
        assert_eq!(outage.judge(at + seconds(10), none(), refused), Some(Turn::Ends));
        assert!(!outage.may_leave(at, refused, at + seconds(11)), "it has yet to be tried again");
        assert!(outage.may_leave(at, Some(at + seconds(11)), at + seconds(11)));
        // A quiet hour before the refusal is none.
        let later = at + seconds(3600);
        assert_eq!(outage.judge(later + seconds(1), none(), Some(later)), None);
    }

    #[test]
    fn a_key_leaves_when_others_pass() {
        let (mut outage, at) = (Outage::new(now()), now());
        let refused = Some(at);
        assert!(!outage.may_leave(at, refused, at + seconds(6)), "nothing was confirmed");
        outage.confirmed(at);
        assert!(!outage.may_leave(at, refused, at + seconds(6)), "nothing since");
        outage.confirmed(at + seconds(1));
        assert!(!outage.may_leave(at, refused, at + seconds(5)));
        assert!(outage.may_leave(at, refused, at + seconds(6)));
        assert!(!outage.may_leave(at, None, at + seconds(6)), "not refused in this session");
    }

    #[test]
    fn a_hundred_thousand_routing_keys_are_judged_by_a_part() {
        let (mut outage, at) = (Outage::new(now()), now());
        let names: Vec<String> = (0..100_000).map(|n| format!("order.{n}.changed")).collect();
        names.iter().for_each(|name| outage.tried(name, at));
        assert!(outage.tried.len() <= TRIED_MAX && outage.tried.len() > TRIED_MAX / 4);
        let some = |n: usize| names[..n].iter().map(|name| (route_id(name), true));
        assert_eq!(outage.judge(at, some(40_000), None), None);
        assert_eq!(outage.judge(at, some(60_000), None), Some(Turn::Begins));
        assert_eq!(outage.judge(at, some(40_000), None), Some(Turn::Ends));
        // All of them are looked at again once there are few.
        for n in 0..40 {
            let at = at + TRIED_FOR + seconds(n);
            outage.tried("a", at);
            outage.judge(at, paused(&["b"], true), None);
        }
        assert_eq!((outage.mask, outage.tried.len()), (0, 2));
    }

    #[test]
    fn two_busy_routing_keys_do_not_push_each_other_out() {
        let (mut outage, at) = (Outage::new(now()), now());
        let place = |name: &String| (route_id(name) >> 32) as usize % RECENT;
        let a = "order.0.changed".to_owned();
        let b = (1..).map(|n| format!("order.{n}.changed")).find(|b| place(b) == place(&a)).unwrap();
        let later = at + Duration::from_millis(500);
        [&a, &b].into_iter().for_each(|name| outage.tried(name, at));
        for _ in 0..3 {
            [&a, &b].into_iter().for_each(|name| outage.tried(name, later));
        }
        assert_eq!([&a, &b].map(|name| outage.tried[&route_id(name)]), [at, at], "looked up again");
    }

    #[test]
    #[ignore = "a measurement: prints what an event costs, and asserts nothing"]
    fn what_it_costs() {
        let (mut outage, at) = (Outage::new(now()), now());
        let names: Vec<String> = (0..20).map(|n| format!("order.{n}.changed")).collect();
        let began = std::time::Instant::now();
        for n in 0..10_000_000 {
            outage.tried(&names[n % names.len()], at);
        }
        println!("{:?} each", began.elapsed() / 10_000_000);
    }

    proptest! {
        /// Beside the rule itself.
        #[test]
        fn it_follows_the_rule(steps in prop::collection::vec((0..20u64, 0..6usize, prop::collection::vec(0..3u8, 6), any::<bool>()), 1..60)) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let (mut outage, mut at) = (Outage::new(now()), now());
            let mut tried: Vec<Option<Instant>> = vec![None; 6];
            let (mut confirm, mut refused): (Option<Instant>, Option<Instant>) = (None, None);
            for (wait, name, states, confirms) in steps {
                at += seconds(wait);
                outage.tried(names[name], at);
                tried[name] = Some(at);
                if confirms {
                    outage.confirmed(at);
                    confirm = Some(at);
                }
                // 0 = well, 1 = paused and waited for, 2 = paused for what is set aside.
                for (n, state) in states.iter().enumerate() {
                    if *state == 1 { tried[n] = Some(at); }
                }
                refused = if states.contains(&1) { refused.or(Some(at)) } else { None };
                let paused = (0..6).filter(|n| states[*n] > 0).map(|n| (route_id(names[n]), states[n] == 1));
                let before = outage.since().is_some();
                let turn = outage.judge(at, paused, refused);
                let counts = |n: &usize| tried[*n].is_some_and(|tried| at - tried < TRIED_FOR);
                let all = (0..6).filter(counts).count();
                let bad = (0..6).filter(counts).filter(|n| states[*n] > 0).count();
                let silent = refused.is_some_and(|since| at - confirm.map_or(since, |c| c.max(since)) >= SILENCE);
                let on = 2 * bad > all || silent;
                prop_assert_eq!(outage.since().is_some(), on);
                prop_assert_eq!(turn, (before != on).then_some(if on { Turn::Begins } else { Turn::Ends }));
            }
        }
    }
}
