//! Cursor, lease and stream, as the database and this process have them.

use super::database::Away;
use super::html::Html;
use super::live::Now;
use super::overview::Standing;
use super::page::{self, Facts};
use crate::config::units::about_size;
use crate::metrics::Metrics;

pub(super) fn content(now: &Now, metrics: &Metrics, standing: &Result<Standing, Away>) -> Html {
    let mut html = Html::default();
    html.raw("<section><h2>Cursor and lease</h2>");
    match standing {
        Err(error) => page::away(&mut html, error),
        Ok(standing) => cursor(&mut html, standing),
    }
    html.raw("</section><section><h2>Stream, as this process sees it</h2>");
    let size = |bytes: i64| about_size(u64::try_from(bytes).unwrap_or(0));
    let mut facts = Facts::default();
    facts
        .add("reads by", format!("{} ({})", now.mode, now.mode_reason))
        .add("lag of the stream", format!("{:.1} s", metrics.wal_lag_seconds.get()))
        .add("WAL kept for it", size(metrics.wal_retained_bytes.get()))
        .add("events it did not bring", metrics.wal_missed.get())
        .add(
            "outbox",
            format!("{} chunks, {}", metrics.outbox_chunks.get(), size(metrics.outbox_bytes.get())),
        );
    facts.into(&mut html);
    html.raw("</section>");
    html
}

fn cursor(html: &mut Html, standing: &Standing) {
    let Some(row) = &standing.cursor else {
        page::empty(html, "This pipeline has no cursor in this database: no relay has led it yet.");
        return;
    };
    let mut facts = Facts::default();
    facts
        .add("pipeline", &row.pipeline)
        .add("holder", row.holder.as_deref().unwrap_or("nobody"))
        .add("lock", standing.leader.as_ref().map_or("free".to_owned(), ToString::to_string))
        .add("epoch", row.epoch)
        .add("lease", row.lease().unwrap_or_else(|| "released".to_owned()))
        .add("written", format!("{} ({:.1} s ago)", row.updated_at, row.age_ms as f64 / 1000.0))
        .add("snapshot: all it sees is settled", &row.snapshot)
        .add("prune_seq", row.prune_seq)
        .add("floor_seq: everything at or below is settled", row.floor_seq)
        .add("max_seq", row.max_seq)
        .maybe(
            "window in progress",
            row.window.as_ref().map(|window| {
                format!("{}, up to seq {}, settled up to {}", window.snapshot, window.ceil, window.seq)
            }),
        )
        .add("lanes", row.lanes)
        .add("confirmed", row.confirmed)
        .add("set aside, passed", row.parked)
        .add("discarded", row.discarded)
        .add("base: settled before the pipeline began", row.base)
        .add("system identifier", row.system_identifier)
        .add("timeline", row.timeline);
    facts.into(html);
}
