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
    let ms = |ms: Option<f64>| ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1} ms"));
    let tiles: [(&str, &str, String); 8] = [
        ("Confirmed per second", "confirmed", last.map_or("–".into(), |s| format!("{:.0}", s.confirmed))),
        ("Latency, median", "p50", ms(last.and_then(|s| s.p50_ms))),
        ("Latency, 99 %", "p99", ms(last.and_then(|s| s.p99_ms))),
        ("Pending, estimated", "pending", now.pending.to_string()),
        ("Oldest pending", "oldest_pending", format!("{:.1} s", now.oldest_pending_s)),
        ("Parked", "parked", now.parked.to_string()),
        ("In flight", "window_in_use", now.window_in_use.to_string()),
        ("Confirmed by this process", "confirmed_total", now.confirmed_total.to_string()),
    ];
    html.raw("<section><h2 class=\"hidden\">Figures</h2><dl class=\"tiles\">");
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
    let nobody = || "nobody leads: start a relay, or see /ready of those that run".to_owned();
    let mut facts = Facts::default();
    facts
        .add(
            "leader",
            cursor
                .holder
                .clone()
                .unwrap_or_else(|| standing.leader.as_ref().map_or_else(nobody, ToString::to_string)),
        )
        .add("epoch", cursor.epoch)
        .add("lease", cursor.lease().unwrap_or_else(|| "released".to_owned()))
        .add("confirmed since the pipeline began", cursor.confirmed)
        .add("set aside, passed by the cursor", cursor.parked)
        .add("discarded", cursor.discarded);
    facts.into(html);
    html.raw("<p class=\"quiet\">As the database had it when this page was loaded. The figures above are this process's own: ")
        .raw("where it stands by, the leader's console has the live ones.</p>");
}
