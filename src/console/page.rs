//! What every page has: head, navigation, search; and every answer: its headers.

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;

use super::database::Away;
use super::html::{Encoded, Html};

/// Nothing from elsewhere, nothing inline, nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Pages of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Events,
    Parked,
    Cursor,
    /// None of them.
    Elsewhere,
}

const NAVIGATION: [(Place, &str, &str); 4] = [
    (Place::Overview, "/", "Overview"),
    (Place::Events, "/events", "Events"),
    (Place::Parked, "/parked", "Parked"),
    (Place::Cursor, "/cursor", "Cursor"),
];

/// A page in the making.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) place: Place,
    pub(super) title: &'static str,
    pub(super) pipeline: &'a str,
    /// What was searched for.
    pub(super) searched: &'a str,
    /// Without navigation: for who may not read.
    pub(super) bare: bool,
}

impl<'a> Page<'a> {
    pub(super) fn new(place: Place, title: &'static str, pipeline: &'a str) -> Page<'a> {
        Page { place, title, pipeline, searched: "", bare: false }
    }

    /// The page as an answer.
    pub(super) fn answer(self, status: StatusCode, content: &Html) -> Response {
        respond(status, "text/html; charset=utf-8", self.document(content).finish())
    }

    fn document(&self, content: &Html) -> Html {
        let mut html = Html::default();
        html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")
            .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")
            .raw("<meta name=\"color-scheme\" content=\"light dark\"><title>")
            .text(self.title)
            .raw(" · ")
            .text(self.pipeline)
            .raw(" · Statecast</title><link rel=\"stylesheet\" href=\"/assets/console.css\">")
            .raw("<link rel=\"icon\" href=\"/assets/icon.svg\"><script src=\"/assets/console.js\" defer></script>")
            .raw("</head><body><a class=\"skip\" href=\"#main\">Skip to content</a>");
        self.header(&mut html);
        html.raw("<main id=\"main\"><h1>").text(self.title).raw("</h1>");
        html.append(content);
        html.raw("</main></body></html>\n");
        html
    }

    fn header(&self, html: &mut Html) {
        html.raw("<header><p class=\"brand\"><strong>Statecast</strong> <span class=\"pipeline\">")
            .text(self.pipeline)
            .raw("</span></p>");
        if self.bare {
            html.raw("</header>");
            return;
        }
        html.raw("<nav aria-label=\"Pages\"><ul>");
        for (place, path, name) in NAVIGATION {
            html.raw("<li><a href=\"").raw(path).raw("\"");
            if place == self.place {
                html.raw(" aria-current=\"page\"");
            }
            html.raw(">").raw(name).raw("</a></li>");
        }
        html.raw("</ul></nav><form class=\"search\" action=\"/search\" role=\"search\">")
            .raw("<label class=\"hidden\" for=\"q\">Entity (type:id) or event id</label>")
            .raw("<input id=\"q\" name=\"q\" type=\"search\" maxlength=\"300\" placeholder=\"type:id or event id\"")
            .attr("value", self.searched)
            .raw("><button>Search</button></form></header>")
            .raw("<p id=\"offline\" class=\"note bad\" role=\"status\" hidden></p>");
    }
}

/// An answer with the headers that all have.
pub(super) fn respond(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        // No page of another origin holds an answer of this one. (A policy for windows would be refused over plain HTTP, with an
        // error on every page.)
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Says that PostgreSQL cannot be asked.
pub(super) fn away(html: &mut Html, away: &Away) {
    html.raw("<div class=\"note bad\" role=\"alert\"><p><strong>PostgreSQL does not answer this page.</strong> ")
        .raw("What is shown from the database is missing; live figures on the Overview come from this process and go on. ")
        .raw("Reload to ask again.</p><p class=\"mono\">")
        .text(&away.0)
        .raw("</p></div>");
}

/// A line that stands where there is nothing to show.
pub(super) fn empty(html: &mut Html, text: &'static str) {
    html.raw("<p class=\"note\">").raw(text).raw("</p>");
}

/// A link to the story of an entity or an event.
pub(super) fn search_link(html: &mut Html, query: &str) {
    html.raw("<a class=\"mono\" href=\"/search?q=").text(Encoded(query)).raw("\">").text(query).raw("</a>");
}

/// Rows of names and values.
#[derive(Debug, Default)]
pub(super) struct Facts(Html);

impl Facts {
    pub(super) fn add(&mut self, name: &'static str, value: impl std::fmt::Display) -> &mut Facts {
        self.0.raw("<dt>").raw(name).raw("</dt><dd>").text(value).raw("</dd>");
        self
    }

    /// Left out if there is none.
    pub(super) fn maybe(&mut self, name: &'static str, value: Option<impl std::fmt::Display>) -> &mut Facts {
        match value {
            Some(value) => self.add(name, value),
            None => self,
        }
    }

    pub(super) fn into(self, html: &mut Html) {
        html.raw("<dl class=\"facts\">").append(&self.0).raw("</dl>");
    }
}
