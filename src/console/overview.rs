//! The first page: is it well, and how fast. Its script brings the figures up to date each second.

use super::database::Away;
use super::html::Html;
use super::live::Now;
use super::page::{self, Facts};
use crate::store::cursor_admin::{CursorRow, Leader};

/// What the database says about the pipeline.
pub(super) struct Standing {
    pub(super) cursor: Option<CursorRow>,
    pub(super) leader: Option<Leader>,
}

pub(super) fn content(now: &Now, standing: &Result<Standing, Away>) -> Html {
    let mut html = Html::default();
    health(&mut html, now);
    figures(&mut html, now);
    plots(&mut html);
    html.raw("<section><h2>Leader and lease</h2>");
    match standing {
        Err(error) => page::away(&mut html, error),
        Ok(standing) => lease(&mut html, standing),
    }
    html.raw("</section>");
    html
}

fn health(html: &mut Html, now: &Now) {
    html.raw(
        "<section class=\"health\" aria-live=\"polite\"><p class=\"state\"><span id=\"ready\" class=\"pill ",
    )
    .raw(if now.ready { "good" } else { "bad" })
    .raw("\">")
    .raw(if now.ready { "ready" } else { "not ready" })
    .raw("</span> <span>this process: <strong data-live=\"role\">")
    .text(now.role)
    .raw("</strong></span> <span>reads by: <strong data-live=\"mode\">")
    .text(now.mode)
    .raw("</strong> <span class=\"quiet\">(<span data-live=\"mode_reason\">")
    .text(&now.mode_reason)
    .raw("</span>)</span></span></p><ul id=\"reasons\" class=\"reasons\">");
    for reason in &now.reasons {
        html.raw("<li class=\"").raw(if reason.warning { "warn" } else { "bad" }).raw("\"><strong>");
        html.text(reason.component).raw("</strong> ").text(&reason.text).raw("</li>");
    }
    html.raw("</ul></section>");
}

fn figures(html: &mut Html, now: &Now) {
    let last = now.samples.last();
    // A process that does not lead knows nothing of these.
    let leads = |value: String| if now.leads { value } else { "–".to_owned() };
    let ms = |ms: Option<f64>| match ms {
        None => "–".to_owned(),
        Some(ms) if ms >= now.latency_max_ms => format!("over {:.0} s", now.latency_max_ms / 1000.0),
        Some(ms) => format!("{ms:.1} ms"),
    };
    let tiles: [(&str, &str, String); 8] = [
        ("Confirmed per second", "confirmed", last.map_or("–".into(), |s| format!("{:.0}", s.confirmed))),
        ("Latency, median", "p50", ms(last.and_then(|s| s.p50_ms))),
        ("Latency, 99 %", "p99", ms(last.and_then(|s| s.p99_ms))),
        ("Pending, estimated", "pending", leads(now.pending.to_string())),
        ("Oldest pending", "oldest_pending", leads(format!("{:.1} s", now.oldest_pending_s))),
        ("Parked", "parked", leads(now.parked.to_string())),
        ("In flight", "window_in_use", leads(now.window_in_use.to_string())),
        ("Confirmed by this process", "confirmed_total", now.confirmed_total.to_string()),
    ];
    html.raw("<section><h2 class=\"hidden\">Figures</h2>")
        .raw("<p id=\"elsewhere\" class=\"note warn\"")
        .raw(if now.leads { " hidden" } else { "" })
        .raw(">This process does not lead, so it knows nothing of what is pending or parked: the leader's console does. ")
        .raw("The pages of events and parked ones show what is in the database.</p><dl class=\"tiles\">");
    for (name, key, value) in tiles {
        html.raw("<div><dt>").text(name).raw("</dt><dd").attr("data-live", key).raw(">").text(value);
        html.raw("</dd></div>");
    }
    html.raw("</dl></section>");
}

fn plots(html: &mut Html) {
    html.raw("<section class=\"plots\"><h2 class=\"hidden\">The last five minutes</h2>");
    for (title, series, names, unit) in [
        ("Events per second", "confirmed read", "confirmed read", "/s"),
        ("Latency to confirm", "p50_ms p99_ms", "median 99 %", "ms"),
        ("Pending", "pending", "pending", ""),
    ] {
        html.raw("<figure class=\"plot\"").attr("data-series", series).attr("data-unit", unit);
        html.raw("><figcaption><strong>").text(title).raw("</strong> <span class=\"legend\">");
        let names = if unit == "ms" { vec!["median", "99 %"] } else { names.split(' ').collect() };
        for (index, name) in names.into_iter().enumerate() {
            html.raw(if index == 0 { "<span class=\"first\">" } else { "<span class=\"second\">" });
            html.text(name).raw("</span> ");
        }
        html.raw("</span></figcaption><div class=\"frame\"><span class=\"top\">–</span>")
            .raw("<svg viewBox=\"0 0 300 100\" preserveAspectRatio=\"none\" role=\"img\"")
            .attr("aria-label", format!("{title}, the last five minutes"))
            .raw("><path class=\"second\" d=\"\"/><path class=\"first\" d=\"\"/></svg></div>")
            .raw("<p class=\"axis\"><span>5 min ago</span><span>now</span></p></figure>");
    }
    html.raw("</section><noscript><p class=\"note\">The plots need the console's script.</p></noscript>");
}

