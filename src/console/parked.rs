//! Parked events: the list, its filters, and what a person may ask for.

use std::net::SocketAddr;

use uuid::Uuid;

use super::database::{Away, Database};
use super::form::Form;
use super::html::Html;
use super::page;
use crate::contract::Act;
use crate::event::assemble::partition_key;
use crate::store::parked::State;
use crate::store::parked::people::{self, COUNTED_MAX, Matching, ParkedRow, Request, Requested, Selector};

/// Events of a list.
pub(super) const ROWS_MAX: i64 = 100;
/// Bytes of a reason for the audit, at most.
const WHY_MAX: usize = 500;

const STATES: [(&str, State); 4] = [
    ("parked", State::Parked),
    ("waiting", State::Waiting),
    ("queued", State::Queued),
    ("retry", State::Retry),
];
const REASONS: [&str; 4] = ["unroutable", "too_large", "invalid", "nack"];

/// What the filters of the page say.
pub(super) fn selector(form: &Form) -> Selector {
    let state = form.get("state").and_then(|text| STATES.iter().find(|(name, _)| *name == text));
    let (kind, id) = match form.untrimmed("key").map(|key| key.split_once(':').ok_or(key)) {
        // An entity's id may begin and end with spaces; its type has none.
        Some(Ok((kind, id))) => (Some(kind.trim()), Some(id).filter(|id| !id.is_empty())),
        Some(Err(kind)) => (Some(kind.trim()), None),
        None => (None, None),
    };
    Selector {
        aggregate_type: kind.filter(|kind| !kind.is_empty()).map(str::to_owned),
        aggregate_id: id.map(str::to_owned),
        reason: form.get("reason").and_then(|text| REASONS.into_iter().find(|reason| *reason == text)),
        states: state.map(|(_, state)| *state).into_iter().collect(),
        ..Selector::default()
    }
}

/// The page; `acts`: there is a token, so that something can be asked for.
pub(super) fn content(form: &Form, found: &Result<(Vec<ParkedRow>, Matching), Away>, acts: bool) -> Html {
    let mut html = Html::default();
    html.raw("<p class=\"quiet\">Events that the broker refused, and those of the same entity behind them. ")
        .raw("Everything else flows. Parked ones wait for a person; the others go by themselves.</p>");
    filters(&mut html, form);
    let (rows, matching) = match found {
        Ok((rows, matching)) => (rows, *matching),
        Err(error) => {
            page::away(&mut html, error);
            return html;
        }
    };
    if rows.is_empty() {
        let filtered = selector(form) != Selector::default();
        page::empty(
            &mut html,
            if filtered { "Nothing that is set aside matches." } else { "Nothing is set aside. Good." },
        );
        return html;
    }
    html.raw("<form id=\"acts\">");
    if acts {
        html.raw("<p class=\"acts\"><button type=\"button\" data-act=\"retry\" disabled>Retry selected…</button> ")
            .raw("<button type=\"button\" class=\"danger\" data-act=\"discard\" disabled>Discard selected…</button> ")
            .raw("<span id=\"selected\" class=\"quiet\">nothing is selected</span></p>");
    } else {
        html.raw("<p class=\"note\">Retry and discard are off here, because no token is configured: set ")
            .raw("<code>console.token_file</code>, or use <code>statecast parked</code>.</p>");
    }
    html.raw("<p id=\"said\" class=\"note\" role=\"status\" hidden></p>");
    list(&mut html, rows, acts);
    html.raw("</form>");
    if matching != Matching::Exactly(rows.len() as i64) {
        html.raw("<p class=\"quiet\">The first ").text(rows.len()).raw(" of ");
        match matching {
            Matching::Exactly(count) => html.text(count),
            Matching::More => html.raw("more than ").text(COUNTED_MAX),
            Matching::Unknown => html.raw("many"),
        };
        html.raw(" events.</p>");
    }
    if acts {
        dialog(&mut html);
    }
    html
}

