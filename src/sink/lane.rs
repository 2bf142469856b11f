//! A lane: one task, one connection, one channel, and the confirms that are outstanding on it.
//!
//! A channel belongs to one task: two tasks that publish on clones of one channel get each other's confirms. Publishes
//! of a batch are polled once each in order, which puts their frames on the connection in that order, and are awaited
//! together with their confirms, so a socket that does not drain never keeps the lane from reading answers.
//!
//! Each message passes the gate ([`crate::gate`]) right before it is handed over: whoever was stopped, and wakes up when
//! another leads, sends nothing more.
//!
//! Ends when the relay drops its sender and all confirms are in, when the relay has stopped waiting for them, when the gate
//! is closed, or with the error that ended the connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, Event};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;
use uuid::Uuid;

use super::confirm::{Return, Returns};
use super::encode::{Encoded, Envelope, Limits, encode};
use super::{SinkError, connect, fence, topology};
use crate::config::Rabbitmq;
use crate::contract::{LaneBatch, Outcome, Published};
use crate::event::Message;
use crate::gate::Gate;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::switches::{Guarantee, holds};

/// Room for a publish, used again by later ones: each takes more than a kilobyte, and there are thousands a second.
type Room = ReusableBoxFuture<'static, Answer>;

/// A publish from its first poll to its confirm. Gives its room back with the answer.
struct InFlight(Option<Room>);

impl Future for InFlight {
    type Output = (Answer, Room);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(mut room) = self.0.take() else { return Poll::Pending };
        match room.poll(cx) {
            Poll::Ready(answer) => Poll::Ready((answer, room)),
            Poll::Pending => {
                self.0 = Some(room);
                Poll::Pending
            }
        }
    }
}

struct Answer {
    message: Arc<Message>,
    sent_at: Instant,
    confirmation: lapin::Result<Confirmation>,
}

/// A confirm that is in, with any return taken off it.
struct Resolved {
    message: Arc<Message>,
    acked: bool,
    took: Duration,
}

