//! The processes of a training: how they find each other, tell each other small things, notice that one is lost, and, as
//! [`Collective`], average gradients and exchange rows among their devices.

mod collective;
mod meeting;
mod place;
mod routes;
mod watch;
mod wire;

use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::{Error, Result};
pub use collective::{Collective, OverHost};
pub use meeting::Meeting;
pub use place::Place;
pub use routes::Routes;
use watch::Watch;
use wire::Kind;

/// How long processes wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(300);

/// The processes of a training, connected over TCP: each with process 0.
///
/// All processes ask for the same things in the same order; each call waits for the others. A process that is lost (it ended
/// without [`Group::leave`], its machine is down) makes every waiting and every later call of the others an error that says
/// so.
pub struct Group {
    place: Place,
    /// To process 0, or in process 0 to each of the others in their order.
    lines: Mutex<Vec<TcpStream>>,
    watch: Watch,
}

impl Group {
    /// Joins the processes of a training. All call this at about the same time, process 0 too.
    ///
    /// # Errors
    /// [`Error::Group`] if they do not find each other within five minutes.
    pub fn join(place: &Place) -> Result<Arc<Group>> {
        Group::connect(place, None, PATIENCE, &mut || Ok(()))
    }

    /// As [`Group::join`] for process 0, which has opened the door before it started the others; `still_coming` is asked now
    /// and then and ends the waiting by its error.
    ///
    /// # Errors
    /// As [`Group::join`], and those of `still_coming`.
    pub fn host(place: &Place, meeting: Meeting, still_coming: &mut dyn FnMut() -> Result<()>) -> Result<Arc<Group>> {
        Group::connect(place, Some(meeting), PATIENCE, still_coming)
    }

    fn connect(
        place: &Place,
        meeting: Option<Meeting>,
        patience: Duration,
        still_coming: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Arc<Group>> {
        let lines = meeting::meet(place, meeting, patience, still_coming)?;
        let ranks = if place.rank == 0 { 1..place.world } else { 0..1 };
        let failed = |error: std::io::Error| Error::Group(format!("the connections between processes: {error}"));
        let work = lines.work.iter().map(TcpStream::try_clone).collect::<std::io::Result<_>>().map_err(failed)?;
        let watch = Watch::start(place.rank, ranks.zip(lines.watch).collect(), work).map_err(failed)?;
        Ok(Arc::new(Group { place: place.clone(), lines: Mutex::new(lines.work), watch }))
    }

    /// This process.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.place.world
    }

