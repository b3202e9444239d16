//! How the processes of a training find each other: each connects to process 0, twice.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Place;
use crate::{Error, Result};

/// What a process says first, so that a stranger at the port is noticed.
const GREETING: [u8; 8] = *b"moco-gr1";
/// Process 0's answer when all have come.
const WELCOME: u8 = 1;

/// Connections of this process: one for work and one to notice that a process is lost. Process 0 has both to each other
/// process, in their order; the others to process 0 only.
pub(super) struct Lines {
    pub work: Vec<TcpStream>,
    pub watch: Vec<TcpStream>,
}

/// The door at which process 0 waits for the others.
pub struct Meeting {
    listener: TcpListener,
}

impl Meeting {
    /// On this machine alone, at a port that is free.
    ///
    /// # Errors
    /// [`Error::Group`] if the system has none.
    pub fn on_this_machine() -> Result<Meeting> {
        Meeting::at((Ipv4Addr::LOCALHOST, 0).into()).map_err(|e| Error::Group(format!("no port of this machine: {e}")))
    }

    /// Its port.
    ///
    /// # Errors
    /// [`Error::Group`] if the system does not tell.
    pub fn port(&self) -> Result<u16> {
        let address = self.listener.local_addr();
        address.map(|a| a.port()).map_err(|e| Error::Group(format!("the port of process 0: {e}")))
    }

    /// At the port of a place, reachable from this machine alone if its host is.
    fn of(place: &Place) -> std::io::Result<Meeting> {
        let known = place.address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut at = known;
        if !known.ip().is_loopback() {
            at.set_ip(if known.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() });
        }
        Meeting::at(at)
    }

    fn at(address: SocketAddr) -> std::io::Result<Meeting> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Meeting { listener })
    }

    /// Waits for all others; `still_coming` is asked now and then and ends the waiting by its error.
    fn receive(&self, world: usize, late: Instant, still_coming: &mut dyn FnMut() -> Result<()>) -> Result<Lines> {
        let mut came: Vec<[Option<TcpStream>; 2]> = (1..world).map(|_| [None, None]).collect();
        while let Some(missing) = came.iter().position(|lines| lines.iter().any(Option::is_none)) {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    // A stranger, or one that gives up, does not end the training.
                    let Ok(Guest { rank, world: its_world, line }) = hear(&stream, late) else { continue };
                    if its_world != world as u64 {
                        return Err(Error::Group(format!(
                            "process {rank} was started as one of {its_world} (WORLD_SIZE), process 0 as one of {world}"
                        )));
                    }
                    let place = (rank as usize).checked_sub(1).and_then(|i| came.get_mut(i)?.get_mut(line as usize));
                    if let Some(place) = place {
                        *place = Some(stream);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() > late {
                        return Err(Error::Group(format!("process {} of {world} has not come", missing + 1)));
                    }
                    still_coming()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(Error::Group(format!("waiting for the other processes: {error}"))),
            }
        }
        let mut lines = Lines { work: vec![], watch: vec![] };
        for (i, [work, watch]) in came.into_iter().enumerate() {
            for (stream, list) in [(work, &mut lines.work), (watch, &mut lines.watch)] {
                let mut stream = stream.expect("all have come");
                let welcomed = stream.write_all(&[WELCOME]).and_then(|()| prepare(&stream));
                welcomed.map_err(|e| Error::Group(format!("process {} has gone away: {e}", i + 1)))?;
                list.push(stream);
            }
        }
        Ok(lines)
    }
}

/// Connects this process with the others; process 0 at `meeting`, or else at its place's address.
pub(super) fn meet(
    place: &Place,
    meeting: Option<Meeting>,
    patience: Duration,
    still_coming: &mut dyn FnMut() -> Result<()>,
) -> Result<Lines> {
    let late = Instant::now() + patience;
    let failed = |error: std::io::Error| {
        let Place { rank, world, address, .. } = place;
        Error::Group(format!("process {rank} of {world} at {address} (MASTER_ADDR, MASTER_PORT): {error}"))
    };
    if place.rank > 0 {
        return visit(place, late).map_err(failed);
    }
    let meeting = meeting.map_or_else(|| Meeting::of(place), Ok).map_err(failed)?;
    meeting.receive(place.world, late, still_coming)
}

fn visit(place: &Place, late: Instant) -> std::io::Result<Lines> {
    loop {
        match connect(place, 0, late).and_then(|work| Ok([work, connect(place, 1, late)?])) {
            Ok(mut streams) => {
                for stream in &mut streams {
                    let mut answer = [0];
                    stream.set_read_timeout(Some(rest(late)))?;
                    stream.read_exact(&mut answer).map_err(|_| {
                        std::io::Error::other("process 0 closed the connection before all processes had come")
                    })?;
                    prepare(stream)?;
                }
                let [work, watch] = streams;
                return Ok(Lines { work: vec![work], watch: vec![watch] });
            }
            Err(error) if Instant::now() > late => return Err(error),
            // Process 0 may not listen yet.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn connect(place: &Place, line: u64, late: Instant) -> std::io::Result<TcpStream> {
    let address = place.address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, rest(late).min(Duration::from_secs(5)))?;
    stream.write_all(&GREETING)?;
    stream.write_all(bytemuck::cast_slice(&[place.rank as u64, place.world as u64, line].map(u64::to_le)))?;
    Ok(stream)
}

struct Guest {
    rank: u64,
    world: u64,
    line: u64,
}

fn hear(mut stream: &TcpStream, late: Instant) -> std::io::Result<Guest> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(rest(late).min(Duration::from_secs(5))))?;
    let (mut greeting, mut words) = ([0; 8], [0; 3]);
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    stream.read_exact(bytemuck::cast_slice_mut(&mut words))?;
    let [rank, world, line] = words.map(u64::from_le);
    Ok(Guest { rank, world, line })
}

/// Small messages go out at once, and reading waits as long as it takes: a lost process is noticed by the watch.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(None)
}

fn rest(late: Instant) -> Duration {
    late.saturating_duration_since(Instant::now()).max(Duration::from_millis(10))
}