fn filters(html: &mut Html, form: &Form) {
    html.raw("<form class=\"filters\" action=\"/parked\">");
    choice(html, "state", "State", STATES.iter().map(|(name, _)| *name), form.get("state"));
    choice(html, "reason", "Reason", REASONS.into_iter(), form.get("reason"));
    html.raw("<div><label for=\"key\">Entity</label><input id=\"key\" name=\"key\" maxlength=\"300\" placeholder=\"type or type:id\"")
        .attr("value", form.untrimmed("key").unwrap_or_default())
        .raw("></div><button>Filter</button></form>");
}

fn choice(
    html: &mut Html,
    name: &'static str,
    label: &'static str,
    values: impl Iterator<Item = &'static str>,
    chosen: Option<&str>,
) {
    html.raw("<div><label for=\"").raw(name).raw("\">").raw(label).raw("</label><select id=\"").raw(name);
    html.raw("\" name=\"").raw(name).raw("\"><option value=\"\">any</option>");
    for value in values {
        html.raw("<option").raw(if chosen == Some(value) { " selected" } else { "" }).raw(">").raw(value);
        html.raw("</option>");
    }
    html.raw("</select></div>");
}

fn list(html: &mut Html, rows: &[ParkedRow], acts: bool) {
    html.raw("<div class=\"scroll\"><table class=\"cards\"><thead><tr>");
    if acts {
        html.raw("<th scope=\"col\"><input type=\"checkbox\" id=\"all\" aria-label=\"Select all\"></th>");
    }
    html.raw("<th scope=\"col\">seq</th><th scope=\"col\">entity</th><th scope=\"col\">event</th>")
        .raw("<th scope=\"col\">state</th><th scope=\"col\">why</th></tr></thead><tbody>");
    for row in rows {
        let key = partition_key(&row.aggregate_type, &row.aggregate_id);
        html.raw("<tr>");
        if acts {
            html.raw("<td data-label=\"select\"><input type=\"checkbox\" name=\"id\"")
                .attr("value", format!("{}:{}", row.seq, row.event_id));
            html.attr("aria-label", format!("Select event {}", row.seq)).raw("></td>");
        }
        html.raw("<td data-label=\"seq\" class=\"number\">")
            .text(row.seq)
            .raw("</td><td data-label=\"entity\">");
        page::search_link(html, &key);
        html.raw("</td><td data-label=\"event\"><strong>")
            .text(&row.event_type)
            .raw("</strong><br><span class=\"small\">");
        page::search_link(html, &row.event_id.to_string());
        html.raw("</span></td><td data-label=\"state\"><span class=\"pill ");
        html.raw(if row.state == "parked" { "bad" } else { "warn" })
            .raw("\">")
            .text(&row.state)
            .raw("</span>");
        if let Some(request) = &row.request {
            html.raw(" <span class=\"pill quiet\">asked: ").text(request).raw("</span>");
        }
        html.raw("<br><span class=\"small\">since ")
            .text(&row.since)
            .raw("</span></td><td data-label=\"why\">");
        html.text(row.reason.as_deref().unwrap_or("behind another event of its entity"));
        if let Some(detail) = &row.detail {
            html.raw("<br><span class=\"small\">").text(detail).raw("</span>");
        }
        if let Some(routing_key) = &row.routing_key {
            html.raw("<br><span class=\"small\">routing key <span class=\"mono\">").text(routing_key);
            html.raw("</span>, ").text(row.attempts).raw(" tries</span>");
        }
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table></div>");
}

fn dialog(html: &mut Html) {
    html.raw("<dialog id=\"confirm\" aria-labelledby=\"confirm-title\"><form id=\"confirm-form\" autocomplete=\"off\">")
        .raw("<h2 id=\"confirm-title\"></h2><p id=\"confirm-text\"></p>")
        .raw("<p><label for=\"why\">Reason, for the audit <span id=\"why-optional\" class=\"quiet\">(optional)</span></label>")
        .raw("<input id=\"why\" maxlength=\"500\"></p><p><label for=\"token\">Token</label>")
        .raw("<input id=\"token\" type=\"password\" autocomplete=\"off\" required></p>")
        .raw("<p id=\"confirm-error\" class=\"note bad\" role=\"alert\" hidden></p>")
        .raw("<p class=\"acts\"><button id=\"confirm-yes\">Confirm</button> ")
        .raw("<button type=\"button\" id=\"confirm-no\">Cancel</button></p></form></dialog>");
}

/// What a person asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asking {
    act: Act,
    ids: Vec<Uuid>,
    /// The rows of these ids, where every id came with its own.
    seqs: Vec<i64>,
    why: Option<String>,
}

