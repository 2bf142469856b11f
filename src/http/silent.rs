//! Connections that have not sent the head of a request: those that may be cut when there is no room for another.
//!
//! A probe sends its head at once. Who connects and says nothing would otherwise take every place there is, again and again, until
//! the probe's patience is over and a healthy process is killed for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nobody is cut before: a head that was sent at once is read by then.
const GRACE: Duration = Duration::from_millis(50);

/// All of a listener's, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Silent(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// A connection's place; it leaves when it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    silent: Silent,
    number: u64,
    /// Cancelled when the connection is to make room.
    pub(super) cut: CancellationToken,
}

impl Entry {
    /// The head is there: it is cut no more.
    pub(super) fn heard(&self) {
        self.silent.queue().waiting.remove(&self.number);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.heard();
    }
}

impl Silent {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection came.
    pub(super) fn enter(&self) -> Entry {
        let cut = CancellationToken::new();
        let mut queue = self.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, (Instant::now(), cut.clone()));
        drop(queue);
        Entry { silent: self.clone(), number, cut }
    }

    /// Cuts the one that has been silent for the longest time. Otherwise how long until one may be cut; `None`: there is none.
    fn cut_oldest(&self, now: Instant) -> Result<(), Option<Duration>> {
        let mut queue = self.queue();
        let Some(oldest) = queue.waiting.first_entry() else { return Err(None) };
        let age = now.saturating_duration_since(oldest.get().0);
        match GRACE.checked_sub(age).filter(|left| !left.is_zero()) {
            Some(left) => Err(Some(left)),
            None => {
                let (_, cut) = oldest.remove();
                cut.cancel();
                Ok(())
            }
        }
    }

    /// Waits for one of the `slots`; where all are taken, the oldest silent connection gives up its own. `None`: they are closed.
    pub(super) async fn room(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
                return Some(slot);
            }
            let free = Arc::clone(slots).acquire_owned();
            match self.cut_oldest(Instant::now()) {
                Ok(()) | Err(None) => return free.await.ok(),
                Err(Some(left)) => {
                    if let Ok(slot) = timeout(left, free).await {
                        return slot.ok();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_one_goes_and_not_before_its_time() {
        let silent = Silent::default();
        let now = Instant::now();
        assert_eq!(silent.cut_oldest(now), Err(None));
        let [first, second, third] = [(); 3].map(|()| silent.enter());
        let later = Instant::now() + GRACE * 2;
        assert!(matches!(silent.cut_oldest(now), Err(Some(left)) if left <= GRACE));
        first.heard();
        assert_eq!(silent.cut_oldest(later), Ok(()));
        assert!(second.cut.is_cancelled() && !first.cut.is_cancelled() && !third.cut.is_cancelled());
        drop(third);
        assert_eq!(silent.cut_oldest(later), Err(None));
    }
}
