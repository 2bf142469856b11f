//! Spans of events, sent by a real relay to a collector in this process, which decodes them by OpenTelemetry's own messages.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use statecast::sandbox::free_port;
use tokio::net::TcpListener;
use tokio::sync::watch;
use uuid::Uuid;

use crate::process::Relay;
use crate::relay::{ARRIVAL_LIMIT, Bench, STOP_LIMIT};
use crate::servers;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
const PARENT: u64 = 0xb7ad_6b71_6920_3331;
/// `shutdown.grace`, which only the relay's own work may use up.
const GRACE: Duration = Duration::from_secs(20);
const SECRET: &str = "Bearer secret-of-the-collector";

/// What a collector does with a request.
#[derive(Clone, Copy, Debug)]
enum Does {
    Take,
    /// Reads it and never answers.
    Stall,
    Answer(u16),
    /// 503, and not again before so many seconds.
    Later(&'static str),
}

/// A collector: decodes what it takes.
struct Collector {
    addr: SocketAddr,
    taken: watch::Receiver<Vec<Span>>,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

#[derive(Clone)]
struct Shared {
    does: Does,
    taken: Arc<watch::Sender<Vec<Span>>>,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Collector {
    async fn start(does: Does) -> Collector {
        Collector::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), does).await
    }

    async fn start_on(addr: SocketAddr, does: Does) -> Collector {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, taken) = watch::channel(Vec::new());
        let heads = Arc::default();
        let shared = Shared { does, taken: Arc::new(sender), heads: Arc::clone(&heads) };
        let router = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Collector { addr, taken, heads }
    }

    /// Waits until it has taken so many spans; all that it has.
    async fn wait_for(&mut self, count: usize) -> Vec<Span> {
        self.wait_until(|spans| spans.len() >= count).await
    }

    /// Waits until its spans are what is expected; all of them.
    async fn wait_until(&mut self, enough: impl FnMut(&Vec<Span>) -> bool) -> Vec<Span> {
        let spans = tokio::time::timeout(ARRIVAL_LIMIT, self.taken.wait_for(enough)).await;
        spans.expect("the spans do not come").unwrap().clone()
    }
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, Vec<u8>) {
    shared.heads.lock().unwrap().push((format!("{method} {uri}"), headers));
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    match shared.does {
        Does::Stall => std::future::pending().await,
        Does::Answer(code) => (StatusCode::from_u16(code).unwrap(), HeaderMap::new(), b"no".to_vec()),
        Does::Later(seconds) => {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(seconds))]);
            (StatusCode::SERVICE_UNAVAILABLE, headers, Vec::new())
        }
        Does::Take => {
            let of_scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            shared.taken.send_modify(|taken| taken.extend(of_scopes.flat_map(|scope| scope.spans)));
            (StatusCode::OK, HeaderMap::new(), ExportTraceServiceResponse::default().encode_to_vec())
        }
    }
}

/// A relay that exports to this address; orders have a queue, nothing else.
async fn traced(collector: SocketAddr, more: &[(&str, &str)]) -> (Bench, Relay) {
    let mut bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    bench.topology.declare_queue("order.#", &[]).await;
    let endpoint = format!("http://{collector}");
    for (name, value) in [("STATECAST_OTEL__ENDPOINT", endpoint.as_str())].iter().chain(more) {
        bench.invocation = bench.invocation.with(name, value);
    }
    let relay = bench.relay().await;
    (bench, relay)
}

async fn write(bench: &Bench, kind: &str, key: &str, traceparent: Option<&str>) -> Uuid {
    let sql =
        "SELECT statecast.publish($1, $2, 'changed', '{\"n\":1}', traceparent => $3, tracestate => 'a=1')";
    bench.client().await.query_one(sql, &[&kind, &key, &traceparent]).await.unwrap().get(0)
}

/// So many events at once, each of a key of its own and traced.
async fn write_many(bench: &Bench, count: i64) {
    let sql = "SELECT count(statecast.publish('order', i::text, 'changed', '{\"n\":1}', traceparent => $2))
                 FROM generate_series(1, $1::bigint) i";
    bench.client().await.execute(sql, &[&count, &TRACEPARENT]).await.unwrap();
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?} of {span:?}"),
    }
}

fn of(spans: &[Span], event: Uuid) -> Vec<&Span> {
    spans.iter().filter(|span| attribute(span, "messaging.message.id") == event.to_string()).collect()
}