/// `SEQ:ID`, as the page's boxes have it, or the id alone.
fn named(text: &str) -> Option<(Option<i64>, Uuid)> {
    let (seq, id) = match text.split_once(':') {
        Some((seq, id)) => (Some(seq.parse().ok()?), id),
        None => (None, text),
    };
    Some((seq, Uuid::try_parse(id).ok()?))
}

impl Asking {
    /// Reads a form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(act: Act, form: &Form) -> Result<Asking, &'static str> {
        let named: Vec<(Option<i64>, Uuid)> =
            form.all("id").map(named).collect::<Option<_>>().ok_or("an id is not an event id")?;
        if named.is_empty() || named.len() as i64 > ROWS_MAX {
            return Err("name 1 to 100 events");
        }
        // An id that an application chose may occur twice: who ticked one row means that row.
        let seqs: Vec<i64> = named.iter().filter_map(|(seq, _)| *seq).collect();
        if !seqs.is_empty() && seqs.len() != named.len() {
            return Err("name all events by SEQ:ID, or all by their ids");
        }
        let ids = named.into_iter().map(|(_, id)| id).collect();
        let why = form.get("why").map(str::to_owned);
        if why.as_ref().is_some_and(|why| why.len() > WHY_MAX) {
            return Err("the reason is longer than 500 bytes");
        }
        match (act, &why) {
            (Act::Discard, None) => Err("a discard needs a reason"),
            _ => Ok(Asking { act, ids, seqs, why }),
        }
    }

    /// Writes the request and its line in the audit.
    ///
    /// # Errors
    /// PostgreSQL.
    pub(super) async fn ask(
        self,
        database: &Database,
        pipeline: &str,
        peer: SocketAddr,
    ) -> Result<Requested, Away> {
        let mut client = database.writer().await?;
        let mut said: Vec<String> = self.ids.iter().map(|id| format!("--id {id}")).collect();
        if !self.seqs.is_empty() {
            let seqs: Vec<String> = self.seqs.iter().map(ToString::to_string).collect();
            said.push(format!("(seq {})", seqs.join(" ")));
        }
        let selector = Selector { event_ids: self.ids, seqs: self.seqs, ..Selector::default() };
        let actor = format!("console from {}", peer.ip());
        let (said, why) = (said.join(" "), self.why.as_deref());
        let request = Request { act: self.act, selector: &selector, said: &said, actor: &actor, why };
        Ok(people::ask(&mut client, pipeline, &request).await?)
    }
}

