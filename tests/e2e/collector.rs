//! A collector of spans that takes one request and refuses the next, so that spans are exported and dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// Dropped, it takes no more connections.
pub struct Collector {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::new(AtomicBool::new(false)));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Collector { address, _serving: AbortOnDropHandle::new(serving) }
    }

    /// For `otel.endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// A relay does not try again after 400: the spans of that request are dropped at once.
async fn answer(State(refuses): State<Arc<AtomicBool>>, _: Bytes) -> StatusCode {
    if refuses.fetch_xor(true, Ordering::Relaxed) { StatusCode::BAD_REQUEST } else { StatusCode::OK }
}
