//! From a request to a page: who may, which page, and a deadline for all of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_TYPE, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, Request, StatusCode};
use axum::response::Response;
use tokio::time::timeout;

use super::auth::{Access, Auth};
use super::database::{Away, Database, begin};
use super::form::Form;
use super::html::Html;
use super::live::Live;
use super::overview::Standing;
use super::page::{Page, Place, respond};
use super::refusals::Refusals;
use super::story::{self, Query};
use super::{assets, cursor, overview, page, parked};
use crate::config::{Config, Mode};
use crate::contract::Act;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::postgres::PgError;
use crate::store::cursor_admin;
use crate::store::parked::people;
use crate::store::story::{self as stories, Told};

/// For an answer, its questions to PostgreSQL and the body of its request included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's body, at most: a hundred ids with their numbers fit.
const BODY_MAX: usize = 16 << 10;
/// Bytes of a search, at most.
const QUERY_MAX: usize = 300;

/// What answers are made from.
#[derive(Debug)]
pub(super) struct Site {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    auth: Auth,
    refusals: Refusals,
    pub(super) database: Database,
    pub(super) live: Live,
}

impl Site {
    pub(super) fn new(
        config: &Arc<Config>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Result<Site, PgError> {
        let loopback = config.console.listen.is_none_or(|listen| listen.ip().is_loopback());
        metrics.confirmed.enable();
        Ok(Site {
            auth: Auth::new(loopback, config.console.token.as_ref(), &config.name),
            refusals: Refusals::default(),
            database: Database::new(&config.postgres)?,
            live: Live::new(Arc::clone(&metrics), health, config.source.mode == Mode::Poll),
            config: Arc::clone(config),
            metrics,
        })
    }
}

/// Answers a request.
pub(super) async fn answer(
    State(site): State<Arc<Site>>,
    Extension(peer): Extension<SocketAddr>,
    request: Request<Body>,
) -> Response {
    let answering = Box::pin(site.route(peer, request));
    timeout(ANSWER_TIMEOUT, answering).await.unwrap_or_else(|_| {
        respond(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            "this took too long; try again\n",
        )
    })
}

impl Site {
    async fn route(&self, peer: SocketAddr, request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && let Some(asset) = assets::get(&path) {
            return asset;
        }
        match (path.as_str(), request.method()) {
            ("/login", &Method::POST) => return self.log_in(peer, request).await,
            ("/parked/retry", &Method::POST) => return self.act(peer, request, Act::Retry).await,
            ("/parked/discard", &Method::POST) => return self.act(peer, request, Act::Discard).await,
            ("/login" | "/parked/retry" | "/parked/discard", _) => return not_allowed("POST"),
            _ if !reads => return not_allowed("GET, HEAD"),
            _ => {}
        }
        match self.auth.reading(request.headers(), SystemTime::now()) {
            Access::Granted => {}
            access => return self.refuse(access, peer, &path),
        }
        let form = Form::parse(request.uri().query().unwrap_or_default());
        match path.as_str() {
            "/" => self.overview().await,
            "/events" => self.events(&form).await,
            "/search" => self.search(&form).await,
            "/parked" => self.parked(&form).await,
            "/cursor" => self.cursor().await,
            "/api/live" => self.live(&form),
            _ => self.missing(),
        }
    }

