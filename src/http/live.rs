//! `/live`: 200 while the process moves. An orchestrator may kill it otherwise, so nothing outside counts here.

use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::health::HEARTBEAT_MAX;

pub(super) async fn answer(State(shared): State<Shared>) -> (StatusCode, String) {
    let silence = shared.health.silence();
    if silence <= HEARTBEAT_MAX {
        (StatusCode::OK, "live\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("no heartbeat for {} s\n", silence.as_secs()))
    }
}