/// What came of it, in a sentence.
pub(super) fn outcome(act: Act, requested: &Requested) -> String {
    let verb = if act == Act::Retry { "retry" } else { "discard" };
    let events = |count: i64| if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
    let mut text = format!("asked to {verb} {}", events(requested.asked));
    for (count, what) in [
        (requested.already, "asked for already"),
        (requested.busy, "being written by the leader: ask again"),
        (requested.not_found.len() as i64, "not there to be asked for any more"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {} {what}", events(count)));
        }
    }
    text.push_str("; the leader acts on it within a second or so");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    const XSS: &str = "'\"><img src=x onerror=alert(1)>";

    #[test]
    fn filters_select() {
        let of = |query: &str| selector(&Form::parse(query));
        assert_eq!(of(""), Selector::default());
        assert_eq!(of("state=&reason=&key="), Selector::default());
        let all = of("state=parked&reason=too_large&key=order%3Aa:b");
        assert_eq!((all.states, all.reason), (vec![State::Parked], Some("too_large")));
        assert_eq!(
            (all.aggregate_type.as_deref(), all.aggregate_id.as_deref()),
            (Some("order"), Some("a:b"))
        );
        assert_eq!(of("key=order").aggregate_id, None);
        let spaced = of("key=+order+%3A+a+");
        assert_eq!(
            (spaced.aggregate_type.as_deref(), spaced.aggregate_id.as_deref()),
            (Some("order"), Some(" a "))
        );
        assert_eq!(of("key=%3Aa").aggregate_type, None, "no type is not the empty one");
        assert_eq!(
            of("state=confirmed&reason=x"),
            Selector::default(),
            "what does not exist selects nothing"
        );
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let parse = |act, text: &str| Asking::parse(act, &Form::parse(text));
        let retry = parse(Act::Retry, &format!("id={ID}")).unwrap();
        assert_eq!((retry.ids.len(), retry.seqs.len(), retry.why), (1, 0, None));
        let rows = parse(Act::Retry, &format!("id=7%3A{ID}&id=-8:{ID}")).unwrap();
        assert_eq!((rows.ids.len(), rows.seqs), (2, vec![7, -8]));
        assert!(parse(Act::Retry, &format!("id=7:{ID}&id={ID}")).unwrap_err().contains("SEQ:ID"));
        for wrong in
            [format!("x:{ID}"), format!(":{ID}"), "7:".to_owned(), format!("99999999999999999999:{ID}")]
        {
            assert!(parse(Act::Retry, &format!("id={wrong}")).is_err(), "{wrong}");
        }
        assert!(parse(Act::Discard, &format!("id={ID}")).unwrap_err().contains("reason"));
        assert!(parse(Act::Discard, &format!("id={ID}&why=sent+by+hand")).is_ok());
        assert!(parse(Act::Retry, "").is_err() && parse(Act::Retry, "id=x").is_err());
        assert!(parse(Act::Retry, &format!("id={ID}&").repeat(101)).is_err());
        assert!(parse(Act::Retry, &format!("id={ID}&why={}", "x".repeat(501))).is_err());
    }

    #[test]
    fn hostile_text_is_shown_as_text() {
        let row = ParkedRow {
            seq: 1,
            event_id: ID.parse().unwrap(),
            aggregate_type: XSS.into(),
            aggregate_id: XSS.into(),
            event_type: XSS.into(),
            payload_bytes: None,
            recorded_at: XSS.into(),
            state: XSS.into(),
            reason: Some(XSS.into()),
            detail: Some(XSS.into()),
            routing_key: Some(XSS.into()),
            attempts: 1,
            since: XSS.into(),
            since_s: 0,
            parked_at: None,
            request: Some(XSS.into()),
            requested_by: Some(XSS.into()),
            requested_at: None,
            passed: false,
        };
        let form = Form::parse("key=%27%22%3E%3Cimg+src%3Dx+onerror%3Dalert%281%29%3E");
        let html = content(&form, &Ok((vec![row.clone()], Matching::Exactly(7))), true).finish();
        assert!(!html.contains("<img") && html.contains("&lt;img src=x"), "{html}");
        assert!(
            html.contains(&format!("value=\"1:{ID}\"")) && html.contains("The first 1 of 7 events"),
            "{html}"
        );
        for (matching, text) in
            [(Matching::More, "of more than 10000 events"), (Matching::Unknown, "of many events")]
        {
            let html = content(&form, &Ok((vec![row.clone()], matching)), true).finish();
            assert!(html.contains(text), "{html}");
        }
        let html = content(&form, &Err(Away(XSS.into())), true).finish();
        assert!(!html.contains("<img") && html.contains("PostgreSQL does not answer"), "{html}");
    }

    #[test]
    fn the_outcome_says_what_is_left() {
        let requested = Requested { asked: 1, already: 2, busy: 0, not_found: vec![Uuid::nil()] };
        let text = outcome(Act::Retry, &requested);
        assert!(
            text.starts_with("asked to retry 1 event; 2 events asked for already; 1 event not there"),
            "{text}"
        );
    }
}
