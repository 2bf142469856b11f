//! What must hold in every state, and what makes two states the same.

use statecast::contract::Position;
use statecast::snapshot::Snapshot;
use statecast::source::poll::window::Frontier;

use crate::world::{Cursor, Fault, State, World, has};

impl World {
    /// No writer is running or still to come: what is left must be found, by this session and by the next.
    pub(crate) fn check_end(&self) -> Result<(), Fault> {
        if self.txs.iter().any(|tx| tx.state == State::Running) {
            return Ok(());
        }
        self.clone().drain()?;
        let mut next = self.clone();
        if next.reader.has_windows() {
            next.restart();
            next.drain()?;
        }
        Ok(())
    }

    /// The invariants of the frontier in memory and of the stored one.
    pub(crate) fn check_bounds(&self) -> Result<(), Fault> {
        let stored = Frontier::stored(&self.cursor.position, self.cursor.floor_seq);
        for (frontier, settled) in [(&self.frontier, self.settled), (&stored, self.cursor.settled)] {
            for (seq, row) in (1..).zip(&self.rows) {
                if self.state_of(*row) == State::Aborted || has(settled, seq) {
                    continue;
                }
                let hidden = |by| Err(Fault::Hidden { seq, by });
                let xid = self.xid_of(*row);
                if frontier.snapshot.sees(xid) {
                    return hidden("the snapshot");
                }
                if seq <= frontier.floor_seq {
                    return hidden("floor_seq");
                }
                if xid >= frontier.snapshot.xmax && seq <= frontier.prune_seq {
                    return hidden("prune_seq");
                }
            }
        }
        Ok(())
    }

    /// Everything that distinguishes this state from another, in few bytes.
    pub(crate) fn fingerprint(&self, out: &mut Vec<u8>) -> u128 {
        out.clear();
        for tx in &self.txs {
            out.extend([tx.xid as u8, tx.done, tx.state as u8]);
        }
        out.push(u8::MAX);
        out.extend(self.rows.iter().map(|row| row.tx << 4 | row.key));
        out.push(u8::MAX);
        out.extend([self.next_xid as u8, self.completed as u8, self.max_seq as u8, self.polls, self.writes]);
        out.extend([self.restarts, self.last.0 as u8, self.last.1 as u8]);
        out.extend([self.frontier.prune_seq as u8, self.frontier.floor_seq as u8]);
        out.extend((self.settled | self.delivered_ever << 8).to_le_bytes());
        put_snapshot(out, &self.frontier.snapshot);
        match &self.window {
            None => out.push(0),
            Some(window) => {
                out.extend([1, window.prune_seq as u8, window.ceil as u8, window.after_seq as u8]);
                put_snapshot(out, &window.upper);
            }
        }
        put_cursor(out, &self.cursor);
        if let Some((w, cursor)) = &self.writing {
            out.push(*w as u8);
            put_cursor(out, cursor);
        }
        out.push(u8::MAX);
        for (position, settled) in &self.reached {
            put_position(out, position);
            out.push(*settled as u8);
        }
        xxhash_rust::xxh3::xxh3_128(out)
    }
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    out.extend([snapshot.xmin as u8, snapshot.xmax as u8, snapshot.xip.len() as u8]);
    out.extend(snapshot.xip.iter().map(|xid| *xid as u8));
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    put_snapshot(out, &position.snapshot);
    out.push(position.prune_seq as u8);
    match &position.window {
        None => out.push(0),
        Some(window) => {
            out.extend([1, window.prune_seq as u8, window.ceil as u8, window.seq as u8]);
            put_snapshot(out, &window.upper);
        }
    }
}

fn put_cursor(out: &mut Vec<u8>, cursor: &Cursor) {
    put_position(out, &cursor.position);
    out.extend([cursor.floor_seq as u8, cursor.candidate.0 as u8, cursor.candidate.1 as u8]);
    out.extend([cursor.max_seq as u8, cursor.settled as u8]);
}