    fn page(&self, place: Place, title: &'static str) -> Page<'_> {
        Page::new(place, title, &self.config.name)
    }

    fn missing(&self) -> Response {
        let mut html = Html::default();
        page::empty(&mut html, "There is no such page. The ones that exist are linked above.");
        self.page(Place::Elsewhere, "Not found").answer(StatusCode::NOT_FOUND, &html)
    }

    /// Refuses to show something: a page that says why, and asks for the token where that helps.
    fn refuse(&self, access: Access, peer: SocketAddr, path: &str) -> Response {
        self.refusals.note(access, peer, path, Instant::now());
        if path.starts_with("/api/") {
            return refused(access);
        }
        let mut html = Html::default();
        if access != Access::TokenNeeded {
            html.raw("<p class=\"note bad\" role=\"alert\">").text(access.why()).raw("</p>");
        }
        if self.auth.has_token() {
            html.raw("<form class=\"login\" method=\"post\" action=\"/login\"><label for=\"token\">Token</label>")
                .raw("<input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" required autofocus>")
                .raw("<button>Open the console</button></form>")
                .raw("<p class=\"quiet\">It is what <code>console.token</code> or <code>console.token_file</code> holds.</p>");
        }
        let status = refusal_status(access);
        let title = if status == StatusCode::FORBIDDEN { "Refused" } else { "Token needed" };
        let page = Page { bare: true, ..self.page(Place::Elsewhere, title) };
        challenged(page.answer(status, &html))
    }

    async fn log_in(&self, peer: SocketAddr, request: Request<Body>) -> Response {
        let headers = request.headers().clone();
        let Some(form) = body(request).await else { return too_large() };
        let opened = form.get("token").and_then(|token| self.auth.open(token, &headers, SystemTime::now()));
        let Some(cookie) = opened.and_then(|cookie| HeaderValue::try_from(cookie).ok()) else {
            return self.refuse(Access::WrongToken, peer, "/login");
        };
        let mut response = respond(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", "welcome\n");
        response.headers_mut().insert(SET_COOKIE, cookie);
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
        response
    }

    /// Retry and discard. Only with the token in a header that no browser sends by itself.
    async fn act(&self, peer: SocketAddr, request: Request<Body>, act: Act) -> Response {
        match self.auth.acting(request.headers()) {
            Access::Granted => {}
            access => {
                self.refusals.note(access, peer, request.uri().path(), Instant::now());
                return refused(access);
            }
        }
        let is_form = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str().is_ok_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
        });
        if !is_form {
            return said(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send a form: application/x-www-form-urlencoded",
            );
        }
        let Some(form) = body(request).await else { return too_large() };
        let asking = match parked::Asking::parse(act, &form) {
            Ok(asking) => asking,
            Err(what) => return said(StatusCode::BAD_REQUEST, what),
        };
        match asking.ask(&self.database, &self.config.name, peer).await {
            Ok(requested) if requested.asked + requested.already == 0 && requested.busy == 0 => said(
                StatusCode::CONFLICT,
                "nothing to ask for: these events are not set aside any more, or queue behind another",
            ),
            Ok(requested) => {
                let text = parked::outcome(act, &requested);
                tracing::info!(%peer, "console: {text}");
                said(StatusCode::OK, &text)
            }
            Err(Away(what)) => said(StatusCode::SERVICE_UNAVAILABLE, &format!("PostgreSQL: {what}")),
        }
    }

    fn live(&self, form: &Form) -> Response {
        let since = form.get("since").and_then(|since| since.parse().ok()).unwrap_or(0);
        let body = serde_json::to_string(&self.live.now(since, form.get("run").unwrap_or_default()))
            .unwrap_or_default();
        respond(StatusCode::OK, "application/json", body)
    }

    async fn standing(&self) -> Result<Standing, Away> {
        let mut client = self.database.reader().await?;
        let client = &begin(&mut client).await?;
        let cursor = cursor_admin::load(client, &self.config.name).await?;
        let leader = cursor_admin::leader(client, &self.config.name).await?;
        Ok(Standing { cursor, leader })
    }

    async fn overview(&self) -> Response {
        let content = overview::content(&self.live.now(0, ""), &self.standing().await);
        self.page(Place::Overview, "Overview").answer(StatusCode::OK, &content)
    }

    async fn cursor(&self) -> Response {
        let content = cursor::content(&self.live.now(0, ""), &self.metrics, &self.standing().await);
        self.page(Place::Cursor, "Cursor, lease and stream").answer(StatusCode::OK, &content)
    }

    fn shown_with(&self, events: &[Told]) -> story::Context<'_> {
        let ids = events.iter().map(|told| (told.event.seq, told.event.event_id));
        let confirmed = self.metrics.confirmed.find(ids);
        story::Context { template: &self.config.rabbitmq.routing_key, confirmed }
    }

