//! The messages that the parts send each other. The relay sees neither SQL nor lapin: only these.
//!
//! ```text
//! source → relay   Input, Batch (refetched)      relay → source   Fetch, Missing, Lsn (settled)
//! relay → lane     Vec<Arc<Message>>             lane → relay     Vec<Outcome>
//! relay → keeper   Commit                        keeper → relay   Committed
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::event::{Event, Message, Seq};
use crate::snapshot::Snapshot;

/// A position in the WAL, in bytes.
pub type Lsn = u64;

/// What a source sends.
#[derive(Debug)]
pub enum Input {
    /// Polled events. Their order per key is the order of publication.
    Rows(Batch),
    /// Events that a WAL stream brought, ahead of the window that will list them.
    Streamed(Streamed),
    /// Which rows a window holds: those of the `Rows` before it. The cursor moves by windows only.
    Page(Page),
    /// The same for rows that the stream should have brought. Answered by [`Missing`]; the relay takes the page only if
    /// nothing is missing, and refuses the rest of that stream otherwise.
    Listed(Page),
}

/// Events on their way to the relay. Those that it holds or has settled are read in vain, and harmlessly.
#[derive(Debug)]
pub struct Batch {
    /// In delivery order.
    pub events: Vec<Event>,
    /// The stream should have brought the events below this: those that are new to the relay count as missed.
    pub late: Option<Seq>,
}

/// Events of a stream, in commit order.
#[derive(Debug)]
pub struct Streamed {
    /// Which stream of the session: rises by one with each.
    pub stream: u64,
    /// In delivery order.
    pub events: Vec<Event>,
    /// End of the last transaction that is complete with this batch: once everything up to here is settled, the server
    /// may forget the WAL before it.
    pub upto: Lsn,
}

/// Which rows of a listed page the relay has never seen, relay → source. Empty: the page was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    /// [`Window::id`].
    pub window: u64,
    /// Ascending.
    pub seqs: Vec<Seq>,
}

/// One window [`from`, `upper`): every transaction that completed between two snapshots.
#[derive(Debug, PartialEq, Eq)]
pub struct Window {
    /// Rises by one with each window of a session.
    pub id: u64,
    /// P: everything visible in it is settled.
    pub from: Arc<Snapshot>,
    /// The snapshot that closes the window; becomes P.
    pub upper: Arc<Snapshot>,
    /// `prune_seq` that goes with `upper` once it is P: `max_seq` of the cursor row version visible in it.
    pub prune_seq: Seq,
    /// No row of the window lies above this.
    pub ceil: Seq,
    /// Rows at or below this were settled before this session.
    pub after_seq: Seq,
    /// Opened in this session, not taken up from the cursor row.
    pub fresh: bool,
}

/// A page of a window: `seqs` ascend within the window and over its pages.
#[derive(Debug)]
pub struct Page {
    /// Which window.
    pub window: Arc<Window>,
    /// The rows of this page.
    pub seqs: Vec<Seq>,
    /// No more rows in this window.
    pub last: bool,
}

/// What became of one published message.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The message, as it was handed to the lane.
    pub message: Arc<Message>,
    /// What became of it.
    pub result: Published,
    /// From handing it to the socket to its confirm.
    pub took: Duration,
}

/// The broker's answer for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Acked without a return: at least one queue has it.
    Confirmed,
    /// Back-pressure: retry later.
    Nacked,
    /// No queue took it.
    Returned {
        /// AMQP reply code, e.g. 312.
        code: u16,
        /// AMQP reply text, e.g. `NO_ROUTE`.
        text: String,
    },
    /// Can never go: over a size limit.
    TooLarge {
        /// Which limit, with both numbers.
        reason: String,
    },
    /// Can never go: cannot be encoded.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
}

/// A batch for a lane. Shared, because a message that the broker refuses is published again.
pub type LaneBatch = Vec<Arc<Message>>;

/// Rows that the relay wants once more, relay → source: it let go of their bodies to keep its memory bounded.
#[derive(Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Rows of windows that are not settled, in write order per key.
    pub seqs: Vec<Seq>,
}

/// Where a pipeline stands. All before it is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// P.
    pub snapshot: Arc<Snapshot>,
    /// Rows of the next windows' `new` branch lie above this.
    pub prune_seq: Seq,
    /// The window in progress, if any.
    pub window: Option<WindowPosition>,
}

/// The settled prefix of the window in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowPosition {
    /// [`Window::upper`].
    pub upper: Arc<Snapshot>,
    /// [`Window::prune_seq`].
    pub prune_seq: Seq,
    /// [`Window::ceil`].
    pub ceil: Seq,
    /// Every row of the window at or below this is settled.
    pub seq: Seq,
}

/// A cursor write, relay → keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Rises by one with each commit of a session.
    pub id: u64,
    /// The new position.
    pub position: Position,
    /// P has moved since the last commit: `floor_seq` may move with it.
    pub closes: bool,
    /// Highest sequence value seen before this commit was sent.
    pub max_seq: Seq,
    /// Events before `position` that the broker confirmed, since the pipeline began.
    pub confirmed: i64,
}

/// A cursor write that is in the database, keeper → relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// [`Commit::id`].
    pub id: u64,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
}
