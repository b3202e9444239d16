//! Notices that a process of a training is lost, whatever the others are waiting for.
//!
//! A thread of each process sends a pulse to its neighbours and listens for theirs: process 0 is everybody's neighbour. Where a
//! connection breaks, or stays silent, or a process says that it has failed, the thread tells all others, closes the
//! connections on which this process may be waiting, and calls who asked to know.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;

/// Between two pulses.
const BEAT: Duration = Duration::from_millis(250);
/// After so long without a pulse a process is lost: its machine may have gone down without a word.
const SILENCE: Duration = Duration::from_secs(60);
/// Most bytes of a reason.
const LONGEST: usize = 4096;

const PULSE: u8 = 1;
const GOODBYE: u8 = 2;
const FAILED: u8 = 3;

/// The thread and what it shares with its process.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Why the training cannot go on.
    lost: Option<String>,
    /// What this process says before it goes.
    parting: Option<Parting>,
    told: Vec<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone)]
enum Parting {
    Goodbye,
    Failed(String),
}

/// A process at the other end of a connection.
struct Neighbour {
    rank: usize,
    line: TcpStream,
    heard: Instant,
    said: Vec<u8>,
    here: bool,
}

impl Watch {
    /// Watches over these connections, each with the number of the process at its end. `work` are those that are closed when
    /// a process is lost.
    pub fn start(rank: usize, lines: Vec<(usize, TcpStream)>, work: Vec<TcpStream>) -> std::io::Result<Watch> {
        let mut neighbours = vec![];
        for (rank, line) in lines {
            line.set_nonblocking(true)?;
            neighbours.push(Neighbour { rank, line, heard: Instant::now(), said: vec![], here: true });
        }
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("group-watch".into());
        let thread = thread.spawn(move || of_thread.run(rank, neighbours, &work))?;
        Ok(Watch { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Why the training cannot go on, if it cannot.
    pub fn lost(&self) -> Option<String> {
        self.shared.state().lost.clone()
    }

    /// The reason why a connection has just broken: what the watch knows, or will know in a moment.
    pub fn explain(&self, otherwise: &str) -> Error {
        const MOMENT: Duration = Duration::from_secs(3);
        let state = self.shared.state();
        let waited = self.shared.changed.wait_timeout_while(state, MOMENT, |state| state.lost.is_none());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Error::Group(state.lost.clone().unwrap_or_else(|| otherwise.into()))
    }

    /// Calls `tell` when a process is lost, at once if one is.
    pub fn tell(&self, tell: Box<dyn FnOnce() + Send>) {
        let mut state = self.shared.state();
        if state.lost.is_none() {
            state.told.push(tell);
        } else {
            drop(state);
            tell();
        }
    }

    /// Ends the watch: with a goodbye, or by telling the others why this process has failed.
    pub fn part(&self, failure: Option<&str>) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let parting = failure.map_or(Parting::Goodbye, |why| Parting::Failed(why.into()));
        self.shared.state().parting = Some(parting);
        self.shared.changed.notify_all();
        // A panic of the thread has nothing to say to who is going anyway.
        let _ = thread.join();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, rank: usize, mut neighbours: Vec<Neighbour>, work: &[TcpStream]) {
        let mut last = Instant::now();
        loop {
            // A process that was stopped for a while has missed pulses that were sent, or was stopped with the others.
            if last.elapsed() > SILENCE / 4 {
                neighbours.iter_mut().for_each(|n| n.heard = Instant::now());
            }
            last = Instant::now();
            for n in neighbours.iter_mut().filter(|n| n.here) {
                // A connection that is broken shows that when it is read.
                let _ = n.line.write(&[PULSE]);
                if let Err(reason) = n.listen() {
                    return self.lose(reason, neighbours, work);
                }
            }
            let mut state = self.state();
            if state.parting.is_none() {
                state = self.changed.wait_timeout(state, BEAT).unwrap_or_else(PoisonError::into_inner).0;
            }
            if let Some(parting) = state.parting.clone() {
                drop(state);
                return take_leave(
                    &match parting {
                        Parting::Goodbye => vec![GOODBYE],
                        Parting::Failed(why) => failure(&format!("process {rank} has failed: {why}")),
                    },
                    neighbours,
                );
            }
        }
    }

    fn lose(&self, reason: String, mut neighbours: Vec<Neighbour>, work: &[TcpStream]) {
        let told = {
            let mut state = self.state();
            state.lost = Some(reason.clone());
            std::mem::take(&mut state.told)
        };
        self.changed.notify_all();
        for line in work {
            let _ = line.shutdown(Shutdown::Both);
        }
        told.into_iter().for_each(|tell| tell());
        neighbours.retain(|n| n.here);
        take_leave(&failure(&reason), neighbours);
    }
}

impl Neighbour {
    /// Takes in what it has said; an error is why the training cannot go on.
    fn listen(&mut self) -> std::result::Result<(), String> {
        let mut bytes = [0; 256];
        loop {
            match self.line.read(&mut bytes) {
                Ok(0) => return Err(self.failure().unwrap_or_else(|| format!("process {} has gone away", self.rank))),
                Ok(n) => {
                    self.heard = Instant::now();
                    self.said.extend_from_slice(&bytes[..n]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(format!("process {} has gone away ({e})", self.rank)),
            }
            // A failure is all that follows it.
            let pulses = self.said.iter().take_while(|b| **b == PULSE).count();
            self.said.drain(..pulses);
            match self.said.first() {
                Some(&GOODBYE) => {
                    self.here = false;
                    return Ok(());
                }
                // The reason goes on until the connection ends.
                Some(&FAILED) if self.said.len() > LONGEST => return Err(self.failure().unwrap_or_default()),
                Some(&FAILED) | None => {}
                Some(_) => return Err(format!("process {} says what no moco-train of this version does", self.rank)),
            }
        }
        match self.heard.elapsed() > SILENCE {
            true => Err(format!("process {} has not been heard of for {} seconds", self.rank, SILENCE.as_secs())),
            false => Ok(()),
        }
    }

    /// Its reason, if it has given one.
    fn failure(&self) -> Option<String> {
        match self.said.split_first() {
            Some((&FAILED, reason)) => Some(String::from_utf8_lossy(reason).into_owned()),
            _ => None,
        }
    }
}

fn failure(reason: &str) -> Vec<u8> {
    let mut said = vec![FAILED];
    said.extend(reason.bytes().take(LONGEST));
    said
}

/// Says the last word and waits a little until the others have closed their ends as well: what is closed while bytes of the
/// other wait in it is reset, and the last word lost.
fn take_leave(word: &[u8], neighbours: Vec<Neighbour>) {
    const MOMENT: Duration = Duration::from_secs(2);
    let here: Vec<_> = neighbours.into_iter().map(|n| n.line).collect();
    for mut line in &here {
        let said = line.set_nonblocking(false).and_then(|()| line.set_write_timeout(Some(MOMENT)));
        let _ = said.and_then(|()| line.write_all(word)).and_then(|()| line.shutdown(Shutdown::Write));
    }
    let late = Instant::now() + MOMENT;
    for mut line in here {
        let mut rest = [0; 256];
        loop {
            let left = late.saturating_duration_since(Instant::now());
            if left.is_zero() || line.set_read_timeout(Some(left)).is_err() {
                break;
            }
            if !matches!(line.read(&mut rest), Ok(n) if n > 0) {
                break;
            }
        }
    }
}
