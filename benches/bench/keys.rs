//! Strict order with few keys: one confirm round trip per event of a key, whatever else is fast.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::fill::Events;
use crate::relay::Setup;
use crate::run::{Bench, say};
use crate::servers::{Place, QueueKind};
use crate::sheet::Section;

pub(crate) const NAME: &str = "keys";
const BYTES: usize = 800;
const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    let plan = &bench.plan;
    section.note(format!(
        "{BYTES} B, quorum queue, one lane, a backlog of {} events over so few keys: confirms within {} s.",
        plan.events,
        plan.few_keys.as_secs()
    ));
    for keys in [1, 10, 100] {
        let database = bench.filled(Events { count: plan.events, bytes: BYTES, keys }).await?;
        for order in ["strict", "pipelined"] {
            say!("keys: {keys}, {order}");
            let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
            let setup = Setup::between(&bench.servers, &database, &place);
            let mut relay = setup.with("STATECAST_RABBITMQ__ORDERING", order).start()?;
            relay.confirmed(1, START_LIMIT).await?;
            let (first, began) = (relay.confirms().await, Instant::now());
            // All of them, or as many as the time allows.
            let all = relay.confirmed(plan.events, plan.few_keys).await;
            let (last, took) = (relay.confirms().await, began.elapsed());
            ensure!(last > first, "nothing was confirmed: {all:?}");
            section.add(
                &if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") },
                order,
                "events/s",
                (last - first) / took.as_secs_f64(),
            );
            drop(relay);
            database.client.execute("DELETE FROM statecast.cursor", &[]).await?;
            place.drop().await?;
        }
        database.drop(&bench.servers).await?;
    }
    Ok(())
}
