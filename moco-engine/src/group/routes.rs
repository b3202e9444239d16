//! Which rows of a batch go where when a permutation of the whole batch is spread over processes.

use std::ops::Range;

use crate::{Error, Result};

/// The part of one process in a permutation of the rows of a whole batch, of which each process holds an equal slice: place `i`
/// of the result holds row `order[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// Own rows in the order in which they are sent: by the process that gets them, then by their places there.
    sent: Vec<u32>,
    /// Own places of what is received: by the process that gives it, then by place.
    received: Vec<u32>,
    /// Rows to each process.
    to: Vec<usize>,
    /// Rows from each process.
    from: Vec<usize>,
}

impl Routes {
    /// For process `rank` of `world`.
    ///
    /// # Errors
    /// [`Error::Config`] if the whole batch cannot be divided among them.
    pub fn new(order: &[u32], rank: usize, world: usize) -> Result<Routes> {
        if world == 0 || !order.len().is_multiple_of(world) || order.iter().any(|row| *row as usize >= order.len()) {
            return Err(Error::Config(format!("{} rows cannot be spread over {world} processes", order.len())));
        }
        let each = order.len() / world;
        let slice = |rank: usize| -> Range<usize> { rank * each..(rank + 1) * each };
        let (own, mut routes) = (slice(rank), Routes { sent: vec![], received: vec![], to: vec![], from: vec![] });
        for other in 0..world {
            let before = (routes.sent.len(), routes.received.len());
            let rows = order[slice(other)].iter().map(|row| *row as usize).filter(|row| own.contains(row));
            routes.sent.extend(rows.map(|row| (row - own.start) as u32));
            let theirs = slice(other);
            let places = (0..each).filter(|place| theirs.contains(&(order[own.start + place] as usize)));
            routes.received.extend(places.map(|place| place as u32));
            routes.to.push(routes.sent.len() - before.0);
            routes.from.push(routes.received.len() - before.1);
        }
        Ok(routes)
    }

    /// Order in which own rows are gathered before they are sent.
    pub fn sent(&self) -> &[u32] {
        &self.sent
    }

    /// Places to which what is received is scattered.
    pub fn received(&self) -> &[u32] {
        &self.received
    }

    /// Values to each process and from each, for rows of `width`.
    pub fn counts(&self, width: usize) -> [Vec<usize>; 2] {
        [&self.to, &self.from].map(|rows| rows.iter().map(|n| n * width).collect())
    }

    /// The way back: what came to a place goes to where its row was.
    pub fn back(self) -> Routes {
        Routes { sent: self.received, received: self.sent, to: self.from, from: self.to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All processes at once: what each sends, received by the others.
    fn run(routes: &[Routes], rows: &[u32]) -> Vec<u32> {
        let each = rows.len() / routes.len();
        let mut result = vec![u32::MAX; rows.len()];
        for (rank, mine) in routes.iter().enumerate() {
            let mut places = mine.received().iter();
            for (other, theirs) in routes.iter().enumerate() {
                let skipped: usize = theirs.to[..rank].iter().sum();
                for row in &theirs.sent()[skipped..skipped + theirs.to[rank]] {
                    result[rank * each + *places.next().unwrap() as usize] = rows[other * each + *row as usize];
                }
                assert_eq!(theirs.to[rank], mine.from[other]);
            }
        }
        result
    }

    #[test]
    fn rows_come_to_their_places_and_back() {
        let order = [7u32, 2, 11, 4, 0, 9, 3, 10, 1, 6, 8, 5];
        let rows: Vec<u32> = (100..112).collect();
        for world in [1, 2, 3, 4, 6, 12] {
            let routes: Vec<_> = (0..world).map(|rank| Routes::new(&order, rank, world).unwrap()).collect();
            let permuted = run(&routes, &rows);
            assert_eq!(permuted, order.map(|row| rows[row as usize]), "{world} processes");
            let back: Vec<_> = routes.into_iter().map(Routes::back).collect();
            assert_eq!(run(&back, &permuted), rows, "{world} processes");
        }
    }

    #[test]
    fn what_cannot_be_divided_is_refused() {
        assert!(Routes::new(&[1, 0, 2], 0, 2).is_err());
        assert!(Routes::new(&[1, 5], 0, 2).is_err());
    }
}
