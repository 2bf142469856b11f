//! `/metrics`: the text format of Prometheus.

use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;

use super::Shared;

pub(super) async fn answer(State(shared): State<Shared>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], shared.metrics.encode())
}
