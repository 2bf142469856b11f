//! The fence: nothing of a dead predecessor may land behind our first message.
//!
//! A killed publisher's last messages can wait in the broker's socket buffers and land *after* what its successor
//! publishes. An exclusive queue is owned by a connection: while the broker still processes the predecessor's socket,
//! declaring the same queue is refused (RESOURCE_LOCKED, 405). So a lane holds an exclusive queue of a fixed name for as
//! long as it lives, and waits until it gets it.

use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use tokio::time::{Instant, sleep};

use super::{SinkError, reply_code};

/// Between two tries.
const RETRY: Duration = Duration::from_millis(100);
/// Heartbeats find a dead predecessor within about ten seconds.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The name of a lane's fence queue.
pub fn queue_name(pipeline: &str, lane: usize) -> String {
    format!("statecast.fence.{pipeline}.{lane}")
}

/// Takes the fence of `lane` for this connection.
///
/// # Errors
/// [`SinkError::Fence`] if somebody holds it for longer than a dead peer could.
pub async fn acquire(connection: &Connection, pipeline: &str, lane: usize) -> Result<(), SinkError> {
    let queue = queue_name(pipeline, lane);
    let name = ShortString::try_new(queue.as_str())
        .map_err(|_| SinkError::Topology(format!("{queue:?} is longer than 255 bytes")))?;
    let began = Instant::now();
    let mut waiting = false;
    loop {
        // A refused declare closes its channel.
        let channel = connection
            .create_channel()
            .await
            .map_err(|source| SinkError::Closed { what: "connection", source })?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        match channel.queue_declare(name.clone(), exclusive, FieldTable::default()).await {
            Ok(_) => {
                let _ = channel.close(200, "fenced".into()).await;
                tracing::debug!(lane, waited = ?began.elapsed(), "fence taken");
                return Ok(());
            }
            Err(error) if reply_code(&error) == Some(405) => {
                if began.elapsed() > WAIT_MAX {
                    return Err(SinkError::Fence { queue, waited: began.elapsed() });
                }
                if !waiting {
                    tracing::info!(lane, "waiting until the broker is done with a predecessor's connection");
                    waiting = true;
                }
                sleep(RETRY).await;
            }
            Err(error) if reply_code(&error) == Some(403) => {
                return Err(SinkError::Topology(format!(
                    "{error}: the user needs the configure permission for queues named statecast.fence.*, or set rabbitmq.fence = false and give up order across takeovers"
                )));
            }
            Err(source) => {
                return Err(SinkError::Closed { what: "channel", source });
            }
        }
    }
}
