//! Events: the last ones, an entity's story, one event.

use std::collections::HashMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::html::Html;
use super::page::{self, Facts};
use crate::config::Template;
use crate::config::units::about_size;
use crate::event::assemble::partition_key;
use crate::event::route::routing_key;
use crate::store::story::{Found, LOOKED_AT_MAX, PAYLOAD_CHARS_MAX, Told};

/// Events of a page.
pub(super) const EVENTS_MAX: i64 = 50;
/// Events of a story.
pub(super) const STORY_MAX: i64 = 100;

/// What was searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Event(Uuid),
    Entity(String, String),
}

impl Query {
    /// An id is a UUID; an entity is its type and id, separated by the first colon (a type has none, and no spaces).
    pub(super) fn parse(text: &str) -> Option<Query> {
        if let Ok(id) = Uuid::try_parse(text.trim()) {
            return Some(Query::Event(id));
        }
        let (kind, id) = text.split_once(':')?;
        let kind = kind.trim();
        // An entity's id may begin and end with spaces.
        (!kind.is_empty() && !id.is_empty()).then(|| Query::Entity(kind.to_owned(), id.to_owned()))
    }
}

/// What events are shown with.
pub(super) struct Context<'a> {
    pub(super) template: &'a Template,
    /// When events were confirmed, microseconds since 1970, by their numbers: the leader's last ones.
    pub(super) confirmed: HashMap<i64, i64>,
}

/// How far an event has come: class, word, and what there is to say besides.
fn state(told: &Told, confirmed: Option<i64>) -> (&'static str, String, String) {
    if let Some(aside) = told.aside.as_ref().filter(|aside| aside.state != "confirmed") {
        let class = match aside.state.as_str() {
            "parked" => "bad",
            "discarded" => "quiet",
            _ => "warn",
        };
        let mut more = vec![format!("since {}", aside.since)];
        more.extend(aside.reason.clone());
        more.extend(aside.detail.clone());
        more.extend(aside.request.as_ref().map(|request| format!("asked for: {request}")));
        return (class, aside.state.clone(), more.join(" · "));
    }
    match (confirmed, told.passed) {
        (Some(at_us), _) => ("good", "confirmed".to_owned(), moment(at_us)),
        (None, _) if told.aside.is_some() => ("good", "confirmed".to_owned(), String::new()),
        // By whom and how is not known any more: no claim that the broker has it.
        (None, Some(true)) => ("quiet", "settled".to_owned(), "passed by the cursor".to_owned()),
        (None, Some(false)) => ("warn", "pending".to_owned(), "not passed by the cursor".to_owned()),
        (None, None) => {
            ("warn", "pending".to_owned(), "no relay has led this pipeline on this server".to_owned())
        }
    }
}

fn moment(us: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(us / 1000) * 1_000_000);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Rows of events, in the order in which they are given.
fn table(html: &mut Html, context: &Context<'_>, events: &[Told], marked: Option<Uuid>) {
    html.raw("<div class=\"scroll\"><table class=\"cards\"><thead><tr><th scope=\"col\">seq</th><th scope=\"col\">written</th>")
        .raw("<th scope=\"col\">entity</th><th scope=\"col\">event</th><th scope=\"col\">routing key</th>")
        .raw("<th scope=\"col\">state</th></tr></thead><tbody>");
    for told in events {
        let event = &told.event;
        html.raw(if marked == Some(event.event_id) { "<tr class=\"marked\">" } else { "<tr>" });
        html.raw("<td data-label=\"seq\" class=\"number\">").text(event.seq);
        html.raw("</td><td data-label=\"written\"><time>").text(&told.recorded_at).raw("</time></td>");
        html.raw("<td data-label=\"entity\">");
        page::search_link(html, &partition_key(&event.aggregate_type, &event.aggregate_id));
        html.raw("</td><td data-label=\"event\"><strong>").text(&event.event_type).raw("</strong>");
        if told.deletion {
            html.raw(" <span class=\"pill quiet\">delete</span>");
        }
        html.raw("<br><span class=\"small\">");
        page::search_link(html, &event.event_id.to_string());
        html.raw("</span>");
        attributes(html, told);
        html.raw("</td><td data-label=\"routing key\" class=\"mono\">").text(route(context, told));
        let (class, word, more) = state(told, context.confirmed.get(&event.seq).copied());
        html.raw("</td><td data-label=\"state\"><span class=\"pill ").raw(class).raw("\">").text(word);
        html.raw("</span> <span class=\"small\">").text(more).raw("</span></td></tr>");
    }
    html.raw("</tbody></table></div>");
}

/// Where it was routed when it was tried; else where it would be.
fn route(context: &Context<'_>, told: &Told) -> String {
    let tried = told.aside.as_ref().and_then(|aside| aside.routing_key.clone());
    tried.unwrap_or_else(|| {
        routing_key(context.template, &told.event)
            .map_or_else(|invalid| invalid.reason, |key| key.to_string())
    })
}

