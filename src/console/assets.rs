//! Style, script and icon, in the binary.

use axum::http::StatusCode;
use axum::response::Response;

use super::page::respond;

const ASSETS: [(&str, &str, &str); 3] = [
    ("/assets/console.css", "text/css; charset=utf-8", include_str!("assets/console.css")),
    ("/assets/console.js", "text/javascript; charset=utf-8", include_str!("assets/console.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// The asset at `path`. They hold nothing secret: the page that asks for the token needs them.
pub(super) fn get(path: &str) -> Option<Response> {
    let (_, kind, text) = ASSETS.iter().find(|(name, ..)| *name == path)?;
    Some(respond(StatusCode::OK, kind, *text))
}
