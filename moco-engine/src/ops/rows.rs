//! Rows moved about: the shuffle of a batch and its inverse, and keys put into the ring of the queue.

use rayon::prelude::*;

/// `gathered[i] = rows[order[i]]`; both [n, width] with n = `order.len()`.
///
/// # Panics
/// If the lengths differ or are not a multiple of n, or if there is no such row.
pub fn gather_rows(rows: &[f32], order: &[u32], gathered: &mut [f32]) {
    let Some(width) = width(rows, order, gathered) else { return };
    gathered.par_chunks_exact_mut(width).zip(order).for_each(|(to, &i)| {
        to.copy_from_slice(&rows[i as usize * width..][..width]);
    });
}

/// The inverse for a permutation: `scattered[order[i]] = rows[i]`; both [n, width].
///
/// # Panics
/// As [`gather_rows`].
pub fn scatter_rows(rows: &[f32], order: &[u32], scattered: &mut [f32]) {
    let Some(width) = width(rows, order, scattered) else { return };
    for (row, &i) in rows.chunks_exact(width).zip(order) {
        scattered[i as usize * width..][..width].copy_from_slice(row);
    }
}

/// Puts keys [n, dim] into a ring [K, dim], key `i` at place `(pointer + i) mod K`; of more than K keys the last K stay.
///
/// # Panics
/// If a length is no multiple of `dim`, the ring has no place, or `pointer` is outside it.
pub fn enqueue(keys: &[f32], dim: usize, pointer: usize, queue: &mut [f32]) {
    let places = queue.len() / dim;
    assert!(keys.len().is_multiple_of(dim) && queue.len().is_multiple_of(dim), "whole keys of {dim} values");
    assert!(pointer < places, "place {pointer} of {places}");
    let n = keys.len() / dim;
    for (i, key) in keys.chunks_exact(dim).enumerate().skip(n.saturating_sub(places)) {
        queue[(pointer + i) % places * dim..][..dim].copy_from_slice(key);
    }
}

fn width(a: &[f32], order: &[u32], b: &[f32]) -> Option<usize> {
    let n = order.len();
    assert!(a.len() == b.len() && a.len().is_multiple_of(n.max(1)), "{n} rows in {} and {} values", a.len(), b.len());
    (!a.is_empty() && n > 0).then(|| a.len() / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattering_undoes_gathering() {
        let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let (mut gathered, mut back) = (vec![0.0; 12], vec![0.0; 12]);
        gather_rows(&rows, &[2, 0, 3, 1], &mut gathered);
        assert_eq!(gathered[..6], [6.0, 7.0, 8.0, 0.0, 1.0, 2.0]);
        scatter_rows(&gathered, &[2, 0, 3, 1], &mut back);
        assert_eq!(back, rows);
    }

    #[test]
    fn the_ring_keeps_the_newest_keys() {
        let mut queue = [0.0; 6];
        enqueue(&[1.0, 1.5, 2.0, 2.5], 2, 2, &mut queue);
        assert_eq!(queue, [2.0, 2.5, 0.0, 0.0, 1.0, 1.5]);
        let many: Vec<f32> = (0..14).map(|i| i as f32).collect();
        enqueue(&many, 2, 1, &mut queue);
        assert_eq!(queue, [10.0, 11.0, 12.0, 13.0, 8.0, 9.0]);
    }
}