fn attributes(html: &mut Html, told: &Told) {
    let event = &told.event;
    html.raw("<details><summary>Attributes</summary>");
    let mut facts = Facts::default();
    facts
        .add("schema version", &event.schema_version)
        .maybe("entity version", event.entity_version)
        .maybe("correlation id", event.correlation_id.as_deref())
        .maybe("causation id", event.causation_id.as_deref())
        .maybe("traceparent", event.traceparent.as_deref())
        .maybe("tracestate", event.tracestate.as_deref())
        .maybe("headers", told.headers.as_deref())
        .add("transaction", event.xid);
    if !told.deletion {
        let bytes = u64::try_from(told.stored_bytes).unwrap_or(0);
        facts.add("payload, as it is stored", about_size(bytes));
    }
    facts.into(html);
    html.raw("</details>");
}

fn legend(html: &mut Html) {
    html.raw("<details class=\"legend-text\"><summary>What the states mean</summary><ul>")
        .raw("<li><strong>confirmed</strong>: the broker has it; known, with the time, for the last 10,000 events that this process published.</li>")
        .raw("<li><strong>settled</strong>: the cursor has passed it: the broker confirmed it, a person discarded it, or it was ")
        .raw("written before the place at which the pipeline was told to begin.</li>")
        .raw("<li><strong>pending</strong>: not settled: to be read, on its way to the broker, or confirmed and not yet written down.</li>")
        .raw("<li><strong>waiting, queued, retry, parked</strong>: set aside; see Parked.</li></ul></details>");
}

/// The page of the last events.
pub(super) fn last(context: &Context<'_>, events: &[Told], before: Option<i64>) -> Html {
    let mut html = Html::default();
    html.raw(
        "<p class=\"quiet\">The newest first. Payloads are not listed; look at one event to see it.</p>",
    );
    if events.is_empty() {
        page::empty(
            &mut html,
            match before {
                Some(_) => "There are no older events: retention has dropped them, or these were the first.",
                None => {
                    "The outbox is empty. Write one: SELECT statecast.publish('order', '1', 'order.placed', '{\"total\": 1}');"
                }
            },
        );
        return html;
    }
    table(&mut html, context, events, None);
    html.raw("<p class=\"pages\">");
    if before.is_some() {
        html.raw("<a href=\"/events\">Newest</a> ");
    }
    if let Some(oldest) = events.last().filter(|_| events.len() as i64 == EVENTS_MAX) {
        html.raw("<a href=\"/events?before=").text(oldest.event.seq).raw("\">Older</a>");
    }
    html.raw("</p>");
    legend(&mut html);
    html
}

/// What can be searched for; `max` bytes of it.
pub(super) fn help(html: &mut Html, searched: &str, max: usize) {
    if searched.len() > max {
        html.raw(
            "<p class=\"note warn\">What you search for is too long: no entity or event id has more than ",
        );
        html.text(max).raw(" bytes.</p>");
    } else if !searched.trim().is_empty() {
        html.raw("<p class=\"note warn\">“")
            .text(searched)
            .raw("” is neither an entity nor an event id.</p>");
    }
    html.raw("<p>Search for an entity by its type and id, such as <code>order:4711</code>, or for one event by its id, ")
        .raw("such as <code>01890a5d-ac96-774b-bcce-b302099a8057</code>.</p>");
}

/// The story of an entity.
pub(super) fn entity(context: &Context<'_>, key: &str, events: &[Told], marked: Option<Uuid>) -> Html {
    let mut html = Html::default();
    html.raw("<section><h2>Story of <span class=\"mono\">").text(key).raw("</span></h2>");
    if events.is_empty() {
        page::empty(
            &mut html,
            "No event of this entity is in the outbox: there never was one, or retention has dropped them.",
        );
    } else {
        html.raw("<p class=\"quiet\">");
        if events.len() as i64 == STORY_MAX {
            html.raw("Its last ").text(STORY_MAX).raw(" events");
        } else {
            html.raw("Its events that are still there");
        }
        html.raw(", in the order in which they were written.</p>");
        table(&mut html, context, events, marked);
        legend(&mut html);
    }
    html.raw("</section>");
    html
}

/// One event with its payload, if that is shown.
pub(super) fn event(context: &Context<'_>, told: &Told, payload: Option<&Option<(String, bool)>>) -> Html {
    let mut html = Html::default();
    let event = &told.event;
    let (class, word, more) = state(told, context.confirmed.get(&event.seq).copied());
    html.raw("<section><h2>Event <span class=\"mono\">")
        .text(event.event_id)
        .raw("</span></h2><p><span class=\"pill ");
    html.raw(class).raw("\">").text(word).raw("</span> ").text(more).raw("</p>");
    let mut facts = Facts::default();
    facts
        .add("event type", &event.event_type)
        .add("routing key", route(context, told))
        .add("written", &told.recorded_at)
        .add("seq", event.seq);
    facts.into(&mut html);
    match payload {
        None => page::empty(&mut html, "Payloads are hidden: console.show_payload = true shows them."),
        Some(None) if told.deletion => {
            page::empty(&mut html, "No payload: this event says that the entity was deleted.");
        }
        Some(None) => {
            page::empty(&mut html, "The payload is gone: retention has dropped this event just now.")
        }
        Some(Some((text, more))) => {
            html.raw("<h3>Payload</h3><pre>").text(text).raw("</pre>");
            if *more {
                html.raw("<p class=\"quiet\">The first ").text(PAYLOAD_CHARS_MAX).raw(" characters.</p>");
            }
        }
    }
    html.raw("</section>");
    html
}

