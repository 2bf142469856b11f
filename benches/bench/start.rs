//! Start: from `exec` to the first confirm, with the schema installed and one event waiting.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::fill::Events;
use crate::relay::Setup;
use crate::run::{Bench, say};
use crate::schedule::now_us;
use crate::servers::{Database, Place, QueueKind};
use crate::sheet::Section;

pub(crate) const NAME: &str = "start";
pub(crate) const FIGURE: &str = "exec to first confirm";
pub(crate) const CASES: [&str; 2] = ["poll", "wal"];
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    section.note(format!(
        "{} starts each of a pipeline that was stopped in good order; a quorum queue. A relay that streams polls until its stream is there, so its first event is polled, too.",
        bench.plan.starts
    ));
    for (streams, case) in [false, true].into_iter().zip(CASES) {
        let database = Database::new(&bench.servers, 0).await?;
        let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
        let setup = Setup::between(&bench.servers, &database, &place).streaming(streams);
        // The pipeline's first start makes its row; that one is not counted.
        setup.ready().await?.stop().await?;
        for run in 0..bench.plan.starts {
            say!("start: {case}, {} of {}", run + 1, bench.plan.starts);
            Events { count: 1, bytes: 800, keys: 1 }.write(&database.client).await?;
            let began_us = now_us();
            let relay = setup.clone().with_confirm_lines().start()?;
            let deadline = Instant::now() + LIMIT;
            while relay.confirm_times().is_empty() {
                ensure!(Instant::now() < deadline, "nothing was confirmed: {}", relay.log());
                tokio::time::sleep(LOOK).await;
            }
            let first = relay.confirm_times().first().map(|(_, at_us)| *at_us).context("no confirm")?;
            section.add(case, FIGURE, "ms", first.saturating_sub(began_us) as f64 / 1e3);
            relay.stop().await?;
        }
        place.drop().await?;
        database.drop(&bench.servers).await?;
    }
    Ok(())
}
