//! How the processes of a training find each other: by the environment variables that `torchrun` sets, and a number that the
//! first process hands to the others over TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// What a process says first, so that a stranger at the port is noticed.
const GREETING: [u8; 8] = *b"moco-id1";

/// A process among those of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Number of this process on its machine, which is also that of its GPU.
    pub local_rank: usize,
    /// Where process 0 can be reached.
    pub address: String,
}

impl Place {
    /// From `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`; `None` without `WORLD_SIZE` or where it is 1.
    ///
    /// # Errors
    /// [`Error::Config`] naming the variable that is missing or makes no sense.
    pub fn from_env() -> Result<Option<Place>> {
        Place::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
        let number = |name: &str| match variable(name) {
            None => Err(Error::Config(format!("WORLD_SIZE is set but {name} is not; `torchrun` sets both"))),
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| Error::Config(format!("{name} is `{text}`; it must be a number that is not negative"))),
        };
        if variable("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let world = number("WORLD_SIZE")?;
        if world == 1 {
            return Ok(None);
        }
        let (rank, local_rank, port) = (number("RANK")?, number("LOCAL_RANK")?, number("MASTER_PORT")?);
        if rank >= world {
            return Err(Error::Config(format!("RANK is {rank}; with WORLD_SIZE {world} it must be below {world}")));
        }
        let host = variable("MASTER_ADDR")
            .ok_or_else(|| Error::Config("WORLD_SIZE is set but MASTER_ADDR is not; `torchrun` sets both".into()))?;
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Some(Place { rank, world, local_rank, address }))
    }

    /// Gives every process what process 0 makes.
    ///
    /// # Errors
    /// [`Error::Device`] if the others do not come within `patience`.
    pub(super) fn share<const N: usize>(
        &self,
        make: impl FnOnce() -> Result<[u8; N]>,
        patience: Duration,
    ) -> Result<[u8; N]> {
        let late = Instant::now() + patience;
        let failed = |error: std::io::Error| {
            let Place { rank, world, address, .. } = self;
            Error::Device(format!("process {rank} of {world} at {address} (MASTER_ADDR, MASTER_PORT): {error}"))
        };
        if self.rank == 0 {
            let bytes = make()?;
            self.hand_out(&bytes, late).map_err(failed)?;
            Ok(bytes)
        } else {
            self.fetch(late).map_err(failed)
        }
    }

    fn hand_out(&self, bytes: &[u8], late: Instant) -> std::io::Result<()> {
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        let everywhere = if self.address.starts_with('[') { "::" } else { "0.0.0.0" };
        let listener = TcpListener::bind((everywhere, port))?;
        listener.set_nonblocking(true)?;
        let mut served = vec![false; self.world];
        served[0] = true;
        while let Some(waiting) = served.iter().position(|served| !served) {
            match listener.accept() {
                Ok((stream, _)) => {
                    // A stranger, or one that gives up, does not end the training.
                    if let Ok(rank) = serve(stream, bytes, late)
                        && let Some(served) = served.get_mut(rank)
                    {
                        *served = true;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() > late {
                        let message = format!("process {waiting} has not come");
                        return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, message));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fetch<const N: usize>(&self, late: Instant) -> std::io::Result<[u8; N]> {
        loop {
            match self.try_fetch(late) {
                Ok(bytes) => return Ok(bytes),
                Err(error) if Instant::now() > late => return Err(error),
                // Process 0 may not listen yet.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn try_fetch<const N: usize>(&self, late: Instant) -> std::io::Result<[u8; N]> {
        let address = self.address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(rest(late)))?;
        stream.write_all(&GREETING)?;
        stream.write_all(&(self.rank as u64).to_le_bytes())?;
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Rank of who has got the bytes.
fn serve(mut stream: TcpStream, bytes: &[u8], late: Instant) -> std::io::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(rest(late).min(Duration::from_secs(5))))?;
    let (mut greeting, mut rank) = ([0; 8], [0; 8]);
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut rank)?;
    stream.write_all(bytes)?;
    Ok(u64::from_le_bytes(rank) as usize)
}

fn rest(late: Instant) -> Duration {
    late.saturating_duration_since(Instant::now()).max(Duration::from_millis(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn the_environment_of_torchrun_names_a_place_and_what_is_wrong_is_named() {
        let all =
            [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "::1"), ("MASTER_PORT", "29500")];
        let expected = Place { rank: 3, world: 4, local_rank: 1, address: "[::1]:29500".into() };
        assert_eq!(place(&all).unwrap(), Some(expected));
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("WORLD_SIZE", "1")]).unwrap(), None);
        for (i, (name, _)) in all.iter().enumerate().filter(|(_, (name, _))| *name != "WORLD_SIZE") {
            let mut some = all.to_vec();
            some.remove(i);
            assert!(place(&some).unwrap_err().to_string().contains(name), "{name}");
        }
        let outside = [("RANK", "4"), all[1], all[2], all[3], all[4]];
        assert!(place(&outside).unwrap_err().to_string().contains("RANK is 4"));
    }

    #[test]
    fn every_process_gets_what_the_first_one_makes_and_strangers_do_no_harm() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let of = |rank| Place { rank, world: 3, local_rank: rank, address: format!("127.0.0.1:{port}") };
        let patience = Duration::from_secs(20);
        let stranger = std::thread::spawn(move || {
            for _ in 0..50 {
                if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                    return stream.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            false
        });
        let others = [2, 1].map(|rank| {
            let place = of(rank);
            std::thread::spawn(move || place.share::<128>(|| unreachable!("the first one makes it"), patience))
        });
        let made = of(0).share(|| Ok([7; 128]), patience).unwrap();
        for other in others {
            assert_eq!(other.join().unwrap().unwrap(), made);
        }
        drop(stranger.join());
    }

    #[test]
    fn who_does_not_come_is_named() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = Place { rank: 0, world: 2, local_rank: 0, address: format!("127.0.0.1:{port}") };
        let error = place.share(|| Ok([0; 4]), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("process 1 has not come") && error.contains("MASTER_PORT"), "{error}");
    }
}