async fn confirmed(relay: &Relay, count: i64) {
    let above = count as f64 - 0.5;
    assert!(relay.wait_for_metric("statecast_events_confirmed_total", above, ARRIVAL_LIMIT).await);
}

async fn stop(mut relay: Relay) -> (Duration, String) {
    let began = Instant::now();
    relay.sigterm();
    let status = relay.wait(STOP_LIMIT).await;
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", relay.log());
    (began.elapsed(), relay.log())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_tells_where_an_events_time_went_and_leaves_its_context_alone() {
    let headers = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(headers.path(), format!("Authorization: {SECRET}\n")).unwrap();
    let headers_file = [("STATECAST_OTEL__HEADERS_FILE", headers.path().to_str().unwrap())];
    let mut collector = Collector::start(Does::Take).await;
    let (bench, relay) = traced(collector.addr, &headers_file).await;
    let consumer = bench.consumer();
    let quiet = write(&bench, "order", "1", Some(&TRACEPARENT.replace("-01", "-00"))).await;
    let none = write(&bench, "order", "2", None).await;
    let odd = write(&bench, "order", "3", Some("00-not-a-context")).await;
    let traced = write(&bench, "order", "4", Some(TRACEPARENT)).await;
    let spans = collector.wait_for(2).await;
    for untraced in [quiet, none, odd] {
        assert!(of(&spans, untraced).is_empty(), "{spans:?}");
    }
    let spans = of(&spans, traced);
    let [outbox, publish] = spans.as_slice() else { panic!("{spans:?}") };
    for span in &spans {
        assert_eq!(span.trace_id, TRACE.to_be_bytes());
        assert_eq!(span.parent_span_id, PARENT.to_be_bytes());
        assert_eq!((span.trace_state.as_str(), &span.status), ("a=1", &None));
    }
    assert_eq!((outbox.name.as_str(), outbox.kind()), ("outbox", SpanKind::Internal));
    assert_eq!(publish.kind(), SpanKind::Client);
    assert_eq!(outbox.end_time_unix_nano, publish.start_time_unix_nano);
    assert!(outbox.start_time_unix_nano < outbox.end_time_unix_nano);
    assert!(publish.start_time_unix_nano < publish.end_time_unix_nano);
    let sql = "SELECT (extract(epoch FROM recorded_at) * 1000000)::bigint FROM statecast.outbox WHERE event_id = $1";
    let recorded_us: i64 = bench.client().await.query_one(sql, &[&traced]).await.unwrap().get(0);
    assert_eq!(outbox.start_time_unix_nano, recorded_us as u64 * 1_000);
    let destination = format!("{}:order.changed", bench.topology.exchange);
    assert_eq!(attribute(publish, "messaging.destination.name"), destination);
    consumer.wait_for_ids(ARRIVAL_LIMIT, [quiet, none, odd, traced]).await;
    let delivery = consumer.deliveries().into_iter().find(|one| one.message_id == Some(traced.to_string()));
    let delivery = delivery.unwrap();
    assert_eq!(attribute(publish, "messaging.message.body.size"), delivery.body.len().to_string());
    assert_eq!(delivery.header("traceparent").as_deref(), Some(TRACEPARENT), "the row's own");
    assert_eq!(delivery.header("tracestate").as_deref(), Some("a=1"));
    let body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
    assert_eq!((&body["traceparent"], &body["tracestate"]), (&TRACEPARENT.into(), &"a=1".into()));
    {
        let heads = collector.heads.lock().unwrap();
        let (line, headers) = &heads[0];
        assert_eq!(line, "POST /v1/traces");
        assert_eq!(headers["content-type"], "application/x-protobuf");
        assert_eq!(headers["authorization"], SECRET);
    }
    assert!(relay.wait_for_metric("statecast_spans_exported_total", 1.5, ARRIVAL_LIMIT).await);
    assert_eq!(relay.metric("statecast_spans_dropped_total").await, 0.0);
    let (_, log) = stop(relay).await;
    assert!(!log.contains("secret-of-the-collector"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_shows_returns_as_errors_and_takes_a_share_of_the_others() {
    let mut collector = Collector::start(Does::Take).await;
    let (bench, relay) = traced(collector.addr, &[("STATECAST_OTEL__SAMPLE", "1")]).await;
    let lost = write(&bench, "ghost", "1", Some(TRACEPARENT)).await;
    let alone = write(&bench, "order", "1", None).await;
    let both = |spans: &Vec<Span>| !of(spans, lost).is_empty() && of(spans, alone).len() >= 2;
    let spans = collector.wait_until(both).await;
    let returned = of(&spans, lost)[0];
    assert_eq!(attribute(returned, "error.type"), "unroutable");
    let status = returned.status.clone().unwrap();
    assert!(status.code == 2 && status.message.contains("312"), "{status:?}");
    let spans = of(&spans, alone);
    let [outbox, publish] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(outbox.trace_id, alone.as_bytes());
    assert!(outbox.parent_span_id.is_empty());
    assert_eq!((&publish.parent_span_id, &publish.trace_id), (&outbox.span_id, &outbox.trace_id));
    // Once it has a queue, its time in the outbox ends.
    bench.topology.bind("ghost.#").await;
    collector.wait_until(|spans| of(spans, lost).iter().any(|span| span.name == "outbox")).await;
    stop(relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_waits_for_a_collector_that_is_away_and_tries_again() {
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let (bench, mut relay) = traced(addr, &[]).await;
    write_many(&bench, 100).await;
    confirmed(&relay, 100).await;
    assert!(relay.wait_for_log("spans cannot be exported to", ARRIVAL_LIMIT).await, "{}", relay.log());
    let mut collector = Collector::start_on(addr, Does::Take).await;
    collector.wait_for(200).await;
    assert_eq!(relay.metric("statecast_spans_dropped_total").await, 0.0);
    assert!(relay.wait_for_log("spans are exported again", ARRIVAL_LIMIT).await, "{}", relay.log());
    stop(relay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_drops_spans_and_never_holds_the_relay_up_while_a_collector_stalls() {
    // More than the queue and one request hold.
    const EVENTS: i64 = 10_000;
    let collector = Collector::start(Does::Stall).await;
    let (bench, mut relay) = traced(collector.addr, &[("STATECAST_OTEL__TIMEOUT", "500ms")]).await;
    write_many(&bench, EVENTS).await;
    confirmed(&relay, EVENTS).await;
    let held = (8_192 + 512) * 2;
    assert!(relay.metric("statecast_spans_dropped_total").await >= (EVENTS * 2 - held) as f64);
    assert_eq!(relay.metric("statecast_spans_exported_total").await, 0.0);
    assert!(relay.wait_for_log("no answer in 500ms", ARRIVAL_LIMIT).await, "{}", relay.log());
    assert!(relay.running());
    let (took, log) = stop(relay).await;
    assert!(took < GRACE, "{took:?}");
    assert!(log.contains(&format!("dropped={}", EVENTS * 2)), "whatever is not exported is counted: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_gives_up_at_once_what_a_collector_refuses() {
    let collector = Collector::start(Does::Answer(401)).await;
    let (bench, mut relay) = traced(collector.addr, &[]).await;
    write_many(&bench, 10).await;
    assert!(relay.wait_for_metric("statecast_spans_dropped_total", 19.5, ARRIVAL_LIMIT).await);
    assert!(relay.wait_for_log("it answered 401: no", ARRIVAL_LIMIT).await, "{}", relay.log());
    confirmed(&relay, 10).await;
    let (_, log) = stop(relay).await;
    assert!(log.contains("dropped=20"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracing_rests_for_as_long_as_a_collector_asks() {
    let collector = Collector::start(Does::Later("100")).await;
    let (bench, mut relay) = traced(collector.addr, &[]).await;
    // The first request is given up, since the pause is longer than anything is tried for.
    write_many(&bench, 10).await;
    assert!(relay.wait_for_metric("statecast_spans_dropped_total", 19.5, ARRIVAL_LIMIT).await);
    // More than the queue and one request hold. Whether they do not fit or are refused, that many are dropped.
    const EVENTS: i64 = 10_000;
    write_many(&bench, EVENTS).await;
    let over = (EVENTS - 8_192 - 512) * 2;
    assert!(relay.wait_for_metric("statecast_spans_dropped_total", over as f64 - 0.5, ARRIVAL_LIMIT).await);
    assert_eq!(collector.heads.lock().unwrap().len(), 1, "{}", relay.log());
    confirmed(&relay, EVENTS + 10).await;
    assert!(relay.running());
    let (_, log) = stop(relay).await;
    assert!(
        log.contains(&format!("dropped={}", (EVENTS + 10) * 2)),
        "whatever is not exported is counted: {log}"
    );
}
