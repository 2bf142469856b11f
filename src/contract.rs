//! The messages that the parts send each other. The relay sees neither SQL nor lapin: only these.
//!
//! ```text
//! source → relay   Input, Batch (refetched)      relay → source   Fetch, Missing, Lsn (settled)
//! relay → lane     Vec<Arc<Message>>             lane → relay     Vec<Outcome>
//! relay → keeper   ToKeeper                      keeper → relay   FromKeeper
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
    /// Can never go: over a size limit. The lane may end after it has said so.
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

/// What the keeper is asked, relay → keeper. Answered in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToKeeper {
    /// Answered by [`Committed`].
    Commit(Commit),
    /// Answered by [`Recalled`].
    Recall(Recall),
}

/// A cursor write, relay → keeper: all of it in one transaction.
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
    /// Events before `position` since the pipeline began: confirmed, set aside or discarded.
    pub passed: i64,
    /// Rows to set aside. A page has listed each, so they are visible and durable. Already set aside: left as they are.
    pub set_aside: Vec<SetAside>,
    /// What became of rows that are set aside.
    pub changes: Vec<Change>,
    /// Rows may be set aside that no cursor write has passed: see which of them this one passes.
    pub unpassed: bool,
}

/// A row to set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The row.
    pub seq: Seq,
    /// Hash of its partition key.
    pub key: u64,
    /// As what.
    pub state: Aside,
    /// Its routing key, if it was tried.
    pub routing_key: Option<String>,
}

/// How a row is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Behind others of its key.
    Queued,
    /// It is tried again.
    Waiting(Refusal),
    /// A person decides.
    Parked(Refusal),
}

/// Why a row was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In one word.
    pub reason: Reason,
    /// The broker's answer, or the limit with both numbers.
    pub detail: String,
}

/// Why a row was refused, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The broker said no: back-pressure.
    Nack,
    /// No queue took it.
    Unroutable,
    /// Over a size limit.
    TooLarge,
    /// Cannot be encoded.
    Invalid,
}

/// What became of a row that was set aside. A row that is final already stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The row.
    pub seq: Seq,
    /// What it became.
    pub to: Became,
}

/// See [`Change`]. `Retry`, `Discarded` and `Unchanged` answer a request, and clear it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Became {
    /// Published. Final.
    Confirmed,
    /// A person gave it up. Final.
    Discarded,
    /// A person wants it tried again.
    Retry,
    /// Refused once more; since when it waits is kept if it was waiting.
    Waiting {
        /// Why.
        refusal: Refusal,
        /// Its routing key, which is another than before if the configuration is.
        routing_key: String,
        /// It was sent, which counts as an attempt. Else it waits for its routing key, which was refused for another event.
        tried: bool,
    },
    /// A person decides.
    Parked(Refusal),
    /// The request was refused.
    Unchanged,
}

/// Bodies of rows that are set aside, relay → keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Rises by one with each recall of a session.
    pub id: u64,
    /// Whose: at most [`RECALL_KEYS_MAX`].
    pub keys: Vec<u64>,
    /// Rows over all keys, at most; at least one for each key until `bytes_max` is reached.
    pub rows_max: usize,
    /// Bytes over all keys, at most; the first row passes alone.
    pub bytes_max: usize,
}

/// Keys of one [`Recall`], at most.
pub const RECALL_KEYS_MAX: usize = 64;

/// What the keeper says, keeper → relay.
#[derive(Debug)]
pub enum FromKeeper {
    /// A [`Commit`] is in the database.
    Committed(Committed),
    /// The answer to a [`Recall`].
    Recalled(Recalled),
    /// What people ask for, repeated until a [`Change`] answers it.
    Asked(Vec<Asked>),
    /// What waits for people, when a session begins and some seconds apart.
    Parked(ParkedRows),
}

/// Rows that are parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedRows {
    /// How many: those beyond a bound are not counted.
    pub rows: i64,
    /// How long the oldest has been.
    pub oldest: Duration,
}

/// A cursor write that is in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// [`Commit::id`].
    pub id: u64,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
    /// Rows set aside that this write passed.
    pub passed: Vec<Seq>,
}

/// The answer to a [`Recall`].
#[derive(Debug)]
pub struct Recalled {
    /// [`Recall::id`].
    pub id: u64,
    /// Exactly the keys that were asked for.
    pub keys: Vec<RecalledKey>,
}

/// What is set aside of one key.
#[derive(Debug)]
pub struct RecalledKey {
    /// The key.
    pub key: u64,
    /// By `seq`, up to (not including) the first row that is parked, or that a person has given up. Beyond the limits of the
    /// recall: none.
    pub events: Vec<Event>,
    /// Rows that a person has given up, before which `events` end. Nothing behind them goes until that is written.
    pub given_up: Vec<Seq>,
    /// What follows `events`.
    pub then: Then,
}

/// What follows the events of a [`RecalledKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// More that may be recalled, or that a person has given up.
    More,
    /// Nothing else of the key is set aside.
    Empty,
    /// A parked row.
    Parked,
}

/// A person asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For this row.
    pub seq: Seq,
    /// Hash of its partition key.
    pub key: u64,
    /// What for.
    pub act: Act,
}

/// What a person may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Try it again.
    Retry,
    /// Give it up.
    Discard,
}

/// Keys that may be set aside at a time.
pub const KEYS_MAX: usize = 100_000;

/// Rows that are set aside and that no cursor write has passed, as a leader may find them.
pub const UNPASSED_MAX: usize = 2_000_000;

/// What a leader finds set aside, at a session's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsideState {
    /// The first open row of each key: at most [`KEYS_MAX`], and one more so that more can be told.
    pub heads: Vec<Head>,
    /// Rows in any state that no cursor write has passed: at most [`UNPASSED_MAX`], and one more so that more can be told.
    pub unpassed: Vec<Seq>,
}

/// The first open row of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Hash of the partition key.
    pub key: u64,
    /// The row.
    pub seq: Seq,
    /// Its state.
    pub state: HeadState,
    /// Why it was refused, if it was.
    pub reason: Option<Reason>,
    /// Its routing key, if it was tried.
    pub routing_key: Option<String>,
    /// How long it has been in this state.
    pub waited: Duration,
}

/// State of an open row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadState {
    /// Tried again by the relay.
    Waiting,
    /// A person decides.
    Parked,
    /// Nothing before it is open any more.
    Queued,
    /// A person wants it tried again.
    Retry,
}