fn lease(html: &mut Html, standing: &Standing) {
    let Some(cursor) = &standing.cursor else {
        page::empty(html, "This pipeline has no cursor in this database: no relay has led it yet.");
        return;
    };
    let mut facts = Facts::default();
    facts
        .add("leader", leading(cursor, standing.leader.as_ref()))
        .add("epoch", cursor.epoch)
        .add("lease", cursor.lease().unwrap_or_else(|| "released".to_owned()))
        .add("confirmed since the pipeline began", cursor.confirmed)
        .add("set aside, passed by the cursor", cursor.parked)
        .add("discarded", cursor.discarded);
    facts.into(html);
    html.raw("<p class=\"quiet\">As the database had it when this page was loaded. The figures above are this process's own: ")
        .raw("where it stands by, the leader's console has the live ones.</p>");
}

/// Who leads, as far as the database tells. A holder stays in the row when its process dies.
fn leading(cursor: &CursorRow, lock: Option<&Leader>) -> String {
    const NOBODY: &str = "nobody: start a relay, or see /ready of those that run";
    let holds = cursor.lease_ms.is_some_and(|ms| ms >= 0);
    match (&cursor.holder, lock) {
        (Some(holder), _) if holds => holder.clone(),
        (Some(holder), Some(lock)) => {
            format!("{holder}, whose lease is over and which still holds the lock ({lock})")
        }
        (Some(holder), None) => format!("{NOBODY} (the last one was {holder})"),
        (None, Some(lock)) => lock.to_string(),
        (None, None) => NOBODY.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::live::Live;
    use crate::health::{Health, Role};
    use crate::metrics::Metrics;

    fn cursor(holder: Option<&str>, lease_ms: Option<i64>) -> CursorRow {
        CursorRow {
            pipeline: "shop".into(),
            system_identifier: 1,
            timeline: 1,
            epoch: 1,
            holder: holder.map(str::to_owned),
            pids: Vec::new(),
            snapshot: "1:1:".into(),
            prune_seq: 0,
            floor_seq: 0,
            candidate: None,
            max_seq: 0,
            window: None,
            lanes: 1,
            base: 0,
            confirmed: 0,
            parked: 0,
            discarded: 0,
            updated_at: "then".into(),
            age_ms: 0,
            lease_ms,
        }
    }

    #[test]
    fn a_lease_that_is_over_is_nobodys() {
        let lock = Leader { pid: 7, application: String::new() };
        assert_eq!(leading(&cursor(Some("a:1"), Some(3_000)), None), "a:1");
        let dead = leading(&cursor(Some("a:1"), Some(-300_000)), None);
        assert!(dead.starts_with("nobody") && dead.contains("a:1"), "{dead}");
        let stuck = leading(&cursor(Some("a:1"), Some(-300_000)), Some(&lock));
        assert!(stuck.starts_with("a:1, whose lease is over"), "{stuck}");
        assert_eq!(leading(&cursor(None, None), Some(&lock)), "backend 7");
        assert!(leading(&cursor(None, None), None).starts_with("nobody"));
    }

    #[test]
    fn a_standby_claims_nothing_about_what_is_pending() {
        let (metrics, health) = (Metrics::new("test"), Health::new());
        let live = Live::new(metrics.clone(), health.clone(), false);
        let tile = |key: &str| {
            let mut html = Html::default();
            figures(&mut html, &live.now(0, ""));
            let html = html.finish();
            let value = html.split(&format!("data-live=\"{key}\">")).nth(1).unwrap_or_default();
            (value.split('<').next().unwrap_or_default().to_owned(), html.contains("note warn\" hidden"))
        };
        health.set_role(Role::Standby);
        for key in ["pending", "oldest_pending", "parked", "window_in_use"] {
            assert_eq!(tile(key), ("–".to_owned(), false), "{key}");
        }
        health.set_role(Role::Leader);
        metrics.leader.set(1);
        assert_eq!(tile("parked"), ("0".to_owned(), true));
        assert_eq!(tile("oldest_pending"), ("0.0 s".to_owned(), true));
    }
}
