//! `/ready`: 200 for a leader or standby that nothing keeps from its work, else 503; the body says why.

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Shared;
use crate::health::{Report, Severity};

pub(super) async fn answer(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let report = shared.health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let wants_json = |value: &str| value.contains("application/json");
    if headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(wants_json)) {
        let body = serde_json::to_string(&report).unwrap_or_default();
        (status, [(CONTENT_TYPE, "application/json")], body).into_response()
    } else {
        (status, text(&report)).into_response()
    }
}

/// `ready` or `not ready`, the role, then a line per reason.
fn text(report: &Report) -> String {
    let mut text =
        format!("{}\nrole: {}\n", if report.ready { "ready" } else { "not ready" }, report.role.as_str());
    for reason in &report.reasons {
        let weight = match reason.severity {
            Severity::NotReady => "",
            Severity::Warning => "warning: ",
        };
        text.push_str(&format!("{weight}{}: {}\n", reason.component, reason.text));
    }
    text
}