    /// What every process gives, in their order.
    ///
    /// # Errors
    /// [`Error::Group`] if a process is lost or asks for something else.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let everything = self.round(Kind::Gather, own, |parts| {
            let whole = wire::join(parts.iter().map(Vec::as_slice));
            vec![whole; parts.len()]
        })?;
        wire::split(&everything).map_err(|e| self.watch.explain(&e.to_string()))
    }

    /// What process 0 gives.
    ///
    /// # Errors
    /// As [`Group::gather`].
    pub fn from_first(&self, own: &[u8]) -> Result<Vec<u8>> {
        let own = if self.rank() == 0 { own } else { &[] };
        self.round(Kind::First, own, |parts| vec![parts[0].clone(); parts.len()])
    }

    /// Replaces values by their mean over all processes, summed in their order: the same in every process to the bit.
    ///
    /// # Errors
    /// As [`Group::gather`], and [`Error::Length`] if a process gives another number of values.
    pub fn mean(&self, values: &mut [f32]) -> Result<()> {
        if self.rank() > 0 {
            let got = self.over_lines(|lines| {
                wire::send(&mut lines[0], Kind::Mean, bytemuck::cast_slice(values))?;
                wire::receive_into(&mut lines[0], Kind::Mean, bytemuck::cast_slice_mut(values))
            })?;
            return Error::check_len("values whose mean is asked for", values.len(), got / size_of::<f32>());
        }
        let mut theirs = vec![0.0f32; values.len()];
        for i in 0..self.world() - 1 {
            let bytes = self.over_lines(|lines| {
                wire::receive_into(&mut lines[i], Kind::Mean, bytemuck::cast_slice_mut(&mut theirs))
            })?;
            Error::check_len(&format!("values of process {}", i + 1), values.len(), bytes / size_of::<f32>())?;
            values.iter_mut().zip(&theirs).for_each(|(sum, value)| *sum += value);
        }
        let share = 1.0 / self.world() as f32;
        values.iter_mut().for_each(|value| *value *= share);
        self.over_lines(|lines| {
            lines.iter_mut().try_for_each(|line| wire::send(line, Kind::Mean, bytemuck::cast_slice(values)))
        })
    }

    /// Gives each process its part of these values and gathers what the others give to this one, in their order. `to` and
    /// `from` hold a number of values for each process.
    ///
    /// # Errors
    /// As [`Group::gather`], and [`Error::Length`] where numbers and values do not fit.
    pub fn exchange(&self, values: &[f32], to: &[usize], received: &mut [f32], from: &[usize]) -> Result<()> {
        for (counts, len) in [(to, values.len()), (from, received.len())] {
            Error::check_len("counts of an exchange", self.world(), counts.len())?;
            Error::check_len("values of an exchange", counts.iter().sum(), len)?;
        }
        let mut rest = values;
        let parts = to.iter().map(|count| {
            let (part, others) = rest.split_at(*count);
            rest = others;
            bytemuck::cast_slice(part)
        });
        let mine = self.round(Kind::Exchange, &wire::join(parts), |parts| {
            let parts: Vec<_> = parts.iter().map(|part| wire::split(part).unwrap_or_default()).collect();
            (0..parts.len())
                .map(|to| wire::join(parts.iter().map(|p| p.get(to).map_or(&[][..], Vec::as_slice))))
                .collect()
        })?;
        let parts = wire::split(&mine).map_err(|e| self.watch.explain(&e.to_string()))?;
        let mut rest = received;
        for (rank, (part, count)) in parts.iter().zip(from).enumerate() {
            let (place, others) = std::mem::take(&mut rest).split_at_mut(*count);
            rest = others;
            Error::check_len(&format!("values from process {rank}"), 4 * count, part.len())?;
            bytemuck::cast_slice_mut(place).copy_from_slice(part);
        }
        Ok(())
    }

    /// [`Error::Group`] if a process is lost.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self) -> Result<()> {
        self.watch.lost().map_or(Ok(()), |reason| Err(Error::Group(reason)))
    }

    /// Calls `tell`, on another thread, when a process is lost: for who waits where no error reaches.
    pub fn when_lost(&self, tell: impl FnOnce() + Send + 'static) {
        self.watch.tell(Box::new(tell));
    }

    /// The end of this process's part: the others may go on for a while and do not take it for lost.
    pub fn leave(&self) {
        self.watch.part(None);
    }

    /// Tells the others that this process cannot go on, and why.
    pub fn fail(&self, why: &str) {
        self.watch.part(Some(why));
    }

    /// Process 0 takes a message of each, its own first, makes an answer for each, and each gets its own.
    fn round(&self, kind: Kind, own: &[u8], answer: impl FnOnce(Vec<Vec<u8>>) -> Vec<Vec<u8>>) -> Result<Vec<u8>> {
        self.over_lines(|lines| {
            if self.rank() > 0 {
                wire::send(&mut lines[0], kind, own)?;
                return wire::receive(&mut lines[0], kind);
            }
            let mut parts = vec![own.to_vec()];
            for line in lines.iter_mut() {
                parts.push(wire::receive(line, kind)?);
            }
            let mut answers = answer(parts).into_iter();
            let mine = answers.next().unwrap_or_default();
            lines.iter_mut().zip(answers).try_for_each(|(line, answer)| wire::send(line, kind, &answer))?;
            Ok(mine)
        })
    }

    /// Does something over the connections; where one breaks, the error says who is lost.
    fn over_lines<R>(&self, run: impl FnOnce(&mut [TcpStream]) -> std::io::Result<R>) -> Result<R> {
        self.check()?;
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut lines).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => Error::Group(format!("the processes are out of step: {error}")),
            _ => self.watch.explain(&format!("a connection between processes broke: {error}")),
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.watch.part(Some("it ended early"));
    }
}

#[cfg(test)]
mod tests;
