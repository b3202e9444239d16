//! Which of a training's processes this one is, as the environment tells it.

use crate::{Error, Result};

/// A process among those of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of this process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Number of this process on its machine, which is also that of its GPU.
    pub local_rank: usize,
    /// Number of processes on its machine.
    pub local_world: usize,
    /// Where process 0 can be reached: `host:port`.
    pub address: String,
}

impl Place {
    /// From the variables that `torchrun` sets: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE` (all of `WORLD_SIZE`
    /// where it is missing), `MASTER_ADDR` and `MASTER_PORT`. `None` without `WORLD_SIZE` or where it is 1.
    ///
    /// Where `torchrun` itself listens at `MASTER_PORT`, which it tells by `TORCHELASTIC_USE_AGENT_STORE=True`, the processes
    /// meet at the next port.
    ///
    /// # Errors
    /// [`Error::Config`] naming the variable that is missing or makes no sense.
    pub fn from_env() -> Result<Option<Place>> {
        Place::from(|name| std::env::var(name).ok())
    }

    /// The variables from which [`Place::from_env`] makes this place.
    pub fn variables(&self) -> [(&'static str, String); 6] {
        let (host, port) = self.address.rsplit_once(':').unwrap_or((&self.address, "0"));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        [
            ("RANK", self.rank.to_string()),
            ("WORLD_SIZE", self.world.to_string()),
            ("LOCAL_RANK", self.local_rank.to_string()),
            ("LOCAL_WORLD_SIZE", self.local_world.to_string()),
            ("MASTER_ADDR", host.into()),
            ("MASTER_PORT", port.into()),
        ]
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
        let (rank, local_rank) = (number("RANK")?, number("LOCAL_RANK")?);
        if rank >= world {
            return Err(Error::Config(format!("RANK is {rank}; with WORLD_SIZE {world} it must be below {world}")));
        }
        let local_world = variable("LOCAL_WORLD_SIZE").map_or(Ok(world), |_| number("LOCAL_WORLD_SIZE"))?;
        if local_rank >= local_world {
            return Err(Error::Config(format!(
                "LOCAL_RANK is {local_rank}; with {local_world} processes on this machine \
                 (LOCAL_WORLD_SIZE) it must be below {local_world}"
            )));
        }
        let port = number("MASTER_PORT")?;
        let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
        let port = port + usize::from(taken);
        if port > usize::from(u16::MAX) {
            return Err(Error::Config(format!("MASTER_PORT leads to port {port}; it must be below 65536")));
        }
        let host = variable("MASTER_ADDR")
            .ok_or_else(|| Error::Config("WORLD_SIZE is set but MASTER_ADDR is not; `torchrun` sets both".into()))?;
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Some(Place { rank, world, local_rank, local_world, address }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::from(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    const ALL: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "::1"), ("MASTER_PORT", "29500")];

    #[test]
    fn the_environment_of_torchrun_names_a_place_and_what_is_wrong_is_named() {
        let expected = Place { rank: 3, world: 4, local_rank: 1, local_world: 4, address: "[::1]:29500".into() };
        assert_eq!(place(&ALL).unwrap(), Some(expected));
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("WORLD_SIZE", "1")]).unwrap(), None);
        for (i, (name, _)) in ALL.iter().enumerate().filter(|(_, (name, _))| *name != "WORLD_SIZE") {
            let mut some = ALL.to_vec();
            some.remove(i);
            assert!(place(&some).unwrap_err().to_string().contains(name), "{name}");
        }
        let outside = [("RANK", "4"), ALL[1], ALL[2], ALL[3], ALL[4]];
        assert!(place(&outside).unwrap_err().to_string().contains("RANK is 4"));
        let crowded = [&ALL[..], &[("LOCAL_WORLD_SIZE", "1")]].concat();
        assert!(place(&crowded).unwrap_err().to_string().contains("LOCAL_WORLD_SIZE"));
    }

    #[test]
    fn a_port_that_torchrun_keeps_is_left_to_it() {
        let kept = [&ALL[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(place(&kept).unwrap().unwrap().address, "[::1]:29501");
        let free = [&ALL[..], &[("TORCHELASTIC_USE_AGENT_STORE", "False")]].concat();
        assert_eq!(place(&free).unwrap().unwrap().address, "[::1]:29500");
    }

    #[test]
    fn a_place_survives_its_variables() {
        for address in ["127.0.0.1:4000", "[::1]:29500", "node7:1"] {
            let given = Place { rank: 1, world: 3, local_rank: 0, local_world: 2, address: address.into() };
            let variables = given.variables();
            let read = Place::from(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()));
            assert_eq!(read.unwrap(), Some(given));
        }
    }
}
