//! The source and the keeper of the model: pages, cursor writes, restarts.

use std::sync::Arc;

use statecast::contract::{Position, Window, WindowPosition};
use statecast::event::{Seq, Xid};
use statecast::source::poll::window::{Frontier, Opening};

use crate::world::{Cursor, Fault, Reader, State, World, bit, has};

impl World {
    /// One page. Opens a window if none is open; a short page closes it.
    pub(crate) fn poll(&mut self) -> Result<(), Fault> {
        if !self.reader.has_windows() {
            return self.poll_naively();
        }
        let window = match self.window.take() {
            Some(window) => window,
            None => Arc::new(self.open()),
        };
        let after = self.last.1;
        let mut rows: Vec<(Xid, Seq)> =
            self.committed().filter(|(xid, seq)| self.frontier.belongs(&window, after, *xid, *seq)).collect();
        if self.reader == Reader::OrderByXid {
            rows.sort_unstable();
        }
        let short = rows.len() < self.page;
        rows.truncate(self.page);
        for (_, seq) in &rows {
            self.deliver(*seq)?;
            self.last = (0, *seq);
        }
        let progress = if short {
            self.frontier.close(&window);
            if self.reader == Reader::PruneByMaxSeqAtClose {
                self.frontier.prune_seq = self.cursor.max_seq;
            }
            None
        } else {
            let (upper, prune_seq, ceil) = (Arc::clone(&window.upper), window.prune_seq, window.ceil);
            self.window = Some(window);
            Some(WindowPosition { upper, prune_seq, ceil, seq: self.last.1 })
        };
        let snapshot = Arc::clone(&self.frontier.snapshot);
        let position = Position { snapshot, prune_seq: self.frontier.prune_seq, window: progress };
        self.reached.push((position, self.settled));
        Ok(())
    }

    fn open(&mut self) -> Window {
        let ceil = self.rows.len() as Seq;
        let max_seq = if self.reader == Reader::PruneByMaxSeqAtP { ceil } else { self.cursor.max_seq };
        let upper = Arc::new(self.snapshot());
        self.last = (0, 0);
        self.max_seq = self.max_seq.max(ceil);
        self.frontier.open(1, Opening { upper, max_seq, floor_seq: self.cursor.floor_seq, ceil })
    }

    fn poll_naively(&mut self) -> Result<(), Fault> {
        let (xmin, last) = (self.snapshot().xmin, self.last);
        let mut rows: Vec<(Xid, Seq)> = self
            .committed()
            .filter(|row| match self.reader {
                Reader::IdCursor => row.1 > last.1,
                _ => row.0 < xmin && *row > last,
            })
            .collect();
        if self.reader == Reader::XminHorizon {
            rows.sort_unstable();
        }
        rows.truncate(self.page);
        for row in rows {
            self.deliver(row.1)?;
            self.last = row;
        }
        Ok(())
    }

    fn deliver(&mut self, seq: Seq) -> Result<(), Fault> {
        let row = self.rows[seq as usize - 1];
        if self.state_of(row) != State::Committed {
            return Err(Fault::Invented { seq });
        }
        if has(self.settled, seq) {
            return Err(Fault::Twice { seq });
        }
        if !has(self.delivered_ever, seq) {
            let later = (seq + 1..).zip(&self.rows[seq as usize..]);
            let mut overtaking =
                later.filter(|(by, other)| other.key == row.key && has(self.delivered_ever, *by));
            if let Some((by, _)) = overtaking.next() {
                return Err(Fault::Overtaken { seq, by });
            }
        }
        self.settled |= bit(seq);
        self.delivered_ever |= bit(seq);
        Ok(())
    }

    /// The keeper's transaction takes its id here: everything it stores was known before.
    pub(crate) fn write_begin(&mut self, index: usize) {
        self.writes -= 1;
        let w = self.take_xid();
        let (position, settled) = self
            .reached
            .drain(..=index)
            .next_back()
            .unwrap_or_else(|| (self.cursor.position.clone(), self.cursor.settled));
        let closes = position.snapshot != self.cursor.position.snapshot;
        let mut new = Cursor { position, settled, max_seq: self.max_seq, ..self.cursor.clone() };
        // The floor rule, as the cursor's UPDATE states it.
        if closes && self.reader == Reader::FloorAtOnce {
            new.floor_seq = new.max_seq;
        } else if closes && new.candidate.0 <= new.position.snapshot.xmin {
            new.floor_seq = new.floor_seq.max(new.candidate.1);
            new.candidate = (w, new.max_seq);
        }
        self.writing = Some((w, new));
    }

    pub(crate) fn write_commit(&mut self) {
        let Some((w, mut new)) = self.writing.take() else {
            return;
        };
        if self.reader == Reader::MaxSeqInsideWrite {
            new.max_seq = self.rows.len() as Seq;
        }
        self.cursor = new;
        self.completed = self.completed.max(w);
    }

    /// The process dies; a write that has not committed never will.
    pub(crate) fn restart(&mut self) {
        if let Some((w, _)) = self.writing.take() {
            self.completed = self.completed.max(w);
        }
        let cursor = &self.cursor;
        self.frontier = Frontier::stored(&cursor.position, cursor.floor_seq);
        self.window = cursor.position.window.as_ref().map(|window| Arc::new(self.frontier.resume(1, window)));
        self.last = (0, self.window.as_ref().map_or(0, |window| window.after_seq));
        self.max_seq = cursor.max_seq;
        self.settled = cursor.settled;
        self.reached.clear();
    }

    /// Reads until a window opened now is closed, then looks for rows that nobody will ever see.
    pub(crate) fn drain(&mut self) -> Result<(), Fault> {
        if self.reader.has_windows() {
            while self.window.is_some() {
                self.poll()?;
            }
            self.poll()?;
            while self.window.is_some() {
                self.poll()?;
            }
        } else {
            self.page = self.rows.len() + 1;
            self.poll()?;
        }
        match self.committed().find(|(_, seq)| !has(self.settled, *seq)) {
            Some((_, seq)) => Err(Fault::Lost { seq }),
            None => Ok(()),
        }
    }
}