    async fn events(&self, form: &Form) -> Response {
        let before = form.get("before").and_then(|before| before.parse().ok());
        let asked = async {
            let mut client = self.database.reader().await?;
            let client = &begin(&mut client).await?;
            Ok(stories::last(client, &self.config.name, before, story::EVENTS_MAX).await?)
        };
        let html = match asked.await {
            Ok(events) => story::last(&self.shown_with(&events), &events, before),
            Err(error) => away(&error),
        };
        self.page(Place::Events, "Events").answer(StatusCode::OK, &html)
    }

    async fn parked(&self, form: &Form) -> Response {
        let asked = async {
            let mut client = self.database.reader().await?;
            let client = &begin(&mut client).await?;
            let selector = parked::selector(form);
            Ok(people::brief(client, &self.config.name, &selector, parked::ROWS_MAX).await?)
        };
        let content = parked::content(form, &asked.await, self.auth.has_token());
        self.page(Place::Parked, "Parked events").answer(StatusCode::OK, &content)
    }

    async fn search(&self, form: &Form) -> Response {
        let searched = form.untrimmed("q").unwrap_or_default();
        let query = Query::parse(searched).filter(|_| searched.len() <= QUERY_MAX);
        let html = match query {
            None => {
                let mut html = Html::default();
                story::help(&mut html, searched, QUERY_MAX);
                html
            }
            Some(query) => self.find(query).await.unwrap_or_else(|error| away(&error)),
        };
        let searched = if searched.len() > QUERY_MAX { "" } else { searched };
        let page = Page { searched, ..self.page(Place::Elsewhere, "Search") };
        page.answer(StatusCode::OK, &html)
    }

    async fn find(&self, query: Query) -> Result<Html, Away> {
        let mut client = self.database.reader().await?;
        let client = &begin(&mut client).await?;
        let pipeline = self.config.name.as_str();
        match query {
            Query::Entity(kind, id) => {
                let told = |id| stories::of_entity(client, pipeline, &kind, id, story::STORY_MAX);
                let (mut id, mut events) = (id.as_str(), told(id.as_str()).await?);
                if events.is_empty() && id != id.trim() {
                    // Spaces that came along when it was copied.
                    id = id.trim();
                    events = told(id).await?;
                }
                Ok(story::entity(&self.shown_with(&events), &format!("{kind}:{id}"), &events, None))
            }
            Query::Event(id) => {
                let found = stories::find(client, pipeline, id).await?;
                let Some(told) = &found.told else { return Ok(story::not_found(id, &found)) };
                let (kind, entity) = (&told.event.aggregate_type, &told.event.aggregate_id);
                let events = stories::of_entity(client, pipeline, kind, entity, story::STORY_MAX).await?;
                let payload = match self.config.console.show_payload {
                    true => Some(stories::payload(client, pipeline, told.event.seq).await?),
                    false => None,
                };
                let mut shown = events.clone();
                shown.push(Told::clone(told));
                let context = self.shown_with(&shown);
                let mut html = story::event(&context, told, payload.as_ref());
                html.append(&story::entity(&context, &format!("{kind}:{entity}"), &events, Some(id)));
                Ok(html)
            }
        }
    }
}

fn away(error: &Away) -> Html {
    let mut html = Html::default();
    page::away(&mut html, error);
    html
}

/// The body as a form. `None`: it is too large, or broke off.
async fn body(request: Request<Body>) -> Option<Form> {
    let bytes = to_bytes(request.into_body(), BODY_MAX).await.ok()?;
    Some(Form::parse(&String::from_utf8_lossy(&bytes)))
}

/// A sentence for the script.
fn said(status: StatusCode, text: &str) -> Response {
    respond(status, "application/json", serde_json::json!({ "said": text }).to_string())
}

fn refused(access: Access) -> Response {
    challenged(said(refusal_status(access), access.why()))
}

fn refusal_status(access: Access) -> StatusCode {
    match access {
        Access::WrongToken | Access::TokenNeeded | Access::Granted => StatusCode::UNAUTHORIZED,
        Access::ForeignName | Access::ThroughProxy | Access::ForeignPage | Access::NoTokenConfigured => {
            StatusCode::FORBIDDEN
        }
    }
}

fn challenged(mut response: Response) -> Response {
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"statecast console\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

fn too_large() -> Response {
    said(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 16 KiB, or broke off")
}

fn not_allowed(allowed: &'static str) -> Response {
    let mut response = said(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
