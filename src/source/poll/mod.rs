//! Polling by snapshot difference: the truth in every mode.
//!
//! P is a snapshot of which every visible transaction is settled (for the database) or handed to the relay (in this
//! task's memory). A *window* is everything that completed between P and the snapshot of its first page; its pages are
//! read under that stored snapshot, and its last page makes it the new P. The relay moves the database's P behind.
//!
//! Fails with SQL errors only; the session then starts again from the cursor row.

pub mod page;
pub mod reader;
pub mod sql;
pub mod window;

use std::time::Duration;

use tokio::time::sleep;

use crate::config;
use crate::contract::Position;
use page::PageError;
pub use reader::{Ends, Reader};
use reader::{Halt, Step};

/// What a reader is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Pipeline.
    pub pipeline: String,
    /// Intervals and rows per page.
    pub poll: config::Poll,
    /// Bytes per page, at most; one larger row passes alone.
    pub page_bytes: i64,
}

/// Polls until the session is over or the relay is gone.
///
/// # Errors
/// SQL.
pub async fn run(mut reader: Reader, poll: &config::Poll, position: &Position) -> Result<(), PageError> {
    match poll_on(&mut reader, poll, position).await {
        Ok(never) => match never {},
        Err(Halt::Over) => Ok(()),
        Err(Halt::Failed(error)) => Err(error),
    }
}

async fn poll_on(
    reader: &mut Reader,
    poll: &config::Poll,
    position: &Position,
) -> Step<std::convert::Infallible> {
    reader.resume(position).await?;
    let mut interval = poll.busy_interval;
    loop {
        let read = reader.read_window(None).await?;
        interval = next_interval(interval, read.found, poll);
        reader.serving(sleep(interval)).await?;
    }
}

/// Twice as long each time that nothing was found.
pub(in crate::source) fn next_interval(last: Duration, found: bool, poll: &config::Poll) -> Duration {
    if found { poll.busy_interval } else { (last * 2).min(poll.idle_interval) }
}