/// Says where an id was looked for.
pub(super) fn not_found(id: Uuid, found: &Found) -> Html {
    let mut html = Html::default();
    html.raw("<div class=\"note warn\"><p><strong>No event <span class=\"mono\">").text(id);
    html.raw("</span> was found.</strong></p><p>");
    match &found.made_at {
        Some(at) => html.raw("By its own account the id was made at ").text(at).raw(". "),
        None => html.raw("The id says nothing about its time, so only the newest events were looked at. "),
    };
    match &found.between {
        Some((from, to)) => html
            .text(found.looked_at)
            .raw(" events of the outbox were looked at, written from ")
            .text(from)
            .raw(" to ")
            .text(to)
            .raw(" by the server's clock"),
        None => html.raw("The outbox has no event"),
    };
    html.raw("; of those that are set aside, the oldest ").text(found.looked_aside).raw(". ");
    if found.looked_at >= LOOKED_AT_MAX || found.looked_aside >= LOOKED_AT_MAX {
        html.raw("A search looks at no more than ").text(LOOKED_AT_MAX);
        html.raw(
            " of each: if the clock that made the id was far from the server's, search for its entity. ",
        );
    }
    html.raw("Retention drops old events.</p></div>");
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::template::Part;
    use crate::event::assemble::tests::event as an_event;
    use crate::store::story::AsideNow;

    const XSS: &str = "\"><script>alert('x')</script>";

    fn told() -> Told {
        Told {
            event: an_event(),
            recorded_at: "2026-01-01T00:00:00.000000Z".into(),
            deletion: false,
            stored_bytes: 12,
            passed: Some(false),
            aside: None,
            headers: None,
        }
    }

    fn aside(state: &str) -> Option<AsideNow> {
        Some(AsideNow {
            state: state.into(),
            reason: Some("unroutable".into()),
            detail: Some(XSS.into()),
            routing_key: Some(XSS.into()),
            since: "then".into(),
            request: Some("retry".into()),
        })
    }

    #[test]
    fn queries() {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        assert_eq!(Query::parse(id), Some(Query::Event(id.parse().unwrap())));
        assert_eq!(Query::parse("order:a:b"), Some(Query::Entity("order".into(), "a:b".into())));
        assert_eq!(Query::parse(&format!(" {id}\n")), Some(Query::Event(id.parse().unwrap())));
        assert_eq!(Query::parse(" order:A "), Some(Query::Entity("order".into(), "A ".into())));
        for text in ["", "order", ":1", " :1", "order:", "'; DROP TABLE"] {
            assert_eq!(Query::parse(text), None, "{text}");
        }
    }

    #[test]
    fn how_far_it_has_come() {
        let words = |told: &Told, confirmed| state(told, confirmed).1;
        assert_eq!(words(&told(), None), "pending");
        assert_eq!(words(&told(), Some(1_000_000)), "confirmed");
        assert_eq!(state(&told(), Some(1_234_567)).2, "1970-01-01T00:00:01.234Z");
        let passed = Told { passed: Some(true), ..told() };
        assert_eq!((state(&passed, None).0, words(&passed, None)), ("quiet", "settled".to_owned()));
        assert_eq!(words(&Told { passed: None, ..told() }, None), "pending");
        for name in ["waiting", "queued", "retry", "parked", "discarded", "confirmed"] {
            assert_eq!(words(&Told { aside: aside(name), ..told() }, None), name);
        }
        let more = state(&Told { aside: aside("parked"), ..told() }, None).2;
        assert!(more.contains("unroutable") && more.contains("asked for: retry"), "{more}");
    }

    #[test]
    fn hostile_text_is_shown_as_text() {
        let mut told = told();
        told.event.aggregate_id = XSS.into();
        told.event.event_type = XSS.into();
        told.event.correlation_id = Some(XSS.into());
        told.headers = Some(format!("{{\"a\":{XSS:?}}}"));
        let template = Template { parts: vec![Part::AggregateId] };
        let context = Context { template: &template, confirmed: HashMap::new() };
        for aside in [None, aside("parked")] {
            let told = Told { aside, ..told.clone() };
            let payload = Some((XSS.to_owned(), true));
            let mut html = last(&context, std::slice::from_ref(&told), Some(1));
            html.append(&entity(&context, XSS, std::slice::from_ref(&told), Some(told.event.event_id)));
            html.append(&event(&context, &told, Some(&payload)));
            help(&mut html, XSS, 300);
            let html = html.finish();
            assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
            assert!(html.matches("&lt;script&gt;").count() > 8);
        }
    }
}
