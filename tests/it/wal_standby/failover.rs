//! The primary dies while the relay streams; its standby is promoted, and the relay goes on there.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::{Pair, Shop, assert_streaming};
use crate::checker::{Committed, check, read_committed};
use crate::consumer::Consumer;
use crate::load::{Load, UNTIL_STOPPED, Written};
use crate::process::Relay;
use crate::relay::progress;
use crate::servers;

/// `source.timeline_gap`.
const GAP: i64 = 1_000_000;

/// What there is after a failover; everything that the new primary committed has arrived.
struct Survived {
    pair: Pair,
    shop: Shop,
    consumer: Consumer,
    written: Written,
    committed: Vec<Committed>,
}

/// Load on a streaming relay, a dead primary, a promoted standby. `behind`: the standby was away for the last
/// deliveries, so they are undone for certain.
async fn fail_over(mut pair: Pair, behind: bool) -> Survived {
    let shop = pair.bench(servers::rabbitmq().await).await;
    let consumer = shop.bench.consumer();
    let relay = shop.streaming_relay().await;
    let load = Load { transactions: UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let mut moments = fastrand::Rng::with_seed(load.seed);
    let writing = shop.bench.load(load);
    progress(&consumer, moments.usize(200..400)).await;
    assert_streaming(&relay).await;
    if behind {
        pair.level().await;
        pair.standby.stop_fast().await.unwrap();
        progress(&consumer, moments.usize(200..400)).await;
    }
    tokio::time::sleep(Duration::from_micros(moments.u64(..20_000))).await;
    pair.primary.kill9();
    if behind {
        pair.standby.start_again().await.unwrap();
    }
    pair.standby.promote().await.unwrap();
    progress(&consumer, 200).await;
    shop.wait_until_streaming(&relay).await;
    progress(&consumer, 200).await;
    stop.cancel();
    let written = writing.await.unwrap();
    assert!(written.disconnects > 0);
    let committed = finish(&shop, relay, &consumer).await;
    Survived { pair, shop, consumer, written, committed }
}

/// Waits for everything on the new primary and stops the relay; what that primary committed.
async fn finish(shop: &Shop, relay: Relay, consumer: &Consumer) -> Vec<Committed> {
    assert!(relay.log().contains("timeline has changed"), "{}", relay.log());
    shop.bench.finish(&mut [relay], consumer).await;
    let client = shop.bench.client().await;
    let slots = client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(slots.get::<_, i64>(0), 0, "a slot outlived its relay");
    read_committed(&client).await.unwrap()
}

/// The sequence was moved ahead once, so that no number above the gap was issued before.
fn assert_gap(committed: &[Committed]) {
    let jumps: Vec<i64> = committed.windows(2).map(|pair| pair[1].seq - pair[0].seq).collect();
    assert_eq!(jumps.iter().filter(|jump| **jump >= GAP).count(), 1, "one gap in seq");
}

/// What an asynchronous failover undid may have been published. Nothing else may be wrong.
async fn judge_asynchronous(mut survived: Survived) -> usize {
    assert_gap(&survived.committed);
    let kept: HashSet<Uuid> = survived.committed.iter().map(|row| row.event_id).collect();
    let (seen, undone): (Vec<_>, Vec<_>) =
        survived.consumer.seen().into_iter().partition(|seen| kept.contains(&seen.event_id));
    // An undone change is made again, under the same counter and another id: so the two are judged apart.
    let verdict = check(&survived.committed, &seen);
    println!("kept: {}", verdict.summary());
    verdict.assert_clean();
    // Nobody looks for the old primary any more.
    survived.pair.primary.start_again().await.unwrap();
    let old = servers::connect(&survived.pair.primary.url("shop")).await.unwrap();
    let mut verdict = check(&read_committed(&old).await.unwrap(), &undone);
    verdict.lost.clear();
    println!("undone, but committed before: {}", verdict.summary());
    verdict.assert_clean();
    undone.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_follows_the_promotion_of_an_asynchronous_standby() {
    let survived = fail_over(Pair::start().await, false).await;
    judge_asynchronous(survived).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_follows_the_promotion_of_a_standby_that_lags() {
    let survived = fail_over(Pair::start().await, true).await;
    assert!(judge_asynchronous(survived).await > 0, "nothing was undone: the test did not do its work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_with_a_synchronous_standby_undoes_nothing_that_was_published() {
    let pair = Pair::start().await;
    super::synchronous(&servers::connect(&pair.primary.url("postgres")).await.unwrap(), "sb").await;
    let survived = fail_over(pair, false).await;
    assert_gap(&survived.committed);
    let verdict = check(&survived.committed, &survived.consumer.seen());
    verdict.assert_clean();
    let kept: HashSet<Uuid> = survived.committed.iter().map(|row| row.event_id).collect();
    assert!(
        survived.written.acknowledged.iter().all(|id| kept.contains(id)),
        "an acknowledged commit is gone"
    );
    drop((survived.shop, survived.pair));
}