/// A lane that is connected and fenced.
pub struct Lane {
    index: usize,
    connection: Connection,
    channel: Channel,
    envelope: Envelope,
    limits: Limits,
    in_flight: FuturesUnordered<InFlight>,
    /// Of publishes that are done: never more than were in flight at once.
    rooms: Vec<Room>,
    returns: Returns,
    /// A confirm that failed: the channel is gone.
    failed: Option<SinkError>,
    /// The message that the channel was closed over, if it can be told.
    culprit: Option<Outcome>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl Lane {
    /// Connects lane `index`, looks after the topology, and takes the fence (and those of `more_fences`, which a
    /// predecessor with more lanes may have held).
    ///
    /// # Errors
    /// Any [`SinkError`].
    pub async fn open(
        config: &Rabbitmq,
        pipeline: &str,
        index: usize,
        more_fences: std::ops::Range<usize>,
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Result<Lane, SinkError> {
        let connection = connect::connect(config, &format!("statecast {pipeline} lane {index}")).await?;
        if index == 0 {
            topology::ensure(&connection, config).await?;
        }
        if config.fence && holds(Guarantee::Fence) {
            fence::acquire(&connection, pipeline, index).await?;
            for lane in more_fences {
                fence::acquire(&connection, pipeline, lane).await?;
            }
        }
        let closed = |source| SinkError::Closed { what: "connection", source };
        let channel = connection.create_channel().await.map_err(closed)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(closed)?;
        let limits = Limits {
            frame_max: connection.configuration().frame_max() as usize,
            body_max: config.max_message_size,
        };
        let envelope = Envelope {
            app_id: pipeline.into(),
            exchange: lapin::types::ShortString::try_new(config.exchange.as_str())
                .map_err(|_| SinkError::Topology("rabbitmq.exchange is longer than 255 bytes".into()))?,
        };
        Ok(Lane {
            index,
            connection,
            channel,
            envelope,
            limits,
            in_flight: FuturesUnordered::new(),
            rooms: Vec::new(),
            returns: Returns::default(),
            failed: None,
            culprit: None,
            gate,
            metrics,
            health,
        })
    }

    /// Publishes until the relay is done or the connection is gone.
    ///
    /// # Errors
    /// What ended the connection or the channel.
    pub async fn run(
        mut self,
        mut batches: Receiver<LaneBatch>,
        outcomes: Sender<Vec<Outcome>>,
    ) -> Result<(), SinkError> {
        let mut events = Box::pin(self.connection.events_listener());
        let mut open = true;
        let ended = loop {
            if !open && self.in_flight.is_empty() {
                break Ok(());
            }
            tokio::select! {
                biased;
                // 1. Answers before new work: they free it.
                Some((answer, room)) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.rooms.push(room);
                    let decided = self.decide(answer);
                    if !decided.is_empty() && outcomes.send(decided).await.is_err() { break Ok(()) }
                    if let Some(error) = self.failed.take() { break Err(error) }
                }
                // 2. The state of the connection.
                event = events.next() => match event {
                    Some(event) => if let Err(error) = self.on_event(event) { break Err(error) },
                    None => break Err(self.gone()),
                },
                // 3. New work.
                batch = batches.recv(), if open => match batch {
                    Some(batch) => {
                        let refused = match self.publish(batch).await {
                            Ok(refused) => refused,
                            Err(error) => break Err(error),
                        };
                        if !refused.is_empty() && outcomes.send(refused).await.is_err() { break Ok(()) }
                    }
                    None => open = false,
                },
                // 4. Nobody waits for what is still in flight: a blocked or frozen broker may never answer it.
                () = outcomes.closed() => break Ok(()),
            }
        };
        self.unblocked();
        connect::close(&self.connection).await;
        ended
    }

    fn on_event(&mut self, event: Event) -> Result<(), SinkError> {
        match event {
            Event::ConnectionBlocked(reason) => {
                let text = format!("the broker blocks publishers: {reason}; free its memory or disk");
                tracing::warn!(lane = self.index, "{text}");
                self.health.set_reason("blocked", &text);
                self.metrics.broker_blocked.set(1);
            }
            Event::ConnectionUnblocked => {
                tracing::info!(lane = self.index, "the broker accepts publishes again");
                self.unblocked();
            }
            Event::Error(source) => {
                return Err(SinkError::Closed { what: "connection", source });
            }
            _ => {}
        }
        Ok(())
    }

    fn unblocked(&self) {
        self.health.clear_reason("blocked");
        self.metrics.broker_blocked.set(0);
    }

    fn gone(&self) -> SinkError {
        SinkError::Closed {
            what: "connection",
            source: std::io::Error::other(format!("{:?}", self.connection.status())).into(),
        }
    }

    /// Puts a batch on the connection in order. Returns what can never go.
    async fn publish(&mut self, batch: LaneBatch) -> Result<Vec<Outcome>, SinkError> {
        let mut refused = Vec::new();
        for message in batch {
            match encode(&message, &self.envelope, self.limits) {
                Ok(encoded) => {
                    if !self.gate.is_open() {
                        return Err(SinkError::LeaseLost);
                    }
                    let mut publish = self.send(message, encoded);
                    // The first poll hands the frames to lapin's I/O thread: in this order.
                    match poll_fn(|cx| Poll::Ready(publish.poll(cx))).await {
                        Poll::Ready(answer) => publish.set(std::future::ready(answer)),
                        Poll::Pending => {}
                    }
                    self.in_flight.push(InFlight(Some(publish)));
                }
                Err(result) => {
                    refused.push(Outcome { message, result, took: Duration::ZERO });
                }
            }
        }
        Ok(refused)
    }

    fn send(&mut self, message: Arc<Message>, encoded: Encoded) -> Room {
        let channel = self.channel.clone();
        let exchange = self.envelope.exchange.clone();
        let options = BasicPublishOptions { mandatory: holds(Guarantee::Mandatory), ..Default::default() };
        let publish = async move {
            let sent_at = Instant::now();
            let Encoded { routing_key, properties } = encoded;
            let published =
                channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
            let confirmation = match published {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            Answer { message, sent_at, confirmation }
        };
        match self.rooms.pop() {
            Some(mut room) => {
                room.set(publish);
                room
            }
            None => ReusableBoxFuture::new(publish),
        }
    }

    /// Decides what became of the messages whose confirms are in, beginning with `first`.
    ///
    /// lapin resolves all confirms of one ack frame under a lock and hands a return to an arbitrary one of them. So the
    /// answers at hand are only decided after that lock was free once and everything that is resolved by then has been
    /// looked at for returns; what came in meanwhile is decided in the next turn.
    fn decide(&mut self, first: Answer) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let mut resolved = Vec::new();
        self.look_at(first, &mut resolved);
        while !resolved.is_empty() {
            self.look_at_all(&mut resolved);
            let decidable = resolved.len();
            self.let_lapin_finish();
            self.look_at_all(&mut resolved);
            let later = resolved.split_off(decidable);
            for Resolved { message, acked, took } in resolved {
                let result = self.returns.decide(message.event_id, acked);
                outcomes.push(Outcome { message, result, took });
            }
            resolved = later;
        }
        outcomes.extend(self.culprit.take());
        outcomes
    }

    /// Looks at every answer that is in.
    fn look_at_all(&mut self, resolved: &mut Vec<Resolved>) {
        while let Some(Some((answer, room))) = self.in_flight.next().now_or_never() {
            self.rooms.push(room);
            self.look_at(answer, resolved);
        }
    }

    /// Takes the return off a confirm, whosever it is.
    fn look_at(&mut self, answer: Answer, resolved: &mut Vec<Resolved>) {
        let alone = self.in_flight.is_empty() && resolved.is_empty() && self.failed.is_none();
        let (acked, returned) = match answer.confirmation {
            Ok(Confirmation::Ack(returned)) => (true, returned),
            Ok(Confirmation::Nack(returned)) => (false, returned),
            Ok(Confirmation::NotRequested) => (false, None),
            Err(source) => {
                let error = SinkError::Closed { what: "channel", source };
                // The broker does not say over which message it closed: with one in flight it is clear.
                if alone && error.is_about_a_message() {
                    let reason = format!("the broker refused it: {error}");
                    let result = Published::TooLarge { reason };
                    self.culprit = Some(Outcome { message: answer.message, result, took: Duration::ZERO });
                }
                self.failed.get_or_insert(error);
                return;
            }
        };
        returned.into_iter().for_each(|r| self.note_return(&r));
        resolved.push(Resolved { message: answer.message, acked, took: answer.sent_at.elapsed() });
    }

    /// Passes through the lock under which lapin resolves the confirms of a frame. Its answer about "all confirms" is
    /// not used: it is not true.
    fn let_lapin_finish(&mut self) {
        if let Some(Ok(returned)) = self.channel.wait_for_confirms().now_or_never() {
            for message in returned {
                self.note_return(&message);
            }
        }
    }

    fn note_return(&mut self, returned: &BasicReturnMessage) {
        let id = returned
            .delivery
            .properties
            .message_id()
            .as_ref()
            .and_then(|id| Uuid::parse_str(id.as_str()).ok());
        if let Some(id) = id {
            let text = returned.reply_text.to_string();
            self.returns.note(Return { id, code: returned.reply_code, text });
        }
    }
}
